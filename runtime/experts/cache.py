"""Slots on the GPU that hold one expert each, filled as an `ExpertCache` says.

E experts, H hidden_size, I intermediate_size.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm.predict.cache_plan import lookahead
from hrm.predict.expert_cache import ExpertCache, Fetch, GatePlan
from hrm.spec.policy import Policy
from runtime.device import CpuDevice, CudaDevice, Mark
from runtime.memory.device_view import device_view, read_by_kernel
from runtime.memory.expert_layout import NO_SHARE, Slab
from runtime.memory.host_weights import ExpertStore
from runtime.memory.slab_tensors import SlabTensors, view_slab
from runtime.models.config import ModelConfig


@dataclass
class ExpertSlots:
    """memory: uint8 [slots, bytes of an expert] on the device. Layers are counted as the cache does: MoE layers only.

    What a slot's next user waits for lies in `_written` and `_read`: marks of its latest copy and of its latest use.
    """

    new_cache: Callable[[], ExpertCache]
    store: ExpertStore
    memory: Tensor
    cache: ExpertCache = field(init=False)
    copied: float = 1.0  # share of missed experts, where others are left to the CPU
    late: int = 0  # hits whose copies had yet to arrive when the router chose them
    lock: Lock = field(default_factory=Lock)
    _broken: bool = False  # a pass has begun and not ended: what the cache takes to be in place may not be
    _written: dict[int, Mark] = field(default_factory=dict)
    _read: dict[int, Mark] = field(default_factory=dict)
    _pending: list[Mark] = field(default_factory=list)
    _complete: int = 0
    _words: dict[int, Tensor] = field(default_factory=dict)
    _addresses: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cache = self.new_cache()

    @property
    def nbytes(self) -> int:
        """GPU memory."""
        return self.memory.numel()

    @cached_property
    def moe_layers(self) -> list[int]:
        """The model's layers that have experts, in order."""
        return sorted(self.store.host)

    def begin_pass(self, demand: NDArray[np.float64] | None) -> None:
        """demand: [MoE layers, E], probability that the pass chooses an expert; None: nothing is known."""
        with self.lock:
            if self._broken:
                self.cache = self.new_cache()
            self.cache.begin_pass(demand)
            self._complete, self._broken = 0, True

    def end_pass(self) -> None:
        """Every copy that the cache counts on has been issued."""
        self._broken = False

    def prefetch(self, device: CpuDevice | CudaDevice) -> None:
        """Copies on the current lane what is most urgent, as far as `lookahead` allows beside what is under way."""
        with self.lock:
            self._pending = [mark for mark in self._pending if not device.reached(mark)]
            room = lookahead(self.memory.shape[1]) - len(self._pending)
            for fetch in self.cache.prefetch(self._complete, room=max(0, room)):
                self._copy(device, fetch, by_kernel=False)
                self._pending.append(self._written[fetch.slot])

    def gate(
        self, device: CpuDevice | CudaDevice, layer: int, touched: list[int], tokens: list[int], leaves: bool
    ) -> GatePlan:
        """How the experts that a layer's routers chose for so many tokens each are computed; `leaves`: some on the
        CPU.
        """
        with self.lock:
            plan = self.cache.gate(layer, touched, tokens, self.copied if leaves else 1.0)
            marks = (self._written.get(slot) for _, slot in plan.hits)
            self.late += sum(mark is not None and not device.reached(mark) for mark in marks)
            return plan

    def complete(self, layer: int) -> None:
        """The layer's experts are issued; whoever overwrites their slots waits for the marks of their use."""
        with self.lock:
            self.cache.complete(layer)
            self._complete = layer + 1

    def copy(self, device: CpuDevice | CudaDevice, fetch: Fetch, by_kernel: bool) -> None:
        """An expert into its slot on the current lane, after whoever wrote or used the slot last."""
        with self.lock:
            self._copy(device, fetch, by_kernel)

    def _copy(self, device: CpuDevice | CudaDevice, fetch: Fetch, by_kernel: bool) -> None:
        for mark in (self._written.get(fetch.slot), self._read.get(fetch.slot)):
            if mark is not None:
                device.order_after(mark)
        source, target = self._host(fetch), self.memory[fetch.slot]
        if by_kernel and fetch.layer in self._gpu_words():
            start, size = self._place(fetch)
            read_by_kernel(self._words[fetch.layer][start // 8 : (start + size) // 8], target)
        else:
            target.copy_(source, non_blocking=True)
        self._written[fetch.slot] = device.mark()

    def await_copies(self, device: CpuDevice | CudaDevice, slots: Iterable[int]) -> None:
        """The current lane waits until the slots hold what was last copied to them."""
        with self.lock:
            marks = {id(mark): mark for slot in slots if (mark := self._written.get(slot)) is not None}
        for mark in marks.values():
            device.order_after(mark)

    def note_use(self, device: CpuDevice | CudaDevice, slots: Iterable[int]) -> None:
        """What is queued on the current lane so far uses the slots."""
        mark = device.mark()
        with self.lock:
            self._read.update(dict.fromkeys(slots, mark))

    def host_addresses(self, layer: int) -> NDArray[np.int64]:
        """[E, 2], where each expert's gate_up and down lie in CPU memory."""
        if layer not in self._addresses:
            self._addresses[layer] = self.store.expert_addresses(self.moe_layers[layer])
        return self._addresses[layer]

    @property
    def intermediate(self) -> int:
        """I."""
        return self._slab.rows

    def expert(self, slot: int) -> SlabTensors:
        """One slot as matrices."""
        return view_slab(self._slab, self.memory[slot], self.store.dtype, self.store.hidden_size)

    def stacked(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """gate_up [slots, 2 I, H] and down [slots, H, I] of slots [first, last)."""
        rows, hidden = self._slab.rows, self.store.hidden_size
        elements = self.memory[first:last].view(self.store.dtype)
        stride, count = elements.stride(0), last - first
        gate_up = elements.as_strided((count, 2 * rows, hidden), (stride, hidden, 1), elements.storage_offset())
        start = elements.storage_offset() + 2 * rows * hidden
        return gate_up, elements.as_strided((count, hidden, rows), (stride, rows, 1), start)

    @property
    def _slab(self) -> Slab:
        return self.store.layout.streamed[0]

    def _place(self, fetch: Fetch) -> tuple[int, int]:
        """First byte in its layer's memory, and bytes, of an expert."""
        return self.store.region.starts[fetch.expert], self.memory.shape[1]

    def _host(self, fetch: Fetch) -> Tensor:
        start, size = self._place(fetch)
        return self.store.host_bytes(self.moe_layers[fetch.layer])[start : start + size]

    def _gpu_words(self) -> dict[int, Tensor]:
        """Page-locked layers as the GPU sees them."""
        if not self._words and self.memory.device.type == "cuda":
            for place, layer in enumerate(self.moe_layers):
                if self.store.host[layer].locked:
                    self._words[place] = device_view(self.store.host_bytes(layer), self.memory.device)
        return self._words


def make_slots(store: ExpertStore, config: ModelConfig, policy: Policy, device: torch.device) -> ExpertSlots | None:
    """Slots for the share of all experts that the policy keeps on the GPU; None where it has no expert cache.

    Raises:
        PolicyError: fewer slots than a token chooses experts.
    """
    if policy.expert_cache == "rows":
        return None
    layers = len(store.host)
    count = math.floor(policy.weights_on_gpu * layers * config.num_experts + NO_SHARE)
    new_cache = partial(ExpertCache, layers, config.num_experts, count, policy.expert_cache, config.top_k)
    size = store.region.starts[1]
    memory = torch.empty((count, size), dtype=torch.uint8, device=device)
    return ExpertSlots(new_cache, store, memory, copied=policy.experts_on_gpu)
