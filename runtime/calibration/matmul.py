"""Matrix products by number of rows: the weight operators of a layer."""

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch.nn import functional

from runtime.calibration.plan import Plan
from runtime.calibration.results import Timing
from runtime.calibration.timing import random_tensor, time_calls

LONGEST = 0.5  # seconds that one call may take; larger sizes of a series are left out


def measure_linear(plan: Plan, dtype: torch.dtype, device: torch.device, rows: Iterable[int]) -> tuple[Timing, ...]:
    """[rows, H] times [linear_out, H] transposed, over weights that no cache holds; at least the first of `rows`."""
    out_features, hidden = plan.shapes.linear_out, plan.shapes.hidden_size
    budget = plan.gpu_weight_bytes // 3 if device.type == "cuda" else plan.weight_bytes
    count = max(2, budget // (out_features * hidden * dtype.itemsize))
    weights = itertools.cycle(random_tensor((count, out_features, hidden), dtype, device, hidden**-0.5))
    timings: list[Timing] = []
    for size in affordable(rows, timings):
        x = random_tensor((size, hidden), dtype, device)
        moved = (out_features * hidden + size * (hidden + out_features)) * dtype.itemsize
        timings.append(_timing(x, weights, plan, moved, 2.0 * size * hidden * out_features))
    return tuple(timings)


def _timing(x: torch.Tensor, weights: Iterator[torch.Tensor], plan: Plan, moved: int, flops: float) -> Timing:
    def call() -> torch.Tensor:
        return functional.linear(x, next(weights))

    return time_calls(call, x.device, plan.effort, x.shape[0], moved, flops)


def affordable(sizes: Iterable[int], timings: list[Timing]) -> Iterator[int]:
    """`sizes` until one would take longer than LONGEST, going by the last of `timings`, which the caller appends to."""
    for size in sizes:
        if timings and min(timings[-1].seconds) * size / timings[-1].size > LONGEST:
            return
        yield size
