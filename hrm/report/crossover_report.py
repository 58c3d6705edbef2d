"""Expert caches against streaming, as plain data for JSON and tables, and in words."""

from statistics import fmean
from typing import Any

from hrm.predict.throughput import SimulatedThroughput
from hrm.schedule.build import CacheStats
from hrm.search.cached import CACHE_NAMES
from hrm.search.crossover import Crossover, CrossoverPoint
from hrm.spec.policy import Policy


def crossover_report(result: Crossover) -> dict[str, Any]:
    """Every point, and the batch size from which streaming is faster."""
    return {
        "model": result.rates.model.name,
        "profile": result.rates.machine.profile.name,
        "crossing_batch_size": result.batch_size,
        "predicts_perfectly": result.predicts_perfectly,
        "points": [point_report(point) for point in result.points],
    }


def point_report(point: CrossoverPoint) -> dict[str, Any]:
    """The policies of one limit of batch size, with their simulated throughputs."""
    streaming = point.streaming
    return {
        "batch_limit": point.batch_size,
        "streaming": None if streaming is None else _policy(streaming.policy, streaming.simulated),
        "cached": {
            mode: _policy(entry.policy, entry.simulated) | routed_shares(entry.stats, entry.policy)
            for mode, entry in point.cached.items()
        },
        "winner": None if point.winner is None else winner_name(point),
    }


def winner_name(point: CrossoverPoint) -> str:
    """The winner: a kind of cache, or streaming."""
    return point.winner.expert_cache if point.winner and point.winner is not _streamed(point) else "streaming"


def _streamed(point: CrossoverPoint) -> Policy | None:
    return point.streaming.policy if point.streaming else None


def _policy(policy: Policy, simulated: SimulatedThroughput) -> dict[str, Any]:
    return {"generation_throughput": simulated.generation_throughput, "policy": policy.model_dump()}


def routed_shares(stats: CacheStats, policy: Policy) -> dict[str, float]:
    """Means over the layers with experts: touched share of experts; of those, shares in place, prefetched, missed, and
    of the missed those on the CPU (of rows: the CPU's share of every expert).
    """
    layers = [layer for layer, touched in enumerate(stats.touched) if touched > 0]
    return {
        "touched": fmean(stats.touched[layer] for layer in layers),
        "hit_rate": fmean(stats.hit_rate[layer] for layer in layers),
        "prefetched": fmean(stats.prefetched_in(layer) for layer in layers),
        "missed": fmean(stats.missed_in(layer) for layer in layers),
        "on_cpu": fmean(_on_cpu(stats, policy, layer) for layer in layers),
    }


def _on_cpu(stats: CacheStats, policy: Policy, layer: int) -> float:
    if policy.caches_whole_experts:
        return stats.on_cpu_in(layer, policy.experts_on_gpu)
    return 1.0 - policy.experts_on_gpu


def describe_crossover(result: Crossover) -> str:
    """What wins, in words."""
    last = result.points[-1]
    note = " The predictive cache predicts rightly here; record a trace and predictions for what it is worth."
    said = _described(result, last)
    return said + (note if result.predicts_perfectly and "predictive" in last.cached else "")


def _described(result: Crossover, last: CrossoverPoint) -> str:
    streaming, cached = last.streaming_throughput, last.cached_throughput
    if not streaming or not cached:
        return f"Only {'an expert cache' if cached else 'streaming'} fits."
    if result.batch_size is not None:
        return f"Streaming is faster from a batch of about {result.batch_size:.3g} sequences on."
    name = CACHE_NAMES[last.best_cached.policy.expert_cache] if last.best_cached else ""
    first, second = (name, "streaming") if cached > streaming else ("streaming", f"the best cache ({name})")
    ratio = max(cached, streaming) / min(cached, streaming)
    at = f"at all {len(result.points)} batch sizes" if len(result.points) > 1 and _one_side(result) else "at the last"
    where = at if len(result.points) > 1 else f"up to a batch of {last.batch_size:,}"
    return f"Faster {where}: {first}, {ratio:.2f}x {second}."


def _one_side(result: Crossover) -> bool:
    """Whether the same side wins at all points."""
    return len({point.cached_throughput > point.streaming_throughput for point in result.points}) == 1
