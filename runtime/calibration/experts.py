"""The routed experts of a layer by rows per expert, as the runtime runs them: sorted, multiplied, weighted and summed.

T tokens, k top_k, E experts, H hidden_size, I intermediate_size.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from runtime.calibration.matmul import affordable
from runtime.calibration.plan import Plan
from runtime.calibration.results import Timing
from runtime.calibration.timing import random_tensor, time_calls
from runtime.kernels.expert_ffn import add_slabs, combine, goes_grouped, sort_tokens
from runtime.memory.expert_layout import Slab
from runtime.memory.slab_tensors import SlabTensors

GROUPED, PER_EXPERT = "grouped matrix products", "one expert after the other"


def expert_method(dtype: torch.dtype, device: torch.device) -> str:
    """Which way experts run for this device and dtype: GROUPED on a GPU but in fp32, else PER_EXPERT."""
    return GROUPED if goes_grouped(device, dtype) else PER_EXPERT


def measure_experts(plan: Plan, dtype: torch.dtype, device: torch.device, rows: Iterable[int]) -> tuple[Timing, ...]:
    """A layer, or as many of its experts as fit, on tokens that give each expert the same number of rows."""
    budget = plan.gpu_weight_bytes if device.type == "cuda" else plan.weight_bytes
    weights = _weights(plan, dtype, device, budget)
    experts, hidden, width = weights.slab.experts, plan.shapes.hidden_size, plan.shapes.intermediate_size
    row_elements = experts * (2 * hidden + 3 * width)  # moved by one row of each expert, as expert_operator counts
    timings: list[Timing] = []
    for size in affordable(rows, timings):
        if timings and size * row_elements * dtype.itemsize > budget:
            break
        call = _layer(weights, size, min(plan.shapes.top_k, experts), hidden, dtype, device)
        moved = (experts * plan.shapes.expert_elements + size * row_elements) * dtype.itemsize
        flops = 2.0 * experts * size * plan.shapes.expert_elements
        with torch.inference_mode():
            timings.append(time_calls(call, device, plan.effort, size, moved, flops))
    return tuple(timings)


def _weights(plan: Plan, dtype: torch.dtype, device: torch.device, budget: int) -> SlabTensors:
    hidden, width = plan.shapes.hidden_size, plan.shapes.intermediate_size
    fitting = budget // (plan.shapes.expert_elements * dtype.itemsize)
    experts = max(1, min(plan.shapes.num_experts, fitting))
    gate_up = random_tensor((experts, 2 * width, hidden), dtype, device, hidden**-0.5)
    down = random_tensor((experts, hidden, width), dtype, device, width**-0.5)
    return SlabTensors(Slab(0, experts, 0, width), gate_up, down)


def _layer(
    weights: SlabTensors, rows: int, top_k: int, hidden: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], Tensor]:
    """A call of the layer's experts on T tokens; E * rows is T * k, or a little more where k does not divide it."""
    experts = weights.slab.experts
    tokens = -(-rows * experts // top_k)
    x = random_tensor((tokens, hidden), dtype, device)
    first = torch.arange(tokens, device=device)[:, None] * top_k
    chosen = (first + torch.arange(top_k, device=device)) % experts  # [T, k]
    gates = torch.full((tokens, top_k), 1.0 / top_k, device=device)

    def call() -> Tensor:
        order = sort_tokens(x, chosen, gates, experts)
        total = add_slabs(None, order, [weights])
        assert total is not None
        return combine(total, order)

    return call
