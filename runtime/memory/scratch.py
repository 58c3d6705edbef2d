"""CPU memory for what lies between two products, kept from call to call."""

import torch
from torch import Tensor

from runtime.memory.staging import Staging

_CPU = torch.device("cpu")


class Scratch:
    """Buffers by name that grow with need. The system gives and takes back large blocks page by page, on every call."""

    def __init__(self) -> None:
        self._buffers: dict[str, Staging] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor over the buffer of that name; what an earlier call returned is overwritten through it."""
        return self._buffers.setdefault(name, Staging(_CPU)).host(shape, dtype)

    @property
    def nbytes(self) -> int:
        """CPU memory it has."""
        return sum(buffer.nbytes for buffer in self._buffers.values())
