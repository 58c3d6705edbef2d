"""What a pass knows while it runs: hidden states and everything that one task leaves for the next.

T tokens of a micro-batch, H hidden_size, N query heads, K key-value heads, D head_dim, k top_k.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hrm.schedule.graph import TaskGraph
from hrm.schedule.task import Kind, Resource, Task
from runtime.batch import Batch
from runtime.decode_steps import DecodeSteps
from runtime.device import CpuDevice, CudaDevice, Mark
from runtime.experts.recorder import PassRouting
from runtime.host_counter import Signal
from runtime.kernels.expert_ffn import SortedTokens
from runtime.memory.paging import Paging
from runtime.model_memory import ModelMemory
from runtime.models.family import Routed
from runtime.tables import RowTables

if TYPE_CHECKING:
    from runtime.tasks.layer_plan import LayerPlan

Place = tuple[int, int | None]  # layer, micro-batch (None: all)


def only_micro_batch(task: Task) -> int:
    """Of a task that serves one."""
    assert task.micro_batch is not None
    return task.micro_batch


@dataclass
class ExpertWork:
    """The routed experts of one layer under way: tokens sorted, and their sum so far, [T k, H] fp32; None: nothing."""

    tokens: SortedTokens
    total: Tensor | None = None


@dataclass
class Carried:
    """Marks of pages and dense units that earlier passes have fetched for this one, by number.

    base: pages that went through the pool before; per_layer: pages of a layer by which they were counted.
    """

    base: int = 0
    per_layer: int = 0
    pages: dict[int, Mark] = field(default_factory=dict)
    dense: Mark | None = None


@dataclass
class PassState:
    """Lists are by micro-batch. hidden [T, H], qkv [T, N + 2 K, D], attended [T, N D]: on the device."""

    device: CpuDevice | CudaDevice
    memory: ModelMemory
    graph: TaskGraph
    paging: Paging
    batch: Batch
    tables: list[RowTables]
    carried: Carried
    keep_logits: bool = False
    routing: PassRouting | None = None  # where it is recorded
    replayed: dict[int, Tensor] = field(default_factory=dict)  # by micro-batch, experts [T, MoE layers, k] to take
    signal: Callable[[int], Signal | None] = lambda index: None  # of the task that the CPU does
    steps: DecodeSteps | None = None  # that do the work before the experts, where the pass is of a kind that has them
    fetched_ahead: Carried = field(default_factory=Carried)
    hidden: dict[int, Tensor] = field(default_factory=dict)
    rotation: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    qkv: dict[int, Tensor] = field(default_factory=dict)
    attended: dict[int, Tensor] = field(default_factory=dict)
    routed: dict[int, Routed] = field(default_factory=dict)
    working: dict[Place, ExpertWork] = field(default_factory=dict)
    from_cpu: dict[int, Tensor] = field(default_factory=dict)
    spilled: set[int] = field(default_factory=set)
    sent_to_cpu: dict[Place, torch.dtype] = field(default_factory=dict)  # dtype of the routing weights
    to_store: dict[int, Tensor] = field(default_factory=dict)  # qkv whose K, V go to the host
    staged_kv: dict[Place, Tensor] = field(default_factory=dict)
    touched: dict[int, frozenset[int]] = field(default_factory=dict)
    earlier: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # slot -> K, V of a prompt's earlier parts
    plan_lock: Lock = field(default_factory=Lock)  # of layer_plans: whoever makes one waits for the device
    choices: dict[int, tuple[Tensor, Mark]] = field(default_factory=dict)  # experts [T, k] on their way to the host
    layer_plans: dict[int, "LayerPlan"] = field(default_factory=dict)  # of experts in slots
    tokens: dict[int, Tensor] = field(default_factory=dict)
    logits: dict[int, Tensor] = field(default_factory=dict)
    kv_stages: int = 0
    kv_fetches: int = 0

    @property
    def torch_device(self) -> torch.device:
        """Where hidden states live."""
        return self.device.torch_device

    @cached_property
    def last_expert_task(self) -> dict[Place, int]:
        """Index of the last task on a layer's experts on the GPU, by layer and micro-batch."""
        return {(t.layer, t.micro_batch): i for i, t in enumerate(self.graph.tasks) if t.kind == Kind.EXPERT_FFN}

    @cached_property
    def cpu_expert_places(self) -> frozenset[Place]:
        """Layers and micro-batches of which the CPU computes experts."""
        return frozenset((t.layer, t.micro_batch) for t in self.graph.tasks if t.kind == Kind.CPU_EXPERT_FFN)

    @cached_property
    def storing(self) -> frozenset[int | None]:
        """Micro-batches whose new K, V go to the host's pool."""
        return frozenset(t.micro_batch for t in self.graph.tasks if t.kind == Kind.KV_STORE)

    @cached_property
    def stages_kv(self) -> bool:
        """Whether K, V are copied to page-locked memory before they cross."""
        return any(t.kind == Kind.KV_STAGE for t in self.graph.tasks)

    @cached_property
    def stages_weights(self) -> bool:
        """Whether pages are copied to page-locked memory before they cross."""
        return any(t.kind == Kind.WEIGHT_STAGE for t in self.graph.tasks)

    @property
    def on_demand(self) -> bool:
        """Whether pages hold one expert per slab, and only touched ones are copied."""
        return len(self.memory.experts.layout.streamed) > 1 and self.memory.experts.layout.streamed[0].experts == 1

    def uses_cpu_experts(self, layer: int, micro_batch: int) -> bool:
        """Whether a micro-batch's hidden states of a layer go to experts on the CPU."""
        return not self.cpu_expert_places.isdisjoint({(layer, micro_batch), (layer, None)})

    def members(self, micro_batch: int | None) -> list[int]:
        """The micro-batches that a task serves."""
        return list(range(len(self.batch.rows))) if micro_batch is None else [micro_batch]

    def hand_over(self, tensor: Tensor, resource: Resource) -> Tensor:
        """Tells the allocator that another lane uses the tensor too."""
        if isinstance(self.device, CudaDevice):
            tensor.record_stream(self.device.stream(resource))
        return tensor

    def complete_hidden(self, micro_batch: int) -> Tensor:
        """A micro-batch's hidden states after a layer, with what the CPU's experts added."""
        added = self.from_cpu.pop(micro_batch, None)
        if added is not None:
            self.hidden[micro_batch] = self.hidden[micro_batch] + added
        return self.hidden[micro_batch]
