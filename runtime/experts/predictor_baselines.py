"""What a predictor has to beat: frequencies counted on the same training prompts, all as probabilities [T, L, E].

Counts are smoothed towards the next coarser statistic, as if SMOOTHING tokens of that had been seen as well.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.predict.routing_trace import RoutingTrace
from runtime.experts.predictor_settings import token_ids

SMOOTHING = 1.0

Probabilities = NDArray[np.float32]


def layer_frequencies(trace: RoutingTrace) -> Probabilities:
    """Share of the tokens that choose an expert, [L, E]."""
    tokens, layers, _ = trace.experts.shape
    counts = [np.bincount(trace.experts[:, i].ravel(), minlength=trace.num_experts) for i in range(layers)]
    frequencies: Probabilities = (np.array(counts) / tokens).astype(np.float32)
    return frequencies


def layer_frequency(train: RoutingTrace, test: RoutingTrace) -> Probabilities:
    """The same for every token: how often each expert of the layer was chosen."""
    frequency = layer_frequencies(train)
    return np.broadcast_to(frequency, (len(test.experts), *frequency.shape))


def token_lookup(train: RoutingTrace, test: RoutingTrace) -> Probabilities:
    """Frequencies of the experts that the token's id chose; of an id never seen, the layer's.

    Raises:
        WorkloadError: a trace without token ids.
    """
    ids, place = np.unique(token_ids(train), return_inverse=True)
    where = _places(ids, token_ids(test))
    layers = [
        _smoothed(train.experts[:, i], place, len(ids), train.num_experts, prior)[where]
        for i, prior in enumerate(layer_frequencies(train))
    ]
    return np.stack(layers, axis=1)


def previous_layer(train: RoutingTrace, test: RoutingTrace) -> Probabilities:
    """Experts of layer l from those the token really chose at layer l - 1; of the first layer, its frequencies.

    P(e at l | set of experts at l - 1), smoothed towards the mean over the set of P(e at l | expert at l - 1). Systems
    that look ahead in this way learn the real gate of a layer just before the next one; the other predictors here know
    none before the first layer. It is given more, and can prefetch one layer ahead only.
    """
    frequency = layer_frequencies(train)
    out = np.empty((*test.experts.shape[:2], train.num_experts), np.float32)
    out[:, 0] = frequency[0]
    for layer in range(1, out.shape[1]):
        given, asked, chosen = train.experts[:, layer - 1], test.experts[:, layer - 1], train.experts[:, layer]
        top_k, size = given.shape[1], train.num_experts
        repeated = np.repeat(chosen, top_k, axis=0)  # [T k, k]: once for each expert of the layer before
        single = _smoothed(repeated, given.ravel(), size, size, frequency[layer])  # [E, E]
        sets, first, place = np.unique(np.sort(given, axis=1), axis=0, return_index=True, return_inverse=True)
        prior = single[given[first]].mean(axis=1)  # [sets, E]
        table = _smoothed(chosen, place.ravel(), len(sets), size, prior)
        where = _set_places(sets, np.sort(asked, axis=1))
        out[:, layer] = np.where((where < 0)[:, None], single[asked].mean(axis=1), table[where])
    return out


BASELINES: Mapping[str, Callable[[RoutingTrace, RoutingTrace], Probabilities]] = MappingProxyType(
    {"layer frequency": layer_frequency, "token lookup": token_lookup, "previous layer": previous_layer}
)


def _smoothed(
    chosen: NDArray[np.integer[Any]], group: NDArray[np.integer[Any]], groups: int, size: int, prior: Probabilities
) -> Probabilities:
    """chosen [T, k] experts, group [T] -> share of a group's tokens that choose an expert [groups, E].

    prior: [groups, E]; or [E], the same for all, which is then one more row, for tokens of no group.
    """
    rows = groups + (prior.ndim == 1)
    total = np.bincount(group, minlength=rows)[:, None]
    return smoothed_shares(count_experts(chosen, group, rows, size), total, prior)


def count_experts(
    chosen: NDArray[np.integer[Any]], group: NDArray[np.integer[Any]], groups: int, size: int
) -> NDArray[np.int64]:
    """chosen [T, k], group [T] -> how often tokens of each group chose each of `size` experts, [groups, E]."""
    flat = (group[:, None].astype(np.int64) * size + chosen).ravel()
    return np.bincount(flat, minlength=groups * size).reshape(groups, size)


def smoothed_shares(counts: NDArray[Any], total: NDArray[Any], prior: Probabilities) -> Probabilities:
    """counts of `total` tokens, as shares (shapes broadcast)."""
    shares: Probabilities = ((counts + SMOOTHING * prior) / (total + SMOOTHING)).astype(np.float32)
    return shares


def _places(known: NDArray[np.integer[Any]], asked: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Index into the sorted `known`; len(known) for what is not in it."""
    place = np.searchsorted(known, asked)
    found = known[np.minimum(place, len(known) - 1)] == asked
    return np.where(found, place, len(known)).astype(np.int64)


def _set_places(known: NDArray[np.integer[Any]], asked: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Row of `known` [sets, k] that equals each row of `asked` [T, k]; -1 for none."""
    place_of = {row.tobytes(): i for i, row in enumerate(known.astype(np.int64))}
    return np.array([place_of.get(row.tobytes(), -1) for row in asked.astype(np.int64)], dtype=np.int64)
