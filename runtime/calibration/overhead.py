"""Least time of a task however small: launching its kernels on the GPU, waking its threads on the CPU.

T tokens, H hidden_size, N query heads, D head_dim.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from runtime.calibration.attention import BLOCK, cpu_decode, decode_step
from runtime.calibration.plan import Plan
from runtime.calibration.results import OverheadResult, Spread, spread
from runtime.calibration.timing import random_tensor, time_calls
from runtime.memory.dense_weights import lay_unit, view_unit
from runtime.models.common import rotary
from runtime.models.config import ModelConfig
from runtime.models.family import Weights
from runtime.models.mixtral import FAMILY

CHAIN_LAYERS = 50  # per call: a queue of tasks as long as a pass has
_TASKS = 2 * CHAIN_LAYERS
_TINY = {
    "model_type": "mixtral", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 64, "num_local_experts": 8,
    "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 64,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def measure_overhead(plan: Plan, dtype: torch.dtype, device: torch.device) -> OverheadResult:
    """Seconds of a minimal task on `device`, in place of the GPU, and on the CPU's queue."""
    return OverheadResult(measure_gpu_overhead(plan, dtype, device), measure_cpu_overhead(plan, dtype))


def measure_gpu_overhead(plan: Plan, dtype: torch.dtype, device: torch.device) -> Spread:
    """Seconds per task, issued and finished, of a chain of the tasks before and after attention on one token."""
    with torch.inference_mode():
        timing = time_calls(_chain(dtype, device), device, plan.effort, 1)
    return spread(tuple(seconds / _TASKS for seconds in timing.seconds))


def measure_cpu_overhead(plan: Plan, dtype: torch.dtype) -> Spread:
    """Seconds of decode attention over one block of KV, with just the sequences that give every thread a KV head."""
    shapes = plan.shapes
    sequences = ceil(torch.get_num_threads() / shapes.num_key_value_heads)
    block_bytes = 2 * BLOCK * shapes.num_key_value_heads * shapes.head_dim * dtype.itemsize
    step = decode_step(shapes, dtype, BLOCK, sequences * block_bytes)
    return spread(time_calls(cpu_decode(step), torch.device("cpu"), plan.effort, 1).seconds)


@dataclass(frozen=True)
class TinyLayer:
    """A layer and its input: hidden [T, H], rotation cos, sin [T, D], for one token."""

    config: ModelConfig
    weights: Weights
    hidden: Tensor
    rotation: tuple[Tensor, Tensor]


def tiny_layer(dtype: torch.dtype, device: torch.device) -> TinyLayer:
    """So small that its tasks are all launches."""
    config = FAMILY.read_config(_TINY, "calibration")
    shapes = FAMILY.layer_shapes(config, 0)
    layout = lay_unit(shapes, dtype.itemsize)
    weights = view_unit(layout, torch.zeros(layout.nbytes, dtype=torch.uint8, device=device), dtype)  # as in a run
    for name, shape in shapes.items():
        weights[name].copy_(random_tensor(shape, dtype, device, shape[-1] ** -0.5))
    hidden = random_tensor((1, config.hidden_size), dtype, device)
    return TinyLayer(config, weights, hidden, rotary(config, torch.zeros(1), device, dtype))


def _chain(dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    """_TASKS tasks: norm to rotary embedding, then output projection to router, over and over."""
    layer = tiny_layer(dtype, device)
    config, weights, hidden = layer.config, layer.weights, layer.hidden

    def call() -> None:
        for _ in range(CHAIN_LAYERS):
            qkv = FAMILY.pre_attention(config, weights, hidden, *layer.rotation)  # [T, N + 2 K, D]
            attended = qkv[:, : config.num_attention_heads].reshape(1, config.q_width)  # [T, N D]
            FAMILY.post_attention(config, weights, hidden, attended)

    return call
