"""Everything that `hrm routing` says about a trace."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrm.errors import WorkloadError
from hrm.predict.path_predictions import PathPredictions
from hrm.predict.routing_demand import choice_frequency, pass_demand
from hrm.predict.routing_hit_rates import HitRates, hit_rates
from hrm.predict.routing_reuse import DistinctExperts, ReuseDistance, distinct_experts, reuse_distance
from hrm.predict.routing_skew import LayerSkew, layer_skew
from hrm.predict.routing_trace import RoutingTrace

BATCHES = (1, 4, 16)


@dataclass(frozen=True, eq=False)
class RoutingStats:
    """Of one trace. frequency: share of all tokens, prefill too, that choose an expert, [layers, E]; skew by layer.

    distinct: at batch sizes 1, 2, 4, ... and those asked for; reuse and hits at those asked for. Batches are of decode
    steps alone.
    """

    model: str
    tokens: int
    prompts: int
    num_experts: int
    top_k: int
    frequency: NDArray[np.float64]
    skew: tuple[LayerSkew, ...]
    distinct: tuple[DistinctExperts, ...]
    reuse: tuple[ReuseDistance, ...]
    hits: tuple[HitRates, ...]


def routing_stats(
    trace: RoutingTrace,
    batch_sizes: tuple[int, ...] | None = None,
    predictions: PathPredictions | None = None,
    update: Callable[[int, int], None] = lambda done, total: None,
    fetches_per_layer: float | None = None,
) -> RoutingStats:
    """Statistics at these batch sizes; None: 1, 4 and 16, as far as there are prompts.

    fetches_per_layer: limit of the link for the predictive cache, see `replay`; None: no limit.

    Raises:
        WorkloadError: a batch that is empty or larger than the trace, or fewer than two decode passes.
    """
    decoding = len(np.unique(trace.prompt[trace.step > 0]))
    if not decoding:
        raise WorkloadError("routing: the trace has no decode step; record with --gen-len 2 or more")
    asked = batch_sizes or tuple(b for b in BATCHES if b <= decoding)
    demands = [pass_demand(trace, b) for b in asked]
    frequency, top_k = choice_frequency(trace.experts, trace.num_experts), trace.experts.shape[2]
    return RoutingStats(
        model=trace.model,
        tokens=len(trace.prompt),
        prompts=len(np.unique(trace.prompt)),
        num_experts=trace.num_experts,
        top_k=top_k,
        frequency=frequency,
        skew=tuple(layer_skew(layer) for layer in frequency),
        distinct=_distinct(trace, asked, decoding),
        reuse=tuple(reuse_distance(demand) for demand in demands),
        hits=hit_rates(trace, asked, predictions, update, fetches_per_layer),
    )


def _distinct(trace: RoutingTrace, asked: tuple[int, ...], decoding: int) -> tuple[DistinctExperts, ...]:
    """At the sizes asked for, and at powers of two up to 64 or the largest of them."""
    found, top_k = list[DistinctExperts](), trace.experts.shape[2]
    powers = {2**i for i in range(decoding.bit_length()) if 2**i <= max(64, *asked)}
    for batch_size in sorted({*asked, *powers}):
        with suppress(WorkloadError):  # a power of two that leaves a single pass
            found.append(distinct_experts(pass_demand(trace, batch_size), top_k))
    return tuple(found)
