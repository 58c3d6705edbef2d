"""The routed experts of a layer by rows per expert, as the runtime runs them: sorted, multiplied, weighted and summed.

On the CPU a sixteenth of every expert's rows: policies leave it a small part of them, and sorting and summing weigh
more beside that than beside whole experts. As many layers as the plan has memory for take turns, so that no cache holds
one until its next turn.

T tokens, k top_k, E experts, H hidden_size, I intermediate_size.
"""

from collections.abc import Callable, Iterable
from itertools import cycle

import torch
from torch import Tensor

from runtime.calibration.matmul import affordable
from runtime.calibration.plan import Plan
from runtime.calibration.results import Timing
from runtime.calibration.timing import random_tensor, time_calls
from runtime.kernels.cpu_layer import cpu_layer
from runtime.kernels.expert_ffn import add_slabs, combine, goes_grouped, sort_tokens
from runtime.memory.expert_layout import Slab
from runtime.memory.scratch import Scratch
from runtime.memory.slab_tensors import SlabTensors

CPU_SHARE, LEAST_ROWS = 16, 256  # of an expert's rows one in so many is measured on the CPU, and no fewer than those

_CPU = torch.device("cpu")
LayerCall = Callable[[list[SlabTensors], Tensor, Tensor, Tensor], Callable[[], object]]

GROUPED, PER_EXPERT = "grouped matrix products", "one expert after the other"


def expert_method(dtype: torch.dtype, device: torch.device) -> str:
    """Which way experts run for this device and dtype: GROUPED on a GPU but in fp32, else PER_EXPERT."""
    return GROUPED if goes_grouped(device, dtype) else PER_EXPERT


def measure_cpu_experts(plan: Plan, dtype: torch.dtype, rows: Iterable[int]) -> tuple[Timing, ...]:
    """A part of a layer's experts where they lie in CPU memory, on tokens that give each the same number of rows."""
    width = plan.shapes.intermediate_size
    measured = max(width // CPU_SHARE, min(width, LEAST_ROWS))
    first = _weights(plan, dtype, _CPU, plan.weight_bytes, measured)
    layers = plan.weight_bytes // (3 * first.down.nbytes)
    others = [_weights(plan, dtype, _CPU, plan.weight_bytes, measured) for _ in range(layers - 1)]
    return _measure(plan, [first, *others], _on_cpu, rows, plan.weight_bytes)


def measure_gpu_experts(
    plan: Plan, dtype: torch.dtype, device: torch.device, rows: Iterable[int]
) -> tuple[Timing, ...]:
    """A layer, or as many of its experts as fit; `device` is the CPU where it plays the GPU."""
    budget = plan.gpu_weight_bytes if device.type == "cuda" else plan.weight_bytes
    weights = _weights(plan, dtype, device, budget, plan.shapes.intermediate_size)
    return _measure(plan, [weights], _on_gpu, rows, budget)


def _measure(
    plan: Plan, layers: list[SlabTensors], layer: LayerCall, rows: Iterable[int], budget: int
) -> tuple[Timing, ...]:
    weights = layers[0]
    experts, hidden, width = weights.slab.experts, plan.shapes.hidden_size, weights.slab.rows
    dtype, device = weights.down.dtype, weights.down.device
    row_elements = experts * (2 * hidden + 3 * width)  # moved by one row of each expert, as expert_operator counts
    timings: list[Timing] = []
    for size in affordable(rows, timings):
        if timings and size * row_elements * dtype.itemsize > budget:
            break
        call = layer(layers, *_tokens(weights, size, min(plan.shapes.top_k, experts)))
        moved = (3 * experts * hidden * width + size * row_elements) * dtype.itemsize
        flops = 6.0 * experts * size * hidden * width
        with torch.inference_mode():
            timings.append(time_calls(call, device, plan.effort, size, moved, flops))
    return tuple(timings)


def _weights(plan: Plan, dtype: torch.dtype, device: torch.device, budget: int, width: int) -> SlabTensors:
    hidden = plan.shapes.hidden_size
    fitting = budget // (3 * hidden * width * dtype.itemsize)
    experts = max(1, min(plan.shapes.num_experts, fitting))
    gate_up = random_tensor((experts, 2 * width, hidden), dtype, device, hidden**-0.5)
    down = random_tensor((experts, hidden, width), dtype, device, width**-0.5)
    return SlabTensors(Slab(0, experts, 0, width), gate_up, down)


def _tokens(weights: SlabTensors, rows: int, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [T, H], chosen experts [T, k], gates [T, k]; T k is E * rows, or a little more where k does not divide it."""
    experts, device = weights.slab.experts, weights.down.device
    tokens = -(-rows * experts // top_k)
    x = random_tensor((tokens, weights.down.shape[1]), weights.down.dtype, device)
    first = torch.arange(tokens, device=device)[:, None] * top_k
    chosen = (first + torch.arange(top_k, device=device)) % experts
    return x, chosen, torch.full((tokens, top_k), 1.0 / top_k, device=device)


def _on_gpu(layers: list[SlabTensors], x: Tensor, chosen: Tensor, gates: Tensor) -> Callable[[], object]:
    def call() -> Tensor:
        order = sort_tokens(x, chosen, gates, layers[0].slab.experts)
        total = add_slabs(None, order, layers[:1])
        assert total is not None
        return combine(total, order)

    return call


def _on_cpu(layers: list[SlabTensors], x: Tensor, chosen: Tensor, gates: Tensor) -> Callable[[], object]:
    out, scratch, turns = torch.empty_like(x), Scratch(), cycle(layers)
    return lambda: cpu_layer(x, chosen, gates, layers[0].slab.experts, [next(turns)], out, scratch)
