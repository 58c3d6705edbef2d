"""Everything a model occupies under one policy: experts, page pool, other weights, embedding, KV cache."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from runtime.memory.dense_weights import DenseWeights
from runtime.memory.host_weights import ExpertStore
from runtime.memory.kv_cache import KvCache
from runtime.memory.paging import PlacedSlab
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
    _stagings: dict[tuple[str, int], Staging] = field(default_factory=dict)

    def staging(self, name: str, micro_batch: int | None) -> Staging:
        """The page-locked buffer of one purpose and micro-batch (None: all of them)."""
        key = (name, -1 if micro_batch is None else micro_batch)
        if key not in self._stagings:
            self._stagings[key] = Staging(self.device)
        return self._stagings[key]

    def view(self, placed: PlacedSlab) -> SlabTensors:
        """A streamed slab where it lies in the pool."""
        return view_slab(placed.slab, self.pool[placed.pool_start :], self.config.dtype, self.config.hidden_size)

    @property
    def gpu_parts(self) -> dict[str, int]:
        """Bytes on the GPU by part, activations apart."""
        resident = sum(s.gate_up.numel() + s.down.numel() for s in self.experts.resident.values())
        return {
            "expert_weights": resident * self.config.dtype.itemsize,
            "dense_weights": self.dense.gpu_bytes,
            "page_pool": len(self.pool),
            "kv_cache": self.kv.gpu_bytes,
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
