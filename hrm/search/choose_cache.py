"""Whether an expert cache or streaming is faster, at whatever batch size suits each."""

from collections.abc import Callable

from hrm.errors import InfeasibleError
from hrm.predict.rates import Rates
from hrm.predict.routing_source import Routing
from hrm.schedule.registry import AUTO, cache_placements
from hrm.search.branch import largest_batches
from hrm.search.cached import CachedPolicy
from hrm.search.crossover import Crossover, CrossoverPoint, better_cached, streaming_pool
from hrm.search.refine import best_by_simulation
from hrm.spec.policy import ExpertCacheMode


def cache_or_streaming(
    rates: Rates, routing: Routing, schedule: str = AUTO, progress: Callable[[int, int], None] | None = None
) -> Crossover:
    """One point: the best streaming policy of a schedule, and the best cache of every kind at batch sizes 1, 2, 4, ...
    as far as memory, and the prompts of a trace, allow.

    Raises:
        InfeasibleError: neither fits. PolicyError: a schedule that streams nothing. UnknownNameError: no such schedule.
    """
    pool, cached = streaming_pool(rates, schedule), dict[ExpertCacheMode, CachedPolicy]()
    batches = _batches(rates, routing)
    for i, batch_size in enumerate(batches):
        cached = better_cached(cached, rates, routing, batch_size)
        if progress is not None:
            progress(i + 1, len(batches))
    try:
        streaming = best_by_simulation(rates, schedule, pool=pool)
    except InfeasibleError:
        if not cached:
            raise
        streaming = None
    largest = max([entry.policy.batch_size for entry in cached.values()], default=0)
    limit = max(largest, streaming.policy.batch_size if streaming else 0)
    return Crossover(rates, (CrossoverPoint(limit, streaming, cached),), routing.predicts_perfectly)


def _batches(rates: Rates, routing: Routing) -> tuple[int, ...]:
    """Powers of two up to the largest batch that any cache can hold."""
    pool = tuple(p for mode in routing.modes for p in cache_placements(mode))
    most = int(largest_batches(rates, pool).max())
    if routing.largest_batch is not None:
        most = min(most, routing.largest_batch)
    return tuple(2**i for i in range(most.bit_length()))
