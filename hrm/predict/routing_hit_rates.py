"""Hit rate against cache size of every replacement policy, replayed from a routing trace."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from hrm.predict.cache_replay import replay
from hrm.predict.path_predictions import PathPredictions
from hrm.predict.routing_demand import PassDemand, pass_demand
from hrm.predict.routing_replay import Replacement, belady_hits, ranked_hits
from hrm.predict.routing_trace import RoutingTrace

SIZES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1.0)  # of a layer's experts
PREDICTIVE = "predictive"
NAMES = {
    "lru": "LRU",
    "lfu": "LFU",
    "static": "static-hot*",
    PREDICTIVE: "predictive",
    "belady": "Belady*",
}
Update = Callable[[int, int], None]


@dataclass(frozen=True)
class HitRates:
    """Of one policy: hits over demanded experts, all layers and passes but the first, at `slots` per layer.

    static and belady know the trace (see `trace_cache_stats`); belady is the best of those that copy an expert when it
    is missed. predictive prefetches, into slots that all layers share, so that it can pass belady; without a limit to
    the link (`replay`'s fetches_per_layer) every prefetch is in time: what the predictions allow, not what a link does.
    """

    policy: str
    batch_size: int
    slots: tuple[int, ...]
    hit_rate: tuple[float, ...]


def hit_rates(
    trace: RoutingTrace,
    batch_sizes: tuple[int, ...],
    predictions: PathPredictions | None,
    update: Update,
    fetches_per_layer: float | None = None,
) -> tuple[HitRates, ...]:
    """Every batch size and policy; predictive where there are predictions.

    Raises:
        WorkloadError: as `decode_passes`. PolicyError: as `replay`.
    """
    slots, found = cache_sizes(trace), list[HitRates]()
    policies = [*get_args(Replacement), *([] if predictions is None else [PREDICTIVE])]
    for batch_size in batch_sizes:
        demand = pass_demand(trace, batch_size)
        for policy in policies:
            if policy == PREDICTIVE:
                replays = (replay(trace, batch_size, n, "predictive", predictions, fetches_per_layer) for n in slots)
                rates = [each.hit_rate for each in replays]
            else:
                rates = [hit_rate_of(demand, n, policy) for n in slots]
            found.append(HitRates(policy, batch_size, slots, tuple(rates)))
            update(len(found), len(batch_sizes) * len(policies))
    return tuple(found)


def cache_sizes(trace: RoutingTrace) -> tuple[int, ...]:
    """Slots per layer that are tried."""
    _, layers, top_k = trace.experts.shape
    least = -(-top_k // layers)  # fewer hold no token's experts
    return tuple(sorted({max(least, round(share * trace.num_experts)) for share in SIZES}))


def hit_rate_of(demand: PassDemand, slots: int, policy: Replacement) -> float:
    """Hits over demanded experts of a cache that copies after the gate, the first pass left out."""
    touched = demand.touched
    hits = belady_hits(touched, slots) if policy == "belady" else ranked_hits(touched, slots, policy)
    return float(hits.sum() / touched[1:].sum())
