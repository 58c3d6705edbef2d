"""The best expert cache at a batch size, by simulation: cache policies, and slots against other resident weights.

Closed forms know uniform routing only, in which the share of slots is the hit rate. Under skew the first slots earn
most, so shares of slots are tried one by one, each with the best of everything else that the linear program finds. So
is, with the best of them, the share of missed experts that is copied while the CPU computes the others.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from hrm.predict.node import single_nodes
from hrm.predict.rates import Rates
from hrm.predict.routing_source import Routing, routed_cache_stats
from hrm.predict.simulate import Simulator
from hrm.predict.throughput import SimulatedThroughput, simulate_throughput
from hrm.schedule.build import CacheStats
from hrm.schedule.placement import Placement
from hrm.schedule.registry import cache_placements
from hrm.search.batch_lp import solve_nodes
from hrm.search.extract import policy_from_solution
from hrm.search.pool import chunk_sizes
from hrm.search.relaxation import Col, NodePrograms, node_programs
from hrm.spec.policy import ExpertCacheMode, Policy

STEPS = 8  # shares of slots tried are its fractions, and the largest that fits
COPIED = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the missed experts; then 1 / STEPS to both sides of the best

CACHE_NAMES: dict[ExpertCacheMode, str] = {
    "rows": "resident rows",
    "lru": "LRU cache",
    "lfu": "LFU cache",
    "static": "static cache",
    "predictive": "predictive cache",
}


@dataclass(frozen=True)
class CachedPolicy:
    """A policy with an expert cache, how its experts fare, and its simulation."""

    policy: Policy
    stats: CacheStats
    simulated: SimulatedThroughput

    @property
    def generation_throughput(self) -> float:
        """Simulated tokens per second of prefill and decode."""
        return self.simulated.generation_throughput


def best_cached(
    rates: Rates, routing: Routing, mode: ExpertCacheMode, batch_size: int, experts_on_cpu: bool = True
) -> CachedPolicy | None:
    """The best share of slots of one kind of cache at one batch size; None where no share fits.

    `experts_on_cpu`: the CPU may compute what a cache lacks.

    Raises:
        WorkloadError: as `routed_cache_stats`.
    """
    found = [_simulated(rates, routing, policy) for policy in _policies(rates, mode, batch_size, experts_on_cpu)]
    best = max(found, key=_throughput, default=None)
    if best is None or mode == "rows" or not experts_on_cpu:
        return best
    return _balanced(rates, routing, best)


def _throughput(entry: CachedPolicy) -> float:
    return entry.generation_throughput


def _balanced(rates: Rates, routing: Routing, start: CachedPolicy) -> CachedPolicy:
    """The same slots with the share of missed experts copied at which link and CPU together are fastest."""
    tried = {start.policy.experts_on_gpu: start}

    def attempt(shares: tuple[float, ...]) -> CachedPolicy:
        for share in shares:
            if 0 <= share <= 1 and share not in tried:
                policy = Policy.model_validate(start.policy.model_dump() | {"experts_on_gpu": share})
                tried[share] = _simulated(rates, routing, policy)
        return max(tried.values(), key=_throughput)

    best = attempt(COPIED).policy.experts_on_gpu
    return attempt((best - 1 / STEPS, best + 1 / STEPS))


def _simulated(rates: Rates, routing: Routing, policy: Policy) -> CachedPolicy:
    simulator = Simulator(rates.for_chunk(policy.prefill_chunk_tokens))
    stats = routed_cache_stats(routing, rates.sizes, policy)
    return CachedPolicy(policy, stats, simulate_throughput(simulator, policy, stats))


def _policies(rates: Rates, mode: ExpertCacheMode, batch_size: int, experts_on_cpu: bool) -> Iterator[Policy]:
    """The largest share of slots that the linear program wants; below it those that make room for other weights."""
    on_cpu = experts_on_cpu and mode != "predictive"  # to the program prediction is right: nothing is missed
    allowed = [p for p in cache_placements(mode) if on_cpu or not p.experts_on_cpu]
    pool = [replace(p, prefill_chunk_tokens=chunk) for p in allowed for chunk in chunk_sizes(rates)]
    solved = [found for placement in pool if (found := _solve(rates, placement, batch_size)) is not None]
    if not solved:
        return
    _, best, placement = min(solved, key=lambda found: found[0])
    yield best
    if best.dense_weights_on_gpu == 1 and best.weights_on_gpu > 0:
        return
    for share in (np.arange(STEPS + 1) / STEPS).tolist():
        found = _solve(rates, placement, batch_size, share) if share != best.weights_on_gpu else None
        if found is not None:
            yield found[1]


def _solve(
    rates: Rates, placement: Placement, batch_size: int, share: float | None = None
) -> tuple[float, Policy, Placement] | None:
    """Seconds per token and policy of one cell, at a given share of slots if one is given; None where it cannot be."""
    size = np.array([float(batch_size)])
    programs = node_programs(rates, placement, single_nodes(size, size))
    if share is not None:
        programs = _with_share(programs, share)
    solution = solve_nodes([programs])[0]
    if not np.isfinite(solution.value[0]):
        return None
    policy = policy_from_solution(rates, placement, batch_size, batch_size, solution.x[0])
    return float(solution.value[0]), policy, placement


def _with_share(programs: NodePrograms, share: float) -> NodePrograms:
    """The same programs at one share of resident experts; infeasible below the least or where it does not fit."""
    lower, upper = programs.lower.copy(), programs.upper.copy()
    lower[:, Col.WEIGHTS] = np.maximum(lower[:, Col.WEIGHTS], share)
    upper[:, Col.WEIGHTS] = share
    return replace(programs, lower=lower, upper=upper)
