"""CPU memory in large pieces: mapped, touched by many threads, page-locked in place."""

import mmap
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from hrm.errors import HrmError

PAGE = 4096
TOUCH_PIECE = 64 << 20


def _cudart() -> Any:
    """CUDA's runtime library, as PyTorch has it loaded."""
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


class HostBuffer:
    """`nbytes` of CPU memory as a uint8 tensor [nbytes]; `lock` page-locks it where it lies.

    PyTorch's pinned allocator rounds up to powers of two and copies in; mapping and registering does neither. Large
    pages make the first touch cheaper where the system grants them.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes, self.locked = nbytes, False
        size = max(PAGE, -(-nbytes // PAGE) * PAGE)
        try:
            self._map = mmap.mmap(-1, size)
        except (OSError, ValueError) as error:
            raise HrmError(
                f"CPU memory: cannot map {size:,} bytes ({error}); choose a smaller batch or model"
            ) from None
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._whole = torch.frombuffer(self._map, dtype=torch.uint8)
        self.bytes: Tensor = self._whole[:nbytes]

    def touch(self, threads: int) -> None:
        """Has the system give every page now, by many threads, and not one by one during a run."""
        pieces = range(0, len(self._whole), TOUCH_PIECE)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda at: self._whole[at : at + TOUCH_PIECE : PAGE].fill_(0), pieces))

    def lock(self) -> None:
        """Page-locks the memory, so that copies to the GPU run at full speed and beside the CPU.

        Raises:
            HrmError: the driver refuses (limits of locked memory).
        """
        code = _cudart().cudaHostRegister(self._whole.data_ptr(), len(self._whole), 0)
        if int(code) != 0:
            raise HrmError(
                f"CPU memory: the driver refuses to page-lock {len(self._whole):,} bytes ({code}); raise `ulimit -l`, "
                "or use a policy with host_weights: pageable"
            )
        self.locked = True

    def __del__(self) -> None:
        if getattr(self, "locked", False):
            _cudart().cudaHostUnregister(self._whole.data_ptr())


def host_tensor(shape: tuple[int, ...], dtype: torch.dtype, lock: bool) -> tuple[Tensor, HostBuffer]:
    """A tensor of its own buffer, page-locked where asked; the buffer has to outlive it."""
    count = 1
    for size in shape:
        count *= size
    buffer = HostBuffer(count * dtype.itemsize)
    if lock:
        buffer.lock()
    return buffer.bytes.view(dtype).view(shape), buffer
