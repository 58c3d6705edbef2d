"""Slots on the GPU as memory: experts copied into them several at a time, and all of them as matrices.

E experts, H hidden_size, I intermediate_size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from hrm.predict.cache_plan import Fetch
from runtime.kernels.few_rows import Slots
from runtime.kernels.slot_ffn import SlotWeights
from runtime.memory.device_view import device_view
from runtime.memory.expert_layout import Slab
from runtime.memory.host_buffer import HostBuffer
from runtime.memory.host_weights import ExpertStore
from runtime.memory.slab_tensors import SlabTensors, view_slab


@dataclass
class SlotMemory:
    """whole: uint8 [slots, bytes of an expert] on the device. Layers are MoE layers only, counted from 0."""

    store: ExpertStore
    whole: Tensor
    _slots: dict[torch.dtype, list[Tensor]] = field(default_factory=dict)
    _sources: dict[tuple[int, bool], list[Tensor]] = field(default_factory=dict)

    @cached_property
    def moe_layers(self) -> list[int]:
        """The model's layers that have experts, in order."""
        return sorted(self.store.host)

    def copy(self, fetches: Sequence[Fetch], by_kernel: bool) -> None:
        """Experts of any layers into slots of their own on the current lane, in one call.

        It gives up Python's lock meanwhile. By kernel, it is a few launches for all of them: each of these copies many
        pieces of 256 KiB.
        """
        sources = [self._experts(fetch.layer, by_kernel)[fetch.expert] for fetch in fetches]
        slots = self._slots_as(sources[0].dtype)
        torch._foreach_copy_([slots[fetch.slot] for fetch in fetches], sources, non_blocking=True)

    @cached_property
    def weights(self) -> SlotWeights:
        """All slots as matrices."""
        return SlotWeights(len(self.whole), self._slab.rows, self._expert, self._stacked)

    @cached_property
    def matrices(self) -> Slots:
        """The same for kernels that take any slots."""
        return Slots(self.whole.view(self.store.dtype), self.store.hidden_size, self._slab.rows)

    def _expert(self, slot: int) -> SlabTensors:
        return view_slab(self._slab, self.whole[slot], self.store.dtype, self.store.hidden_size)

    def _stacked(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """gate_up [slots, 2 I, H] and down [slots, H, I] of slots [first, last)."""
        rows, hidden = self._slab.rows, self.store.hidden_size
        elements = self.whole[first:last].view(self.store.dtype)
        stride, count = elements.stride(0), last - first
        gate_up = elements.as_strided((count, 2 * rows, hidden), (stride, hidden, 1), elements.storage_offset())
        start = elements.storage_offset() + 2 * rows * hidden
        return gate_up, elements.as_strided((count, hidden, rows), (stride, rows, 1), start)

    @property
    def _slab(self) -> Slab:
        return self.store.layout.streamed[0]

    def _slots_as(self, dtype: torch.dtype) -> list[Tensor]:
        """Slot by slot, as what is copied."""
        if dtype not in self._slots:
            self._slots[dtype] = list(self.whole.view(dtype))
        return self._slots[dtype]

    def _experts(self, layer: int, by_kernel: bool) -> list[Tensor]:
        """A layer's experts one by one: in CPU memory, or as the GPU sees them, where they are page-locked."""
        if (layer, by_kernel) not in self._sources:
            buffer, size = self.store.host[self.moe_layers[layer]], self.whole.shape[1]
            seen = seen_by_gpu(buffer, self.whole.device) if by_kernel else None
            source = buffer.bytes if seen is None else seen
            starts, width = self.store.region.starts[: len(self.store.layout.streamed)], source.element_size()
            self._sources[layer, by_kernel] = [source[at // width : (at + size) // width] for at in starts]
        return self._sources[layer, by_kernel]


def seen_by_gpu(buffer: HostBuffer, device: torch.device) -> Tensor | None:
    """Page-locked memory for kernels on the GPU, which take four words a thread, 16 bytes; None where they cannot."""
    if device.type != "cuda" or not buffer.locked:
        return None
    return device_view(buffer.bytes, device).view(torch.int32)
