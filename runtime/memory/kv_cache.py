"""The KV cache in blocks of BLOCK tokens: one pool in CPU memory, one on the GPU, the same numbers in every layer.

L layers, K key-value heads, D head_dim. A block holds keys, then values: [2, K, BLOCK, D].
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.memory.device_view import device_view
from runtime.memory.host_buffer import HostBuffer, host_tensor
from runtime.models.config import ModelConfig

BLOCK = 16
Blocks = NDArray[np.int32]


def blocks_of(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK)


def new_kv(config: ModelConfig, qkv: Tensor) -> Tensor:
    """K and V of qkv [T, N + 2 K, D], contiguous [T, 2, K, D]; N query heads."""
    new = qkv[:, config.num_attention_heads :]
    return new.reshape(len(new), 2, config.num_key_value_heads, config.head_dim)


class BlockPool:
    """Free blocks of one pool."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free: Blocks = np.arange(num_blocks - 1, -1, -1, dtype=np.int32)
        self._count = num_blocks

    @property
    def used(self) -> int:
        """Blocks in use."""
        return self.num_blocks - self._count

    def allocate(self, count: int) -> Blocks:
        """`count` blocks; the scheduler admits no more sequences than there are blocks for."""
        if count > self._count:
            raise AssertionError(f"KV cache: {count} blocks asked for, {self._count} of {self.num_blocks} free")
        self._count -= count
        return self._free[self._count : self._count + count].copy()

    def release(self, blocks: Blocks) -> None:
        """Gives blocks back."""
        self._free[self._count : self._count + len(blocks)] = blocks
        self._count += len(blocks)


@dataclass(frozen=True)
class KvPlan:
    """Blocks of the two pools, and whether the host pool is read by the GPU."""

    host_blocks: int
    gpu_blocks: int
    lock: bool

    def holds(self, other: "KvPlan") -> bool:
        """Whether pools of this plan do for another: as large, and none where that has none."""
        pairs = ((self.host_blocks, other.host_blocks), (self.gpu_blocks, other.gpu_blocks))
        return all(mine >= need and (need > 0 or mine == 0) for mine, need in pairs)


@dataclass
class KvCache:
    """host, gpu: per layer [blocks, 2, K, BLOCK, D]. host_words: per layer [blocks, words], the same memory as the GPU
    sees it, where it is page-locked.
    """

    plan: KvPlan
    host: list[Tensor]
    gpu: list[Tensor]
    host_words: list[Tensor]
    pools: dict[str, BlockPool]
    _buffers: list[HostBuffer] = field(repr=False, default_factory=list)

    def forget(self) -> None:
        """All blocks are free again."""
        self.pools = {name: BlockPool(pool.num_blocks) for name, pool in self.pools.items()}

    @property
    def host_bytes(self) -> int:
        """CPU memory."""
        return sum(t.numel() * t.element_size() for t in self.host)

    @property
    def gpu_bytes(self) -> int:
        """GPU memory."""
        return sum(t.numel() * t.element_size() for t in self.gpu)


def empty_kv_cache(lock: bool) -> KvCache:
    """Before requests are known, and between two caches of which one has to go before the other comes."""
    return KvCache(KvPlan(0, 0, lock), [], [], [], {})


def block_bytes(config: ModelConfig) -> int:
    """Bytes of one block in one layer."""
    return 2 * config.kv_width * BLOCK * config.dtype.itemsize


def make_kv_cache(config: ModelConfig, plan: KvPlan, device: torch.device, threads: int) -> KvCache:
    """Allocates both pools; the host's is touched by many threads at once.

    Raises:
        HrmError: memory that cannot be had or page-locked.
    """
    shape = (2, config.num_key_value_heads, BLOCK, config.head_dim)
    host, words, buffers = [], [], []
    for _ in range(config.num_layers):
        tensor, buffer = host_tensor((plan.host_blocks, *shape), config.dtype, lock=False)
        buffer.touch(threads)
        if plan.lock and plan.host_blocks:
            buffer.lock()
            words.append(device_view(tensor, device).view(plan.host_blocks, -1))
        host.append(tensor)
        buffers.append(buffer)
    gpu = [torch.zeros((plan.gpu_blocks, *shape), dtype=config.dtype, device=device) for _ in range(config.num_layers)]
    pools = {"host": BlockPool(plan.host_blocks), "gpu": BlockPool(plan.gpu_blocks)}
    return KvCache(plan, host, gpu, words, pools, buffers)
