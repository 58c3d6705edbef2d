"""Everything a model occupies under one policy: experts, page pool, other weights, embedding, KV cache."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hrm.schedule.steps import KV_BUFFERS
from runtime.experts.cache import ExpertSlots
from runtime.memory.dense_weights import DenseWeights
from runtime.memory.host_weights import ExpertStore
from runtime.memory.kv_cache import KvCache
from runtime.memory.paging import PlacedSlab
from runtime.memory.scratch import Scratch
from runtime.memory.slab_tensors import SlabTensors, view_slab
from runtime.memory.staging import Staging
from runtime.models.config import ModelConfig
from runtime.models.family import Family


@dataclass
class ModelMemory:
    """Weights and caches of a model. embedding [V, H] on the CPU, final_norm [H] on the device, pool: uint8 on it."""

    config: ModelConfig
    family: Family
    device: torch.device
    experts: ExpertStore
    dense: DenseWeights
    embedding: Tensor
    final_norm: Tensor
    pool: Tensor
    kv: KvCache
    cpu_threads: int
    slots: ExpertSlots | None = None  # of an expert cache
    kv_buffers: list[Tensor] = field(default_factory=list)  # each [blocks, 2, K, block, D]
    scratch: Scratch = field(default_factory=Scratch)  # of the CPU's experts
    _stagings: dict[tuple[str, int], Staging] = field(default_factory=dict)

    def staging(self, name: str, micro_batch: int | None) -> Staging:
        """The page-locked buffer of one purpose and micro-batch (None: all of them)."""
        key = (name, -1 if micro_batch is None else micro_batch)
        if key not in self._stagings:
            self._stagings[key] = Staging(self.device)
        return self._stagings[key]

    def moe_place(self, layer: int) -> int:
        """A layer's number among those that have experts."""
        return sum(self.config.moe_layers[:layer])

    @property
    def staging_bytes(self) -> int:
        """CPU memory of the small buffers between CPU and GPU, and of what the CPU's experts keep between products."""
        return sum(staging.nbytes for staging in self._stagings.values()) + self.scratch.nbytes

    def reserve_kv_buffers(self, blocks: int) -> None:
        """Makes the device's buffers for cached K, V on their way as large as a pass needs; none may be in use."""
        if blocks and (not self.kv_buffers or len(self.kv_buffers[0]) < blocks):
            self.kv_buffers.clear()
            shape = (blocks, *self.kv.host[0].shape[1:])
            self.kv_buffers += [
                torch.empty(shape, dtype=self.config.dtype, device=self.device) for _ in range(KV_BUFFERS)
            ]

    def view(self, placed: PlacedSlab) -> SlabTensors:
        """A streamed slab where it lies in the pool."""
        return view_slab(placed.slab, self.pool[placed.pool_start :], self.config.dtype, self.config.hidden_size)

    @property
    def gpu_parts(self) -> dict[str, int]:
        """Bytes on the GPU by part, activations apart."""
        resident = sum(s.gate_up.numel() + s.down.numel() for s in self.experts.resident.values())
        return {
            "expert_weights": resident * self.config.dtype.itemsize + (0 if self.slots is None else self.slots.nbytes),
            "dense_weights": self.dense.gpu_bytes,
            "page_pool": len(self.pool),
            "kv_cache": self.kv.gpu_bytes,
            "kv_staging": sum(t.numel() * t.element_size() for t in self.kv_buffers),
        }

    @property
    def cpu_parts(self) -> dict[str, int]:
        """Bytes in CPU memory by part, small buffers apart."""
        return {
            "expert_weights": sum(b.nbytes for b in self.experts.host.values()),
            "dense_weights": self.dense.streamed_bytes,
            "embedding": self.embedding.numel() * self.embedding.element_size(),
            "kv_cache": self.kv.host_bytes,
        }
