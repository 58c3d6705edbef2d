"""Cache statistics of demand-fetched experts: expected under a routing distribution, or replayed from a trace."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hrm.errors import WorkloadError
from hrm.predict.routing_trace import RoutingTrace, check_trace
from hrm.roofline.linear import expected_distinct_experts
from hrm.schedule.build import CacheStats
from hrm.spec.model import ModelSpec

Replacement = Literal["lru", "lfu", "static", "belady"]
MAX_EXPONENT = 20.0  # a steeper distribution is a typing error: at 20 all tokens choose the same experts

_Mask = NDArray[np.bool_]
_Keys = NDArray[np.signedinteger[Any]]


def uniform_cache_stats(model: ModelSpec, tokens: int, resident_share: float) -> CacheStats:
    """Every expert equally likely, tokens independent: what `build_graph` assumes without statistics.

    Layers without routed experts count 0 (a model without any: its FFNs, as one expert each).

    Raises:
        WorkloadError: no token, or a share outside [0, 1].
    """
    _check_pass(tokens, resident_share)
    kinds = _kinds(model)
    touched = (float(expected_distinct_experts(e, k, float(tokens))) / e if e else 0.0 for e, k in kinds)
    return CacheStats(tuple(touched), tuple(resident_share if e else 0.0 for e, _ in kinds))


def zipf_cache_stats(model: ModelSpec, tokens: int, resident_share: float, exponent: float) -> CacheStats:
    """Popularity of each layer's experts ~ rank^-exponent, tokens independent, the most popular experts resident.

    A fraction of an expert counts as that fraction, as in `weights_on_gpu`. Exponent 0 is uniform routing.

    Raises:
        WorkloadError: no token, a share outside [0, 1], an exponent outside 0 .. MAX_EXPONENT.
    """
    if not 0 <= exponent <= MAX_EXPONENT:
        raise WorkloadError(f"routing: zipf exponent {exponent:g} must lie between 0 and {MAX_EXPONENT:g}")
    if exponent == 0:  # the same rounding as uniform routing, by which build_graph counts pages
        return uniform_cache_stats(model, tokens, resident_share)
    _check_pass(tokens, resident_share)
    kinds = _kinds(model)
    found = {kind: _zipf_layer(*kind, tokens, resident_share, exponent) for kind in set(kinds) if kind[0]}
    layers = [found.get(kind, (0.0, 0.0)) for kind in kinds]
    return CacheStats(tuple(touched for touched, _ in layers), tuple(hit_rate for _, hit_rate in layers))


def _zipf_layer(
    num_experts: int, top_k: int, tokens: int, resident_share: float, exponent: float
) -> tuple[float, float]:
    """Touched share and hit rate of one layer."""
    chosen = inclusion_probabilities(num_experts, top_k, exponent)
    with np.errstate(divide="ignore"):  # an expert that every token chooses
        touched = -np.expm1(tokens * np.log1p(-chosen))
    resident = np.clip(resident_share * num_experts - np.arange(num_experts), 0.0, 1.0)
    return float(touched.mean()), float((resident * touched).sum() / touched.sum())


def inclusion_probabilities(num_experts: int, top_k: int, exponent: float) -> NDArray[np.float64]:
    """Probability of each expert, by rank, to be among the top_k distinct experts of a token; they sum to top_k.

    Experts are drawn one after the other without replacement, by popularity. As a race of exponential clocks, expert i
    is among the first top_k if its clock rings by the time the k-th one does; that time is taken as a constant l:
    1 - exp(-l p_i) (Rosén 1972). Exact for top_k 1, for all experts, and for exponent 0; else within 0.03 up to
    exponent 1.5 and 0.08 up to 3.
    """
    if top_k >= num_experts:
        return np.ones(num_experts)
    log_popularity = -exponent * np.log(np.arange(1, num_experts + 1))
    if top_k == 1:
        chosen: NDArray[np.float64] = np.exp(log_popularity - np.log(np.exp(log_popularity).sum()))
        return chosen
    low, high = math.log(top_k / num_experts), 4.0 - log_popularity[-1]
    for _ in range(80):  # bisects log l down to rounding
        middle = (low + high) / 2
        enough = _rung(middle + log_popularity).sum() >= top_k
        low, high = (low, middle) if enough else (middle, high)
    return _rung(high + log_popularity)


def _rung(log_expected_rings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability that a clock has rung at least once."""
    probability: NDArray[np.float64] = -np.expm1(-np.exp(log_expected_rings))
    return probability


def _kinds(model: ModelSpec) -> list[tuple[int, int]]:
    """(experts, top_k) of every layer; (0, 0) without experts, (1, 1) for the FFNs of a model without any."""
    dense = (0, 0) if model.num_moe_layers else (1, 1)
    return [(ffn.num_experts, ffn.top_k) if ffn.is_moe else dense for ffn in (layer.ffn for layer in model.layers)]


def _check_pass(tokens: int, resident_share: float) -> None:
    if tokens < 1:
        raise WorkloadError(f"routing: {tokens} tokens in a pass; give at least one")
    if not 0 <= resident_share <= 1:
        raise WorkloadError(f"routing: resident share {resident_share:g} must lie between 0 and 1")


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
    demand = _demand(trace, batch_size)
    hits = _belady(demand, slots_per_layer) if policy == "belady" else _ranked(demand, slots_per_layer, policy)
    demanded = demand[1:].sum(axis=(0, 2))
    touched = iter((demanded / (len(demand) - 1) / trace.num_experts).tolist())
    hit_rate = iter((hits / demanded).tolist())
    routed = [layer.ffn.is_moe for layer in model.layers]
    return CacheStats(
        tuple(next(touched) if has else 0.0 for has in routed), tuple(next(hit_rate) if has else 0.0 for has in routed)
    )


def _demand(trace: RoutingTrace, batch_size: int) -> _Mask:
    """Whether a pass's tokens choose an expert: [passes, MoE layers, experts]."""
    prompts, place = np.unique(trace.prompt[trace.step > 0], return_inverse=True)
    if not 1 <= batch_size <= len(prompts):
        raise WorkloadError(
            f"routing: the trace has {len(prompts)} prompts with decode steps, a batch {batch_size}; record at least a "
            "whole batch or choose a smaller one"
        )
    batch = place // batch_size
    whole = batch < len(prompts) // batch_size
    experts, step = trace.experts[trace.step > 0][whole], trace.step[trace.step > 0][whole].astype(np.int64)
    passes, pass_of = np.unique(batch[whole] * (step.max() + 1) + step, return_inverse=True)
    if len(passes) < 2:
        raise WorkloadError("routing: the trace has one decode pass, which only fills the cache; record more steps")
    demand = np.zeros((len(passes), experts.shape[1], trace.num_experts), dtype=np.bool_)
    for layer in range(experts.shape[1]):
        demand[pass_of[:, None], layer, experts[:, layer]] = True
    return demand


def _ranked(demand: _Mask, slots: int, policy: Replacement) -> NDArray[np.int64]:
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


def _belady(demand: _Mask, slots: int) -> NDArray[np.int64]:
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
