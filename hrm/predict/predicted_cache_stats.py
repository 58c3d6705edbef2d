"""Cache statistics of predicted experts, and of missed experts on the CPU, replayed from a routing trace."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.predict.decode_passes import DecodePasses, decode_passes
from hrm.predict.expert_cache import CacheCounts, CachePolicy, ExpertCache
from hrm.predict.path_predictions import UNKNOWN, PathPredictions
from hrm.predict.routing_trace import RoutingTrace
from hrm.schedule.build import CacheStats
from hrm.spec.model import ModelSpec


def predicted_cache_stats(
    trace: RoutingTrace,
    model: ModelSpec,
    batch_size: int,
    num_slots: int,
    predictions: PathPredictions,
    room: int | None = None,
    copied: float = 1.0,
) -> CacheStats:
    """Replays decode passes, batched as in `trace_cache_stats`, through a predictive cache of `num_slots` in all.

    The first pass fills the cache and is not counted. room: experts copied ahead per layer at most, as the runtime does
    (`lookahead`); how long the pass waits for them is the simulator's to say. copied: share of the missed experts that
    is copied after the first pass, the rest is left to the CPU.

    Raises:
        WorkloadError: as `decode_passes`. PolicyError: slots for fewer experts than a token chooses.
    """
    layers, top_k = trace.experts.shape[1:]
    cache = ExpertCache(layers, trace.num_experts, num_slots, "predictive", top_k)
    return _replayed(cache, trace, decode_passes(trace, batch_size), model, copied, predictions, room)


def shared_cache_stats(
    trace: RoutingTrace, model: ModelSpec, batch_size: int, num_slots: int, policy: CachePolicy, copied: float
) -> CacheStats:
    """As `trace_cache_stats` with lru, lfu or static, where only a share of the missed experts is copied.

    What the CPU computes does not enter the cache, so hit rates are not those of `trace_cache_stats`. The first pass
    copies all that it misses, as prompts do. num_slots: in all, of which a token's experts are shared by all layers.

    Raises:
        WorkloadError: as `decode_passes`. PolicyError: as `ExpertCache`; a share outside [0, 1].
    """
    layers, top_k = trace.experts.shape[1:]
    passes = decode_passes(trace, batch_size)
    counts = passes.touched(trace)[1:].sum(axis=0) if policy == "static" else None
    cache = ExpertCache(layers, trace.num_experts, num_slots, policy, top_k, counts=counts)
    cache.preload()
    return _replayed(cache, trace, passes, model, copied)


def _replayed(
    cache: ExpertCache,
    trace: RoutingTrace,
    passes: DecodePasses,
    model: ModelSpec,
    copied: float,
    predictions: PathPredictions | None = None,
    room: int | None = None,
) -> CacheStats:
    filled = cache.stats
    for number, rows in enumerate(passes.batches()):
        cache.begin_pass(*(UNKNOWN if predictions is None else predictions.of_pass(rows)))
        _run_pass(cache, trace.experts[rows], room, copied if number else 1.0)
        filled = cache.stats if number == 0 else filled
    return stats_of_counts(cache.stats.since(filled), passes.num_passes - 1, trace.num_experts, model)


def _run_pass(cache: ExpertCache, experts: NDArray[np.integer[Any]], room: int | None, copied: float) -> None:
    """One pass; experts [T, L, k]."""
    for layer in range(experts.shape[1]):
        cache.prefetch(layer, room=room)
        touched, tokens = np.unique(experts[:, layer], return_counts=True)
        cache.gate(layer, touched.tolist(), tokens.tolist(), copied)
        cache.complete(layer)


def stats_of_counts(counts: CacheCounts, passes: int, num_experts: int, model: ModelSpec) -> CacheStats:
    """Ratios of the totals of so many passes; layers without routed experts count 0.

    A prefetched expert that is not used by the end counts as wasted, so that every copy is counted once.
    """
    used = np.minimum(counts.prefetched - counts.wasted, counts.hits)
    parts = (
        counts.demanded / (passes * num_experts),
        (counts.hits - used) / counts.demanded,
        used / counts.demanded,
        (counts.prefetched - used) / (passes * num_experts),
        counts.on_cpu / counts.demanded,
    )
    touched, hit_rate, prefetched, wasted, on_cpu = (_by_layer(values.tolist(), model) for values in parts)
    return CacheStats(touched, hit_rate, prefetched, wasted, on_cpu)


def _by_layer(values: list[float], model: ModelSpec) -> tuple[float, ...]:
    found = iter(values)
    return tuple(next(found) if layer.ffn.is_moe else 0.0 for layer in model.layers)
