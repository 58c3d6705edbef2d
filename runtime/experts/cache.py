"""Slots on the GPU that hold one expert each, filled as an `ExpertCache` says. E experts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm.predict.cache_plan import lookahead
from hrm.predict.expert_cache import ExpertCache, Fetch, GatePlan
from hrm.predict.path_predictions import ExpectedDemand
from hrm.spec.policy import Policy
from runtime.device import CpuDevice, CudaDevice
from runtime.experts.slot_marks import SlotMarks
from runtime.experts.slot_memory import SlotMemory
from runtime.memory.expert_layout import NO_SHARE
from runtime.memory.host_weights import ExpertStore
from runtime.models.config import ModelConfig

PIECE = 2  # experts copied ahead behind one mark: how many have arrived is known as exactly


@dataclass
class Deciding:
    """How often it was decided what is copied and computed where, and how long that took."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Once more."""
        self.count += 1
        self.seconds += seconds


@dataclass
class ExpertSlots:
    """memory: uint8 [slots, bytes of an expert] on the device. Layers are counted as the cache does: MoE layers only.

    Experts are copied several in a call, behind one mark: one by one they kept the host busy for longer than the link.
    """

    new_cache: Callable[[], ExpertCache]
    store: ExpertStore
    memory: Tensor
    storage: SlotMemory = field(init=False)
    cache: ExpertCache = field(init=False)
    copied: float = 1.0  # share of missed experts, where others are left to the CPU
    late: int = 0  # hits whose copies had yet to arrive when the router chose them
    lock: Lock = field(default_factory=Lock)
    deciding: Deciding = field(default_factory=Deciding)
    _broken: bool = False  # a pass has begun and not ended: what the cache takes to be in place may not be
    _marks: SlotMarks = field(default_factory=SlotMarks)
    _complete: int = 0
    _addresses: dict[int, NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cache, self.storage = self.new_cache(), SlotMemory(self.store, self.memory)

    @property
    def nbytes(self) -> int:
        """GPU memory."""
        return self.memory.numel()

    @property
    def moe_layers(self) -> list[int]:
        """The model's layers that have experts, in order."""
        return self.storage.moe_layers

    def begin_pass(self, demand: ExpectedDemand) -> None:
        """demand: [MoE layers, E]."""
        with self.lock:
            if self._broken:
                self.cache = self.new_cache()
            self.cache.begin_pass(*demand)
            self._complete, self._broken = 0, True

    def end_pass(self) -> None:
        """Every copy that the cache counts on has been issued."""
        self._broken = False

    def prefetch(self, device: CpuDevice | CudaDevice) -> None:
        """Copies on the current lane what is most urgent, as far as `lookahead` allows beside what is under way."""
        with self.lock:
            room = lookahead(self.memory.shape[1]) - self._marks.under_way(device)
            wanted = self.cache.prefetch(self._complete, room=max(0, room))
            for start in range(0, len(wanted), PIECE):
                self._copy(device, wanted[start : start + PIECE], by_kernel=False, ahead=True)

    def gate(
        self, device: CpuDevice | CudaDevice, layer: int, touched: list[int], tokens: list[int], leaves: bool
    ) -> GatePlan:
        """How the experts that a layer's routers chose for so many tokens each are computed; `leaves`: some on the
        CPU. The host has seen the choice: all earlier work of the routers' lane is done.
        """
        with self.lock:
            self._marks.pass_gate(device)
            plan = self.cache.gate(layer, touched, tokens, self.copied if leaves else 1.0)
            self.late += self._marks.arriving(slot for _, slot in plan.hits)
            return plan

    def complete(self, layer: int) -> None:
        """The layer's experts are issued; whoever overwrites their slots waits for the marks of their use."""
        with self.lock:
            self.cache.complete(layer)
            self._complete = layer + 1

    def copy(self, device: CpuDevice | CudaDevice, fetches: Sequence[Fetch], by_kernel: bool) -> None:
        """Experts into slots of their own on the current lane, after whoever wrote or used these last."""
        if fetches:
            with self.lock:
                self._copy(device, fetches, by_kernel, ahead=False)

    def _copy(self, device: CpuDevice | CudaDevice, fetches: Sequence[Fetch], by_kernel: bool, ahead: bool) -> None:
        slots = tuple(fetch.slot for fetch in fetches)
        self._marks.await_idle(device, slots)
        self.storage.copy(fetches, by_kernel)
        (self._marks.prefetch if ahead else self._marks.correct)(device, slots)

    def await_copies(self, device: CpuDevice | CudaDevice, slots: Sequence[int]) -> None:
        """The current lane waits until the slots hold what was last copied to them."""
        with self.lock:
            self._marks.await_copies(device, tuple(slots))

    def note_use(self, device: CpuDevice | CudaDevice, slots: Sequence[int]) -> None:
        """What is queued on the current lane so far uses the slots."""
        with self.lock:
            self._marks.use(device, tuple(slots))

    def host_addresses(self, layer: int) -> NDArray[np.int64]:
        """[E, 2], where each expert's gate_up and down lie in CPU memory."""
        if layer not in self._addresses:
            self._addresses[layer] = self.store.expert_addresses(self.moe_layers[layer])
        return self._addresses[layer]


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
