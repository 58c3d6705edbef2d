"""All layer weights but the routed experts, and the LM head: resident on the GPU, or streamed through two buffers.

The policy's `dense_weights_on_gpu` is a share of bytes. Here whole units are resident (a unit is a layer, or the LM
head), spread evenly over the model, so that the bytes streamed per pass are the policy's, rounded to a unit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.memory.host_buffer import HostBuffer
from runtime.memory.paging import aligned
from runtime.models.family import Shapes

JOINT = {"qkv": ("q", "k", "v"), "qkv_bias": ("q_bias", "k_bias", "v_bias")}  # seen as one where they can be
TensorReader = Callable[[str, tuple[int, ...]], Tensor]
"""(local name, shape) -> the tensor, on the CPU."""


@dataclass(frozen=True)
class UnitLayout:
    """Where each tensor of a unit begins, bytes."""

    shapes: Shapes
    starts: dict[str, int]
    nbytes: int


def lay_unit(shapes: Shapes, itemsize: int) -> UnitLayout:
    """Tensors one behind the other, each at an aligned byte."""
    starts, at = {}, 0
    for name, shape in shapes.items():
        starts[name] = at
        at += aligned(torch.Size(shape).numel() * itemsize)
    return UnitLayout(shapes, starts, at)


def view_unit(layout: UnitLayout, memory: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors over `memory`, uint8, without a copy; those of JOINT beside them where they lie side by side."""
    found = {}
    for name, shape in layout.shapes.items():
        start, count = layout.starts[name], torch.Size(shape).numel() * dtype.itemsize
        found[name] = memory[start : start + count].view(dtype).view(shape)
    for joint, names in JOINT.items():
        if all(name in found for name in names) and _side_by_side(layout, names, dtype):
            start, rows = layout.starts[names[0]], sum(found[name].shape[0] for name in names)
            tail = found[names[0]].shape[1:]
            count = rows * tail.numel() * dtype.itemsize
            found[joint] = memory[start : start + count].view(dtype).view(rows, *tail)
    return found


def _side_by_side(layout: UnitLayout, names: tuple[str, ...], dtype: torch.dtype) -> bool:
    """Whether no padding lies between the tensors."""
    ends = [layout.starts[n] + torch.Size(layout.shapes[n]).numel() * dtype.itemsize for n in names]
    return all(end == layout.starts[after] for end, after in zip(ends, names[1:], strict=False))


def resident_units(sizes: list[int], share: float) -> list[bool]:
    """Which units stay on the GPU: evenly spread, never more bytes than `share` of all up to any unit."""
    kept, seen, chosen = 0, 0, []
    for size in sizes:
        seen += size
        chosen.append(kept + size <= share * seen * (1 + 1e-9))
        kept += size * chosen[-1]
    return chosen


class DenseWeights:
    """Units 0 .. L - 1 are layers, unit L the LM head. `base` counts the units of earlier passes: buffers alternate."""

    def __init__(self, layouts: list[UnitLayout], share: float, dtype: torch.dtype, device: torch.device) -> None:
        self.layouts, self.dtype, self.device, self.base = layouts, dtype, device, 0
        self.resident = resident_units([layout.nbytes for layout in layouts], share)
        streamed = [u.nbytes for u, kept in zip(layouts, self.resident, strict=True) if not kept]
        self._host: dict[int, HostBuffer] = {}
        self._on_gpu: dict[int, Tensor] = {}
        self._views: dict[tuple[int, int], dict[str, Tensor]] = {}
        size = max(streamed, default=0)
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2 if streamed else 0)]
        self.streamed_bytes = sum(streamed)

    @property
    def gpu_bytes(self) -> int:
        """Resident units and buffers."""
        return sum(len(m) for m in self._on_gpu.values()) + sum(len(m) for m in self._buffers)

    def load(self, unit: int, read: TensorReader, lock: bool) -> None:
        """Reads a unit to where it belongs. Raises whatever `read` raises."""
        layout = self.layouts[unit]
        buffer = HostBuffer(layout.nbytes)
        views = view_unit(layout, buffer.bytes, self.dtype)
        for name in layout.shapes:
            tensor = views[name]
            tensor.copy_(read(name, tuple(tensor.shape)))
        if self.resident[unit]:
            self._on_gpu[unit] = buffer.bytes.to(self.device, copy=True)
            return
        if lock:
            buffer.lock()
        self._host[unit] = buffer

    def fetch(self, position: int) -> None:
        """Copies unit number `position` of a pass (beyond the LM head: of the next one) into its buffer."""
        unit = position % len(self.layouts)
        if not self.resident[unit]:
            memory = self._host[unit].bytes
            self._buffer(position)[: len(memory)].copy_(memory, non_blocking=True)

    def tensors(self, unit: int) -> dict[str, Tensor]:
        """A unit's tensors on the GPU; a streamed one has to be in its buffer."""
        key = (unit, -1 if self.resident[unit] else (self.base + unit) % 2)
        if key not in self._views:
            memory = self._on_gpu[unit] if self.resident[unit] else self._buffer(unit)
            self._views[key] = view_unit(self.layouts[unit], memory, self.dtype)
        return self._views[key]

    def next_pass(self) -> None:
        """Unit numbers start again, buffers go on."""
        self.base += len(self.layouts)

    def _buffer(self, position: int) -> Tensor:
        return self._buffers[(self.base + position) % 2]
