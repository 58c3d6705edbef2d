"""Small page-locked buffers between CPU and GPU, and the two ways across: a kernel, or the copy engine."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.memory.device_view import WORD, device_view, read_by_kernel
from runtime.memory.host_buffer import HostBuffer

WORD_BYTES = WORD.itemsize


class Staging:
    """Page-locked bytes that grow with need; plain memory where there is no GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffer: HostBuffer | None = None
        self._words: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """CPU memory it has."""
        return 0 if self._buffer is None else self._buffer.nbytes

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor over the beginning of the buffer; what an earlier call returned is overwritten through it."""
        need = torch.Size(shape).numel() * dtype.itemsize
        if self._buffer is None or self._buffer.nbytes < need:
            self._words = None
            self._buffer = HostBuffer(max(4096, -(-need * 9 // (8 * WORD_BYTES)) * WORD_BYTES))
            if self.device.type == "cuda":
                self._buffer.lock()
                self._words = device_view(self._buffer.bytes, self.device)
        return self._buffer.bytes[:need].view(dtype).view(shape)

    def load(self, out: Tensor, by_kernel: bool) -> None:
        """Copies the beginning of the buffer to `out` on the current lane."""
        size = out.numel() * out.element_size()
        if by_kernel and self._words is not None and size % WORD_BYTES == 0 and out.is_contiguous():
            read_by_kernel(self._words[: size // WORD_BYTES], out)
        else:
            out.copy_(self.host(tuple(out.shape), out.dtype), non_blocking=True)


class Upload:
    """Index arrays of a pass, packed and brought to the GPU in one piece, past the copy engine's queue."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[np.int64]] = []
        self._size = 0

    def add(self, array: NDArray[np.int64]) -> tuple[int, tuple[int, ...]]:
        """Keeps an array; the place under which `view` finds it."""
        place = (self._size, array.shape)
        self._arrays.append(np.ascontiguousarray(array, dtype=np.int64).reshape(-1))
        self._size += array.size
        return place

    def send(self, staging: Staging, device: torch.device) -> Tensor:
        """All arrays on the device, one int64 tensor."""
        packed = torch.from_numpy(np.concatenate([*self._arrays, np.zeros(1, np.int64)]))
        if device.type == "cpu":
            return packed
        staging.host((len(packed),), torch.int64).copy_(packed)
        out = torch.empty(len(packed), dtype=torch.int64, device=device)
        staging.load(out, by_kernel=True)
        return out


def view_of(sent: Tensor, place: tuple[int, tuple[int, ...]]) -> Tensor:
    """One of the arrays that were sent."""
    start, shape = place
    return sent[start : start + torch.Size(shape).numel()].view(shape)
