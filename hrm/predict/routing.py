"""Cache statistics of demand-fetched experts, expected under a routing distribution."""

import math

import numpy as np
from numpy.typing import NDArray

from hrm.errors import WorkloadError
from hrm.roofline.linear import expected_distinct_experts
from hrm.schedule.build import CacheStats
from hrm.spec.model import ModelSpec

MAX_EXPONENT = 20.0  # a steeper distribution is a typing error: at 20 all tokens choose the same experts


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
