"""What the passes of a routing trace demand: experts by pass and layer, and how often tokens choose each."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.errors import WorkloadError
from hrm.predict.decode_passes import decode_passes
from hrm.predict.routing_trace import RoutingTrace


@dataclass(frozen=True, eq=False)
class PassDemand:
    """Of batches of `batch_size` prompts. tokens: of each pass [passes]; touched: whether a pass's tokens choose an
    expert, [passes, layers, E]; chosen: share of these tokens that choose it, [layers, E].
    """

    batch_size: int
    tokens: NDArray[np.int64]
    touched: NDArray[np.bool_]
    chosen: NDArray[np.float64]

    def touch_probability(self) -> NDArray[np.float64]:
        """Mean over the passes of 1 - (1 - f)^n, f `chosen`, n tokens, [layers, E]: what independent tokens touch."""
        sizes, counts = np.unique(self.tokens, return_counts=True)
        shares = counts / counts.sum()
        parts = [share * (1 - (1 - self.chosen) ** n) for n, share in zip(sizes.tolist(), shares.tolist(), strict=True)]
        mean: NDArray[np.float64] = np.sum(parts, axis=0)
        return mean


def pass_demand(trace: RoutingTrace, batch_size: int) -> PassDemand:
    """The demand of a trace's decode passes.

    Raises:
        WorkloadError: as `decode_passes`.
    """
    passes = decode_passes(trace, batch_size)
    chosen = choice_frequency(trace.experts[passes.rows], trace.num_experts)
    return PassDemand(batch_size, np.bincount(passes.pass_of), passes.touched(trace), chosen)


def choice_frequency(experts: NDArray[np.integer[Any]], num_experts: int) -> NDArray[np.float64]:
    """Share of tokens that choose an expert: experts [tokens, layers, k] -> [layers, E]; a layer's sum to k."""
    columns = [np.bincount(experts[:, layer].ravel(), minlength=num_experts) for layer in range(experts.shape[1])]
    frequency: NDArray[np.float64] = np.stack(columns) / len(experts)
    return frequency


def first_prompts(trace: RoutingTrace, count: int) -> tuple[RoutingTrace, NDArray[np.bool_]]:
    """The rows of the `count` prompts with the lowest numbers, and which rows of the trace those are.

    Raises:
        WorkloadError: none asked for, or more than there are.
    """
    prompts = np.unique(trace.prompt)
    if not 1 <= count <= len(prompts):
        raise WorkloadError(f"routing: {count} prompts asked for; the trace has {len(prompts)}")
    kept = np.isin(trace.prompt, prompts[:count])
    cut = replace(
        trace,
        experts=trace.experts[kept],
        prompt=trace.prompt[kept],
        step=trace.step[kept],
        gate_weights=None if trace.gate_weights is None else trace.gate_weights[kept],
        tokens=None if trace.tokens is None else trace.tokens[kept],
    )
    return cut, kept
