"""Cache statistics of demand-fetched experts, replayed from a routing trace."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hrm.errors import WorkloadError
from hrm.predict.decode_passes import decode_passes
from hrm.predict.routing_checks import check_trace
from hrm.predict.routing_trace import RoutingTrace
from hrm.schedule.build import CacheStats
from hrm.spec.model import ModelSpec

Replacement = Literal["lru", "lfu", "static", "belady"]

_Mask = NDArray[np.bool_]
_Keys = NDArray[np.signedinteger[Any]]


def trace_cache_stats(
    trace: RoutingTrace, model: ModelSpec, batch_size: int, slots_per_layer: int, policy: Replacement
) -> CacheStats:
    """Replays a trace's decode steps in batches of `batch_size` prompts through a cache of `slots_per_layer` experts.

    Prompts are taken in the order of their numbers; a last, incomplete batch is left out, and a prompt that ends early
    leaves its batch. Every pass computes its hits first, then fetches what it misses. The cache outlives batches. The
    first pass fills it and is not counted, so at least two passes are needed. Both statistics are ratios of totals:
    touched (1 - hit_rate) is the mean share that a pass fetches. Ties: the lower expert number stays.

    lru: least recently used pass goes. lfu: fewest passes so far, evicted experts included. static: the experts that
    most of the counted passes demand, never replaced (an oracle: it has seen the trace). belady: the one needed
    latest goes, and the best experts are in place at first (an oracle too): no cache has a higher hit rate.

    Raises:
        WorkloadError: as `check_trace`; an unknown policy; slots outside 0 .. num_experts; a batch that is empty or
            larger than the trace; fewer than two passes.
    """
    check_trace(trace, model)
    if policy not in get_args(Replacement):
        raise WorkloadError(f"routing: unknown cache policy {policy!r}; known: {', '.join(get_args(Replacement))}")
    if not 0 <= slots_per_layer <= trace.num_experts:
        raise WorkloadError(f"routing: {slots_per_layer} slots per layer must lie between 0 and {trace.num_experts}")
    demand = decode_passes(trace, batch_size).touched(trace)
    hits = belady_hits(demand, slots_per_layer) if policy == "belady" else ranked_hits(demand, slots_per_layer, policy)
    demanded = demand[1:].sum(axis=(0, 2))
    touched = iter((demanded / (len(demand) - 1) / trace.num_experts).tolist())
    hit_rate = iter((hits / demanded).tolist())
    routed = [layer.ffn.is_moe for layer in model.layers]
    return CacheStats(
        tuple(next(touched) if has else 0.0 for has in routed), tuple(next(hit_rate) if has else 0.0 for has in routed)
    )


def ranked_hits(demand: _Mask, slots: int, policy: Replacement) -> NDArray[np.int64]:
    """Hits per layer where a cache always holds the experts with the largest keys.

    It does: keys grow only when an expert is demanded, so one that has been outranked cannot come back unfetched.
    """
    key_of = _KEYS[policy]
    return np.array([(_largest(key_of(layer), slots) & layer[1:]).sum() for layer in demand.swapaxes(0, 1)])


def _recency(demand: _Mask) -> _Keys:
    passes, experts = demand.shape
    used = np.arange(1, passes + 1)[:, None] * experts - np.arange(experts)
    latest: _Keys = np.maximum.accumulate(np.where(demand, used, 0))[:-1]
    return latest


def _frequency(demand: _Mask) -> _Keys:
    experts = demand.shape[1]
    count = np.cumsum(demand, axis=0)[:-1]
    return np.where(count > 0, count * experts - np.arange(experts), 0)


def _overall_frequency(demand: _Mask) -> _Keys:
    experts = demand.shape[1]
    count = demand[1:].sum(axis=0, keepdims=True)
    key: _Keys = (count + 1) * experts - np.arange(experts)
    return key


_KEYS: dict[Replacement, Callable[[_Mask], _Keys]] = {
    "lru": _recency,
    "lfu": _frequency,
    "static": _overall_frequency,
}


def _largest(key: _Keys, slots: int) -> _Mask:
    """Which of each row's distinct keys are its `slots` largest; 0 stands for never seen."""
    if slots == 0:
        return np.zeros(key.shape, dtype=np.bool_)
    border = key.shape[1] - slots
    smallest_kept = np.partition(key, border, axis=1)[:, border, None]
    kept: _Mask = (key >= smallest_kept) & (key > 0)
    return kept


def belady_hits(demand: _Mask, slots: int) -> NDArray[np.int64]:
    """Hits per layer with the experts kept that are needed soonest (of those held or just fetched)."""
    held = np.zeros_like(demand)
    if slots:
        needed = _next_use(demand)
        never = needed.dtype.type(demand.shape[0] * demand.shape[2])
        held[1] = _soonest(needed[1], slots, never)
        for now in range(2, len(demand)):
            available = held[now - 1] | demand[now - 1]
            held[now] = _soonest(np.where(available, needed[now], never), slots, never)
    hits: NDArray[np.int64] = (held & demand).sum(axis=(0, 2))
    return hits


def _next_use(demand: _Mask) -> _Keys:
    """Key of the first pass, this one or later, that demands an expert; passes * experts where none does."""
    passes, _, experts = demand.shape
    small = np.min_scalar_type(-passes * experts - 1)  # the largest array of a replay
    used = np.arange(passes, dtype=small)[:, None, None] * small.type(experts) + np.arange(experts, dtype=small)
    used = np.where(demand, used, small.type(passes * experts))
    needed: _Keys = np.minimum.accumulate(used[::-1])[::-1]
    return needed


def _soonest(key: _Keys, slots: int, never: np.signedinteger[Any]) -> _Mask:
    """Which of each row's distinct keys are its `slots` smallest."""
    largest_kept = np.partition(key, slots - 1, axis=1)[:, slots - 1 : slots]
    kept: _Mask = (key <= largest_kept) & (key < never)
    return kept
