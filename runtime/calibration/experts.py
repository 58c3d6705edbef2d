"""Expert FFNs by rows per expert: the matrix products of the runtime's kernel, without the gather and sum around them.

E experts, H hidden_size, I intermediate_size.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.nn.functional import silu

from runtime.calibration.matmul import affordable
from runtime.calibration.plan import Plan
from runtime.calibration.results import Timing
from runtime.calibration.timing import random_tensor, time_calls
from runtime.kernels.expert_ffn import expert_mlp, goes_grouped

GROUPED, PER_EXPERT = "grouped matrix products", "one expert after the other"


@dataclass(frozen=True)
class ExpertWeights:
    """gate_up [E, 2 I, H]: gate rows, then up rows. down [E, H, I]."""

    gate_up: torch.Tensor
    down: torch.Tensor

    @property
    def num_experts(self) -> int:
        """E."""
        return self.down.shape[0]


def expert_method(dtype: torch.dtype, device: torch.device) -> str:
    """Which way experts run for this device and dtype: GROUPED on a GPU but in fp32, else PER_EXPERT."""
    return GROUPED if goes_grouped(device, dtype) else PER_EXPERT


def measure_experts(
    plan: Plan, dtype: torch.dtype, device: torch.device, rows: Iterable[int], method: str
) -> tuple[Timing, ...]:
    """Experts on the same number of rows each; one call runs all of them (GROUPED), or the next one (PER_EXPERT)."""
    budget = plan.gpu_weight_bytes if device.type == "cuda" else plan.weight_bytes
    weights = _weights(plan, dtype, device, budget)
    experts = weights.num_experts if method == GROUPED else 1
    hidden, width = plan.shapes.hidden_size, plan.shapes.intermediate_size
    row_elements = experts * (2 * hidden + 3 * width)  # moved by one row of each expert, as expert_operator counts
    timings: list[Timing] = []
    for size in affordable(rows, timings):
        if timings and size * row_elements * dtype.itemsize > budget:
            break
        x = random_tensor((experts * size, hidden), dtype, device)
        call = _grouped(x, weights) if method == GROUPED else _one_by_one(x, weights)
        moved = (experts * plan.shapes.expert_elements + size * row_elements) * dtype.itemsize
        flops = 2.0 * experts * size * plan.shapes.expert_elements
        timings.append(time_calls(call, device, plan.effort, size, moved, flops))
    return tuple(timings)


def _weights(plan: Plan, dtype: torch.dtype, device: torch.device, budget: int) -> ExpertWeights:
    hidden, width = plan.shapes.hidden_size, plan.shapes.intermediate_size
    fitting = budget // (plan.shapes.expert_elements * dtype.itemsize)
    experts = max(1, min(plan.shapes.num_experts, fitting))
    gate_up = random_tensor((experts, 2 * width, hidden), dtype, device, hidden**-0.5)
    down = random_tensor((experts, hidden, width), dtype, device, width**-0.5)
    return ExpertWeights(gate_up, down)


def _grouped(x: torch.Tensor, weights: ExpertWeights) -> Callable[[], torch.Tensor]:
    """All experts at once on x [E * rows, H]."""
    experts, width = weights.num_experts, weights.down.shape[2]
    ends = torch.arange(1, experts + 1, dtype=torch.int32, device=x.device) * (x.shape[0] // experts)
    gate_up, down = weights.gate_up.transpose(1, 2), weights.down.transpose(1, 2)

    def call() -> torch.Tensor:
        both = torch._grouped_mm(x, gate_up, offs=ends)  # [E * rows, 2 I]
        y: torch.Tensor = torch._grouped_mm(silu(both[:, :width]).mul_(both[:, width:]), down, offs=ends)
        return y

    return call


def _one_by_one(x: torch.Tensor, weights: ExpertWeights) -> Callable[[], torch.Tensor]:
    """The next expert in turn on x [rows, H]."""
    turns = itertools.cycle(zip(weights.gate_up, weights.down, strict=True))
    return lambda: expert_mlp(x, *next(turns))
