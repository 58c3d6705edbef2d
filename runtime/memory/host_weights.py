"""Routed experts in CPU memory, packed in the order in which the copy engine takes them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.memory.expert_layout import ExpertLayout
from runtime.memory.host_buffer import HostBuffer
from runtime.memory.paging import Region, lay_region
from runtime.memory.slab_tensors import SlabTensors, pack_expert, view_slab
from runtime.models.config import ModelConfig

ExpertReader = Callable[[int, int], tuple[Tensor, Tensor, Tensor]]
"""(layer, expert) -> gate [I, H], up [I, H], down [H, I], on the CPU."""


@dataclass(frozen=True)
class ExpertStore:
    """Experts of all MoE layers: host memory by layer, uint8 [region bytes], and resident slabs on the GPU by layer."""

    layout: ExpertLayout
    region: Region
    dtype: torch.dtype
    hidden_size: int
    host: dict[int, HostBuffer]
    resident: dict[int, SlabTensors]

    def host_bytes(self, layer: int) -> Tensor:
        """A layer's region, uint8."""
        return self.host[layer].bytes

    def expert_addresses(self, layer: int) -> NDArray[np.int64]:
        """[experts, 2], where gate_up and down of a layer's streamed slabs of one expert each lie in CPU memory."""
        first, memory = self.layout.streamed[0], self.host_bytes(layer)
        view = view_slab(first, memory, self.dtype, self.hidden_size)
        begin = np.array(self.region.starts[: len(self.layout.streamed)], np.int64)
        return np.stack([begin + matrices.data_ptr() for matrices in (view.gate_up, view.down)], axis=1)

    def cpu_slabs(self, layer: int) -> tuple[SlabTensors, ...]:
        """Slabs that the CPU computes, as matrices."""
        first = len(self.layout.streamed)
        starts, memory = self.region.starts, self.host_bytes(layer)
        return tuple(
            view_slab(slab, memory[starts[first + i] :], self.dtype, self.hidden_size)
            for i, slab in enumerate(self.layout.on_cpu)
            if slab.rows
        )


def load_experts(
    config: ModelConfig,
    layout: ExpertLayout,
    read: ExpertReader,
    device: torch.device,
    lock: bool,
    threads: int,
    progress: Callable[[int, int], None] | None = None,
) -> ExpertStore:
    """Reads all experts and packs them, layer by layer; memory is page-locked behind the packing.

    Raises:
        HrmError: CPU memory that cannot be had or page-locked; whatever `read` raises.
    """
    region = lay_region(layout.host, config.hidden_size, config.dtype.itemsize)
    store = ExpertStore(layout, region, config.dtype, config.hidden_size, {}, {})
    layers = [layer for layer, moe in enumerate(config.moe_layers) if moe]
    with ThreadPoolExecutor(threads) as packers, ThreadPoolExecutor(1) as locker:
        locking = []
        for count, layer in enumerate(layers):
            _load_layer(store, layer, config, read, device, packers)
            if lock:
                locking.append(locker.submit(store.host[layer].lock))
            if progress is not None:
                progress(count + 1, len(layers))
        for each in locking:
            each.result()
    return store


def _load_layer(
    store: ExpertStore,
    layer: int,
    config: ModelConfig,
    read: ExpertReader,
    device: torch.device,
    packers: ThreadPoolExecutor,
) -> None:
    store.host[layer] = HostBuffer(store.region.nbytes)
    kept = store.layout.resident
    packed = torch.empty(kept.elements(config.hidden_size), dtype=config.dtype).view(torch.uint8)
    resident = view_slab(kept, packed, config.dtype, config.hidden_size)
    targets = [resident, *_host_slabs(store, layer)]

    def pack(expert: int) -> None:
        gate, up, down = read(layer, expert)
        for target in targets:
            pack_expert(target, expert, gate, up, down)

    list(packers.map(pack, range(config.num_experts)))
    store.resident[layer] = view_slab(kept, packed.to(device), config.dtype, config.hidden_size)


def _host_slabs(store: ExpertStore, layer: int) -> list[SlabTensors]:
    memory = store.host_bytes(layer)
    return [
        view_slab(slab, memory[start:], store.dtype, store.hidden_size)
        for slab, start in zip(store.layout.host, store.region.starts, strict=False)
    ]


def random_experts(
    config: ModelConfig, layout: ExpertLayout, seed: int, device: torch.device, lock: bool, threads: int
) -> ExpertStore:
    """Experts of repeated random numbers, written at the speed of memory: for runs that measure time, not text."""
    region = lay_region(layout.host, config.hidden_size, config.dtype.itemsize)
    store = ExpertStore(layout, region, config.dtype, config.hidden_size, {}, {})
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn((1 << 22) + 17, generator=generator).mul_(config.hidden_size**-0.5)
    source = block.to(config.dtype).view(torch.uint8)
    with ThreadPoolExecutor(threads) as fillers, ThreadPoolExecutor(1) as locker:
        locking = []
        for layer in (layer for layer, moe in enumerate(config.moe_layers) if moe):
            store.host[layer] = buffer = HostBuffer(region.nbytes)
            starts = range(0, buffer.nbytes, len(source))
            list(fillers.map(lambda at, memory=buffer.bytes: _fill(memory[at:], source), starts))
            if lock:
                locking.append(locker.submit(buffer.lock))
            kept = torch.empty(layout.resident.elements(config.hidden_size) * config.dtype.itemsize, dtype=torch.uint8)
            for at in range(0, len(kept), len(source)):
                _fill(kept[at:], source)
            store.resident[layer] = view_slab(layout.resident, kept.to(device), config.dtype, config.hidden_size)
        for each in locking:
            each.result()
    return store


def _fill(memory: Tensor, source: Tensor) -> None:
    """By NumPy, which copies with the calling thread alone: PyTorch would bring a team of threads to each."""
    count = min(len(memory), len(source))
    np.copyto(memory[:count].numpy(), source[:count].numpy())
