"""Where an expert cache stops being faster than streaming every expert: both simulated, batch size by batch size."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hrm.errors import InfeasibleError, PolicyError, WorkloadError
from hrm.predict.rates import Rates
from hrm.predict.routing_source import Routing
from hrm.schedule.placement import Placement
from hrm.schedule.registry import AUTO
from hrm.search.cached import CachedPolicy, best_cached
from hrm.search.pool import search_pool
from hrm.search.refine import Refined, best_by_simulation
from hrm.spec.policy import ExpertCacheMode, Policy


@dataclass(frozen=True)
class CrossoverPoint:
    """The best simulated policies of at most `batch_size` sequences; None, or no entry, where nothing fits."""

    batch_size: int
    streaming: Refined | None
    cached: dict[ExpertCacheMode, CachedPolicy]

    @property
    def streaming_throughput(self) -> float:
        """Tokens per second; 0 where nothing fits."""
        return self.streaming.simulated.generation_throughput if self.streaming else 0.0

    @property
    def best_cached(self) -> CachedPolicy | None:
        """The best of all kinds of cache."""
        return max(self.cached.values(), key=lambda entry: entry.generation_throughput, default=None)

    @property
    def cached_throughput(self) -> float:
        """Tokens per second of the best kind of cache; 0 where none fits."""
        return self.best_cached.generation_throughput if self.best_cached else 0.0

    @property
    def winner(self) -> Policy | None:
        """The faster policy of both; None where nothing fits."""
        if self.best_cached and self.cached_throughput > self.streaming_throughput:
            return self.best_cached.policy
        return self.streaming.policy if self.streaming else None


@dataclass(frozen=True)
class Crossover:
    """Points in order of batch size. `predicts_perfectly`: the predictive cache was given the truth."""

    rates: Rates
    points: tuple[CrossoverPoint, ...]
    predicts_perfectly: bool

    @property
    def batch_size(self) -> float | None:
        """From which on streaming is faster, on straight lines in log-log space; None where the lines do not cross.

        The last crossing where there are several.
        """
        found = None
        for former, point in pairwise(self.points):
            before, after = _lead(former), _lead(point)
            if before is not None and after is not None and before < 0 <= after:
                part = -before / (after - before)
                found = former.batch_size * (point.batch_size / former.batch_size) ** part
        return found


def crossover(
    rates: Rates,
    routing: Routing,
    batches: Sequence[int],
    schedule: str = AUTO,
    experts_on_cpu: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Crossover:
    """The best streaming policy of a schedule and the best expert caches, limited to each of the batch sizes.

    A cache's batch is one of `batches`, so that of a larger limit is at least as good as that of a smaller one.
    Streaming takes any batch size up to the limit. `experts_on_cpu`: both sides may leave experts to the CPU.

    Raises:
        WorkloadError: no batch size, or one that the routing trace is too small for.
        InfeasibleError: neither fits at any batch size. UnknownNameError: an unknown schedule.
        PolicyError: a schedule that streams nothing.
    """
    _check(routing, batches)
    pool, points = streaming_pool(rates, schedule, experts_on_cpu), list[CrossoverPoint]()
    for batch_size in sorted(set(batches)):
        former = points[-1] if points else CrossoverPoint(0, None, {})
        streaming = better_streaming(former.streaming, _streaming(rates, schedule, pool, batch_size))
        cached = better_cached(former.cached, rates, routing, batch_size, experts_on_cpu)
        points.append(CrossoverPoint(batch_size, streaming, cached))
        if progress is not None:
            progress(len(points), len(set(batches)))
    if not any(point.winner for point in points):
        raise InfeasibleError(
            f"crossover: nothing fits at batch sizes {', '.join(map(str, batches))}; hrm search says what is missing"
        )
    return Crossover(rates, tuple(points), routing.predicts_perfectly)


def _check(routing: Routing, batches: Sequence[int]) -> None:
    if not batches or min(batches) < 1:
        raise WorkloadError("crossover: give batch sizes from 1 on")
    most = routing.largest_batch
    if most is not None and max(batches) > most:
        raise WorkloadError(
            f"crossover: the trace has {most} prompts with decode steps, a batch {max(batches)}; leave out larger ones"
        )


def streaming_pool(rates: Rates, schedule: str, experts_on_cpu: bool = True) -> tuple[Placement, ...]:
    """The placements of a schedule that do not wait for the router's choice.

    Raises:
        PolicyError: there is none. UnknownNameError: an unknown schedule.
    """
    pool = tuple(p for p in search_pool(rates, schedule) if p.overlap != "on_demand")
    pool = tuple(p for p in pool if experts_on_cpu or not p.experts_on_cpu)
    if not pool:
        raise PolicyError(f"schedule {schedule} streams nothing to compare a cache with; use auto, or one that streams")
    return pool


def _streaming(rates: Rates, schedule: str, pool: tuple[Placement, ...], batch_size: int) -> Refined | None:
    try:
        return best_by_simulation(rates, schedule, batch_limit=batch_size, pool=pool)
    except InfeasibleError:
        return None


def better_streaming(former: Refined | None, found: Refined | None) -> Refined | None:
    """Simulation may rank a policy of a smaller batch higher than the search's choice of a larger one."""
    if former is None or found is None:
        return found or former
    return max(former, found, key=lambda entry: entry.simulated.generation_throughput)


def better_cached(
    former: dict[ExpertCacheMode, CachedPolicy],
    rates: Rates,
    routing: Routing,
    batch_size: int,
    experts_on_cpu: bool = True,
) -> dict[ExpertCacheMode, CachedPolicy]:
    """The best of every kind of cache among `former` and those of this batch size."""
    best = dict(former)
    for mode in routing.modes:
        found = best_cached(rates, routing, mode, batch_size, experts_on_cpu)
        if found and (mode not in best or found.generation_throughput > best[mode].generation_throughput):
            best[mode] = found
    return best


def _lead(point: CrossoverPoint) -> float | None:
    """Logarithm of streaming over the best cache; None where one of them fits nowhere."""
    if not point.streaming_throughput or not point.cached_throughput:
        return None
    return math.log(point.streaming_throughput / point.cached_throughput)
