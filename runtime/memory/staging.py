"""Small page-locked buffers between CPU and GPU, and the two ways across: a kernel, or the copy engine."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.memory.device_view import WORD, device_view, read_by_kernel
from runtime.memory.host_buffer import HostBuffer

WORD_BYTES = WORD.itemsize
LASTING_WORDS = 1024  # arrays that are sent again and again are padded to multiples, so that views can be used again


class Staging:
    """Page-locked bytes that grow with need; plain memory where there is no GPU.

    At first they are as many as are needed. What has to grow may go on growing, as with the context or while a batch
    fills up: it takes an eighth more than it needs then, since page-locking waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffer: HostBuffer | None = None
        self._words: Tensor | None = None
        self._twin: Tensor | None = None  # on the device
        self._views: dict[str, tuple[object, Tensor]] = {}  # the latest of each kind: most calls want it again

    @property
    def nbytes(self) -> int:
        """CPU memory it has."""
        return 0 if self._buffer is None else self._buffer.nbytes

    def host(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor over the beginning of the buffer; what an earlier call returned is overwritten through it."""
        size = math.prod(shape)
        buffer = self._room(size * dtype.itemsize)
        return self._view("host", (shape, dtype), lambda: buffer.bytes[: size * dtype.itemsize].view(dtype).view(shape))

    def arrive(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A copy of the beginning of the buffer on the device, made on the current lane by a kernel; the next call's
        overwrites it. In PyTorch's plain way where no kernel can read the buffer.
        """
        size = math.prod(shape)
        host, count = self.host(shape, dtype), -(-size * dtype.itemsize // WORD_BYTES)
        words = self._words
        if words is None:
            return host.to(self.device, non_blocking=True)
        if self._twin is None:
            self._twin = torch.empty(len(words), dtype=WORD, device=self.device)
        twin = self._twin
        here, there = self._view("here", count, lambda: words[:count]), self._view("there", count, lambda: twin[:count])
        torch.bitwise_or(here, 0, out=there)
        return self._view("twin", (shape, dtype), lambda: twin.view(dtype)[:size].view(shape))

    def _room(self, need: int) -> HostBuffer:
        """The buffer, of so many bytes at least."""
        if self._buffer is None or self._buffer.nbytes < need:
            self._words, self._twin, eighths = None, None, 8 if self._buffer is None else 9
            self._views.clear()
            self._buffer = HostBuffer(max(4096, -(-need * eighths // (8 * WORD_BYTES)) * WORD_BYTES))
            if self.device.type == "cuda":
                self._buffer.lock()
                self._words = device_view(self._buffer.bytes, self.device)
        return self._buffer

    def _view(self, name: str, key: object, make: Callable[[], Tensor]) -> Tensor:
        """The latest view of a name, if it is of this key, or a new one."""
        latest, view = self._views.get(name, (None, None))
        if view is None or latest != key:
            view = make()
            self._views[name] = key, view
        return view

    def load(self, out: Tensor, by_kernel: bool) -> None:
        """Copies the beginning of the buffer to `out` on the current lane."""
        size = out.numel() * out.element_size()
        if by_kernel and self._words is not None and size % WORD_BYTES == 0 and out.is_contiguous():
            read_by_kernel(self._words[: size // WORD_BYTES], out)
        else:
            out.copy_(self.host(tuple(out.shape), out.dtype), non_blocking=True)

    def store(self, values: Tensor) -> Tensor:
        """8-byte integers from the device to the beginning of the buffer, by a kernel; there once it is through."""
        shape = tuple(values.shape)
        host = self.host(shape, WORD)
        if self._words is None:
            host.copy_(values)
            return host
        words = self._words
        torch.bitwise_or(values, 0, out=self._view("words", shape, lambda: words[: values.numel()].view(shape)))
        return host


class Upload:
    """Index arrays, packed and brought to the GPU in one piece, past the copy engine's queue. They may be int32 if all
    their readers take that.
    """

    def __init__(self, dtype: type[np.int32] | type[np.int64] = np.int64) -> None:
        self._arrays: list[NDArray[np.integer[Any]]] = []
        self._size, self._dtype = 0, np.dtype(dtype)

    def add(self, array: NDArray[np.integer[Any]]) -> tuple[int, tuple[int, ...]]:
        """Keeps an array; the place under which `view` finds it."""
        place = (self._size, array.shape)
        self._arrays.append(array.reshape(-1))
        self._size += array.size
        return place

    def send(self, staging: Staging, device: torch.device, lasting: bool = False) -> Tensor:
        """All arrays on the device, one tensor; lasting: memory of the staging's own, until it is next sent from."""
        per_word = WORD_BYTES // self._dtype.itemsize if not lasting else LASTING_WORDS
        count = (self._size // per_word + 1) * per_word
        on_gpu = device.type != "cpu"
        dtype = torch.from_numpy(np.empty(0, self._dtype)).dtype
        packed = staging.host((count,), dtype) if on_gpu else torch.empty(count, dtype=dtype)
        np.concatenate(
            self._arrays or [np.empty(0, self._dtype)], out=packed.numpy()[: self._size], casting="same_kind"
        )
        if not on_gpu:
            return packed
        if lasting:
            return staging.arrive((count,), dtype)
        out = torch.empty(count, dtype=dtype, device=device)
        staging.load(out, by_kernel=True)
        return out


def view_of(sent: Tensor, place: tuple[int, tuple[int, ...]]) -> Tensor:
    """One of the arrays that were sent."""
    start, shape = place
    return sent[start : start + math.prod(shape)].view(shape)
