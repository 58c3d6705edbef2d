"""CPU memory in large pieces: mapped, touched by many threads, page-locked in place."""

import mmap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hrm.errors import HrmError

PAGE = 4096
TOUCH_PIECE = 64 << 20
MOST_SLACK = 2.0  # times a buffer's size that a mapping kept from an earlier one may have


def _cudart() -> Any:
    """CUDA's runtime library, as PyTorch has it loaded."""
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


class _Mapping:
    """Mapped memory, `whole` of it as uint8; used: it has served another buffer; locked: page-locked."""

    def __init__(self, size: int) -> None:
        try:
            self._map = mmap.mmap(-1, size)
        except (OSError, ValueError) as error:
            raise HrmError(
                f"CPU memory: cannot map {size:,} bytes ({error}); choose a smaller batch or model"
            ) from None
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        with torch.inference_mode(False):  # a buffer made in a pass may serve one that is loaded outside of it
            self.whole = torch.frombuffer(self._map, dtype=torch.uint8)
        self.used = self.locked = False

    def release(self) -> None:
        """Before it is dropped."""
        if self.locked:
            _cudart().cudaHostUnregister(self.whole.data_ptr())
            self.locked = False


class _Spare:
    """Mappings that nobody uses, kept for the next buffer of nearly their size; `keeps` while somebody wants that."""

    def __init__(self) -> None:
        self.keeps = False
        self._mappings: list[_Mapping] = []
        self._lock = threading.RLock()  # the collector may drop a buffer, which gives, in a thread that is taking

    def take(self, size: int) -> _Mapping | None:
        """The smallest that does; where none does, all are given up, since their memory is needed."""
        with self._lock:
            fitting = [m for m in self._mappings if size <= len(m.whole) <= MOST_SLACK * size]
            if fitting:
                found = min(fitting, key=lambda mapping: len(mapping.whole))
                self._mappings.remove(found)
                return found
            self._drop()
            return None

    def give(self, mapping: _Mapping) -> None:
        """One that is not used any more."""
        with self._lock:
            if self.keeps:
                mapping.used = True
                self._mappings.append(mapping)
            else:
                mapping.release()

    def clear(self) -> None:
        """Nothing is kept any more."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        while self._mappings:
            self._mappings.pop().release()


_SPARE = _Spare()


@contextmanager
def kept_mappings() -> Iterator[None]:
    """Within it, memory of buffers that are dropped serves later ones: the system need not give, and the driver not
    page-lock, new pages, which takes longer than filling them.
    """
    _SPARE.keeps = True
    try:
        yield
    finally:
        _SPARE.keeps = False
        _SPARE.clear()


class HostBuffer:
    """`nbytes` of CPU memory as a uint8 tensor [nbytes]; `lock` page-locks it where it lies.

    PyTorch's pinned allocator rounds up to powers of two and copies in; mapping and registering does neither. Large
    pages make the first touch cheaper where the system grants them. What it holds at first is not said.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        size = max(PAGE, -(-nbytes // PAGE) * PAGE)
        self._mapping = _SPARE.take(size) or _Mapping(size)
        self.bytes: Tensor = self._mapping.whole[:nbytes]

    @property
    def locked(self) -> bool:
        """Whether it is page-locked."""
        return self._mapping.locked

    def touch(self, threads: int) -> None:
        """Has the system give every page now, by many threads, and not one by one in a run; all bytes are 0 then."""
        mapping, whole = self._mapping, self._mapping.whole
        step = 1 if mapping.used else PAGE
        pieces = range(0, len(whole), TOUCH_PIECE)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda at: whole[at : at + TOUCH_PIECE : step].fill_(0), pieces))

    def lock(self) -> None:
        """Page-locks the memory, so that copies to the GPU run at full speed and beside the CPU.

        Raises:
            HrmError: the driver refuses (limits of locked memory).
        """
        mapping, whole = self._mapping, self._mapping.whole
        if mapping.locked:
            return
        code = _cudart().cudaHostRegister(whole.data_ptr(), len(whole), 0)
        if int(code) != 0:
            raise HrmError(
                f"CPU memory: the driver refuses to page-lock {len(whole):,} bytes ({code}); raise `ulimit -l`, "
                "or use a policy with host_weights: pageable"
            )
        mapping.locked = True

    def __del__(self) -> None:
        mapping = getattr(self, "_mapping", None)
        if mapping is not None:
            _SPARE.give(mapping)


def host_tensor(shape: tuple[int, ...], dtype: torch.dtype, lock: bool) -> tuple[Tensor, HostBuffer]:
    """A tensor of its own buffer, page-locked where asked; the buffer has to outlive it."""
    count = 1
    for size in shape:
        count *= size
    buffer = HostBuffer(count * dtype.itemsize)
    if lock:
        buffer.lock()
    return buffer.bytes.view(dtype).view(shape), buffer
