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
from hrm.spec.policy import ExpertCacheMode


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
    def best_cached(self) -> tuple[ExpertCacheMode, CachedPolicy] | None:
        """The best kind of cache."""
        return max(self.cached.items(), key=lambda item: item[1].generation_throughput, default=None)

    @property
    def cached_throughput(self) -> float:
        """Tokens per second of the best kind of cache; 0 where none fits."""
        best = self.best_cached
        return best[1].generation_throughput if best else 0.0


def crossover(
    rates: Rates,
    routing: Routing,
    batches: Sequence[int],
    schedule: str = AUTO,
    experts_on_cpu: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[CrossoverPoint, ...]:
    """The best streaming policy of a schedule and the best expert caches, limited to each of the batch sizes (rising).

    A cache's batch is one of `batches`, so that of a larger limit is at least as good as that of a smaller one.
    Streaming takes any batch size up to the limit. `experts_on_cpu`: both sides may leave experts to the CPU.

    Raises:
        WorkloadError: no batch size, or one that the routing trace is too small for.
        InfeasibleError: neither fits at any batch size. UnknownNameError: an unknown schedule.
        PolicyError: a schedule that streams nothing.
    """
    _check(routing, batches)
    pool = _streaming_pool(rates, schedule, experts_on_cpu)
    points: list[CrossoverPoint] = []
    for i, batch_size in enumerate(sorted(set(batches))):
        cached = dict(points[-1].cached) if points else {}
        for mode in routing.modes:
            found = best_cached(rates, routing, mode, batch_size, experts_on_cpu)
            if found and (mode not in cached or found.generation_throughput > cached[mode].generation_throughput):
                cached[mode] = found
        streaming = _streaming(rates, schedule, pool, batch_size)
        points.append(CrossoverPoint(batch_size, _better(points[-1].streaming if points else None, streaming), cached))
        if progress is not None:
            progress(i + 1, len(batches))
    if not any(point.streaming or point.cached for point in points):
        raise InfeasibleError(
            f"crossover: nothing fits at batch sizes {', '.join(map(str, batches))}; hrm search says what is missing"
        )
    return tuple(points)


def _check(routing: Routing, batches: Sequence[int]) -> None:
    if not batches or min(batches) < 1:
        raise WorkloadError("crossover: give batch sizes from 1 on")
    most = routing.largest_batch
    if most is not None and max(batches) > most:
        raise WorkloadError(
            f"crossover: the trace has {most} prompts with decode steps, a batch {max(batches)}; leave out larger ones"
        )


def _streaming_pool(rates: Rates, schedule: str, experts_on_cpu: bool) -> tuple[Placement, ...]:
    """The placements of a schedule that do not wait for the router's choice."""
    pool = tuple(p for p in search_pool(rates, schedule) if p.overlap != "on_demand")
    pool = tuple(p for p in pool if experts_on_cpu or not p.experts_on_cpu)
    if not pool:
        raise PolicyError(f"crossover: schedule {schedule} streams nothing; compare with auto or one that does")
    return pool


def _streaming(rates: Rates, schedule: str, pool: tuple[Placement, ...], batch_size: int) -> Refined | None:
    try:
        return best_by_simulation(rates, schedule, batch_limit=batch_size, pool=pool)
    except InfeasibleError:
        return None


def _better(former: Refined | None, found: Refined | None) -> Refined | None:
    """Simulation may rank a policy of a smaller batch higher than the search's choice of a larger one."""
    if former is None or found is None:
        return found or former
    return max(former, found, key=lambda entry: entry.simulated.generation_throughput)


def crossing(points: Sequence[CrossoverPoint]) -> float | None:
    """Batch size from which streaming is faster, on straight lines in log-log space; None where the lines do not cross.

    The last crossing where there are several.
    """
    found = None
    for former, point in pairwise(points):
        before, after = _lead(former), _lead(point)
        if before is not None and after is not None and before < 0 <= after:
            part = -before / (after - before)
            found = former.batch_size * (point.batch_size / former.batch_size) ** part
    return found


def _lead(point: CrossoverPoint) -> float | None:
    """Logarithm of streaming over the best cache; None where one of them fits nowhere."""
    if not point.streaming_throughput or not point.cached_throughput:
        return None
    return math.log(point.streaming_throughput / point.cached_throughput)
