"""Replays a routing trace's decode passes through an expert cache: hit rates and copies, under a limited link."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.errors import PolicyError
from hrm.predict.decode_passes import DecodePasses, decode_passes, rows_behind
from hrm.predict.expert_cache import CacheCounts, CachePolicy, ExpertCache
from hrm.predict.path_predictions import UNKNOWN, PathPredictions
from hrm.predict.routing_trace import RoutingTrace


@dataclass(frozen=True)
class CacheReplay:
    """Ratios of totals over the counted passes; experts per pass are means, over all layers unless said otherwise.

    fetched: copied after the gate. prefetched: ahead of it. wasted: prefetched and evicted unused. A pass moves
    fetched + prefetched experts over the link.
    """

    passes: int
    hit_rate: float
    layer_hit_rate: tuple[float, ...]
    layer_distinct: tuple[float, ...]  # experts that a pass's tokens choose, per layer
    fetched: float
    prefetched: float
    wasted: float


def replay(
    trace: RoutingTrace,
    batch_size: int,
    slots_per_layer: int,
    policy: CachePolicy,
    predictions: PathPredictions | None = None,
    fetches_per_layer: float | None = None,
) -> CacheReplay:
    """Replays decode passes, batched as in `trace_cache_stats`; the first pass fills the cache and is not counted.

    lru, lfu, static have the hit rates of `trace_cache_stats`: slots_per_layer each, and top_k more that all layers
    share for experts they do not keep. static is given the counts of the passes that are counted (an oracle).
    predictive has slots_per_layer * layers in all and no more; without predictions it goes by frequency.

    predictions: row by row of the trace's tokens.
    fetches_per_layer: experts that the link copies from one gate to the next while the pass does not wait for it. A
    prefetch is issued only if it is complete by the next gate; time that no prefetch wants is lost, and corrections
    take none of it, since the pass waits for them. None: no limit.

    Raises:
        WorkloadError: as `decode_passes`, or predictions of another shape.
        PolicyError: as `ExpertCache`; slots outside 0 .. num_experts; a link without speed.
    """
    _check(trace, slots_per_layer, predictions, fetches_per_layer)
    _, layers, top_k = trace.experts.shape
    passes = decode_passes(trace, batch_size)
    slots = slots_per_layer * layers + (0 if policy == "predictive" else top_k)
    counts = _touched_counts(trace, passes) if policy == "static" else None
    cache = ExpertCache(layers, trace.num_experts, slots, policy, top_k, counts=counts)
    cache.preload()
    link, filled = _Link(fetches_per_layer), cache.stats
    for number, rows in enumerate(passes.batches()):
        cache.begin_pass(*(UNKNOWN if predictions is None else predictions.of_pass(rows)))
        _run_pass(cache, trace.experts[rows], link)
        filled = cache.stats if number == 0 else filled
    return _summary(cache.stats.since(filled), passes.num_passes - 1)


def true_predictions(trace: RoutingTrace) -> PathPredictions:
    """An oracle's: 1 for the experts that a token will choose, and for those that the next one of its prompt will."""
    truth = np.zeros((*trace.experts.shape[:2], trace.num_experts), dtype=np.float16)
    np.put_along_axis(truth, trace.experts.astype(np.intp), np.float16(1), axis=-1)
    behind = rows_behind(trace)
    return PathPredictions(truth, np.where((behind >= 0)[:, None, None], truth[behind], np.float16(0)))


class _Link:
    """How many prefetches the link completes by the next gate."""

    def __init__(self, fetches_per_layer: float | None) -> None:
        self._rate, self._time = fetches_per_layer, 0.0

    def limit(self) -> int | None:
        """Another layer's time has passed."""
        if self._rate is None:
            return None
        self._time += self._rate
        return int(self._time)

    def used(self, fetches: int) -> None:
        """Time that no prefetch wanted is lost, that of one under way is kept."""
        self._time = self._time - fetches if fetches == int(self._time) else 0.0


def _run_pass(cache: ExpertCache, experts: NDArray[np.integer[Any]], link: _Link) -> None:
    """One pass; experts [T, L, k]."""
    for layer in range(experts.shape[1]):
        link.used(len(cache.prefetch(layer, link.limit())))
        cache.gate(layer, np.unique(experts[:, layer]).tolist())
        cache.complete(layer)


def _touched_counts(trace: RoutingTrace, passes: DecodePasses) -> NDArray[np.int64]:
    """How many passes, the first left out, touch an expert [L, E]."""
    counts = np.zeros((trace.experts.shape[1], trace.num_experts), dtype=np.int64)
    for rows in _after_first(passes.batches()):
        touched = np.zeros_like(counts, dtype=np.bool_)
        touched[np.arange(len(counts))[:, None], trace.experts[rows].swapaxes(0, 1).reshape(len(counts), -1)] = True
        counts += touched
    return counts


def _after_first(batches: Iterator[NDArray[np.intp]]) -> Iterator[NDArray[np.intp]]:
    next(batches)
    return batches


def _summary(counted: CacheCounts, passes: int) -> CacheReplay:
    return CacheReplay(
        passes=passes,
        hit_rate=float(counted.hits.sum() / counted.demanded.sum()),
        layer_hit_rate=tuple((counted.hits / counted.demanded).tolist()),
        layer_distinct=tuple((counted.demanded / passes).tolist()),
        fetched=float(counted.fetched.sum() / passes),
        prefetched=float(counted.prefetched.sum() / passes),
        wasted=float(counted.wasted.sum() / passes),
    )


def _check(
    trace: RoutingTrace, slots_per_layer: int, predictions: PathPredictions | None, fetches_per_layer: float | None
) -> None:
    if not 0 <= slots_per_layer <= trace.num_experts:
        raise PolicyError(f"expert cache: {slots_per_layer} slots per layer must lie between 0 and {trace.num_experts}")
    if fetches_per_layer is not None and not 0 <= fetches_per_layer < float("inf"):
        raise PolicyError(f"expert cache: {fetches_per_layer:g} fetches per layer; give 0 or more, None: no limit")
    wanted = (*trace.experts.shape[:2], trace.num_experts)
    if predictions is not None:
        predictions.check(wanted, "expert cache")
