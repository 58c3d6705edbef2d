"""Loads a model's weights to where a policy wants them."""

from collections.abc import Callable

import torch
from torch import Tensor

from runtime.checkpoint.source import WeightSource
from runtime.checkpoint.synthetic import SyntheticCheckpoint
from runtime.device import CpuDevice, CudaDevice
from runtime.experts.cache import make_slots
from runtime.kernels.cpu_attention import attention_backend
from runtime.kernels.cpu_experts import experts_backend
from runtime.layouts import PolicyLayout
from runtime.memory.dense_weights import DenseWeights, lay_unit
from runtime.memory.host_weights import ExpertStore, load_experts, random_experts
from runtime.memory.kv_cache import empty_kv_cache
from runtime.model_memory import ModelMemory
from runtime.models.common import global_names
from runtime.models.family import Shapes
from runtime.threads import compute_threads

FAST_RANDOM_BYTES = 4 << 30  # larger synthetic models get repeated random numbers


def load_memory(
    model: WeightSource,
    layout: PolicyLayout,
    device: CpuDevice | CudaDevice,
    gpu_memory: float | None,
    progress: Callable[[int, int], None] | None,
) -> ModelMemory:
    """Everything but the KV cache, which is made when requests are known.

    Raises:
        HrmError: memory that cannot be had; CheckpointError: weights that cannot be read.
    """
    config, torch_device = model.config, device.torch_device
    if gpu_memory is not None and torch_device.type == "cuda":
        total = torch.cuda.get_device_properties(torch_device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gpu_memory / total), torch_device)
    lock = torch_device.type == "cuda" and layout.policy.host_weights == "page_locked"
    names = global_names(config)
    embedding = torch.empty(config.vocab_size, config.hidden_size, dtype=config.dtype)
    model.read_into(names["embedding"], embedding)
    final_norm = torch.empty(config.hidden_size, dtype=config.dtype)
    model.read_into(names["final_norm"], final_norm)
    dense = _load_dense(model, layout.policy.dense_weights_on_gpu, torch_device, lock)
    experts = _load_experts(model, layout, torch_device, lock, progress)
    pool = torch.empty(layout.pool_bytes(), dtype=torch.uint8, device=torch_device)
    kv = empty_kv_cache(lock)
    final = final_norm.to(torch_device)
    threads = compute_threads(beside_gpu=torch_device.type == "cuda")
    attention_backend(), experts_backend()  # compiled now, not in the first pass
    slots = make_slots(experts, config, layout.policy, torch_device)
    return ModelMemory(config, model.family, torch_device, experts, dense, embedding, final, pool, kv, threads, slots)


def _load_dense(model: WeightSource, share: float, device: torch.device, lock: bool) -> DenseWeights:
    config, family = model.config, model.family
    shapes = [family.layer_shapes(config, layer) for layer in range(config.num_layers)]
    head: Shapes = {"lm_head": (config.vocab_size, config.hidden_size)}
    units = [*shapes, head]
    dense = DenseWeights([lay_unit(unit, config.dtype.itemsize) for unit in units], share, config.dtype, device)
    for unit in range(len(units)):
        names = family.layer_names(config, unit) if unit < config.num_layers else global_names(config)

        def read(local: str, shape: tuple[int, ...], names: dict[str, str] = names) -> Tensor:
            return model.tensor(names[local], shape)

        dense.load(unit, read, lock)
    return dense


def _load_experts(
    model: WeightSource,
    layout: PolicyLayout,
    device: torch.device,
    lock: bool,
    progress: Callable[[int, int], None] | None,
) -> ExpertStore:
    config, threads = model.config, compute_threads()
    if isinstance(model, SyntheticCheckpoint) and layout.sizes.expert_bytes > FAST_RANDOM_BYTES:
        return random_experts(config, layout.experts, 0, device, lock, threads)
    rows, hidden = config.moe_intermediate_size, config.hidden_size

    def read(layer: int, expert: int) -> tuple[Tensor, Tensor, Tensor]:
        gate, up, down = model.family.expert_names(layer, expert)
        return (
            model.tensor(gate, (rows, hidden)),
            model.tensor(up, (rows, hidden)),
            model.tensor(down, (hidden, rows)),
        )

    return load_experts(config, layout.experts, read, device, lock, threads, progress)
