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
from hrm.search.node_programs import Col, NodePrograms
from hrm.search.pool import chunk_sizes
from hrm.search.relaxation import node_programs
from hrm.spec.policy import ExpertCacheMode, Policy

STEPS = 8  # shares tried of slots, and of missed experts that are copied, are its fractions and what the program wants
REPLAYED = 2  # of the latter, how many are simulated with the hit rates of their own

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
    policies = list(_policies(rates, mode, batch_size, experts_on_cpu))
    if mode == "rows" or not experts_on_cpu:
        found = [_simulated(rates, routing, policy) for policy in policies]
        return max(found, key=_throughput, default=None)
    near = max((_estimated(rates, routing, policy) for policy in policies), key=_throughput, default=None)
    return None if near is None else _balanced(rates, routing, near)


def _throughput(entry: CachedPolicy) -> float:
    return entry.generation_throughput


def _balanced(rates: Rates, routing: Routing, near: CachedPolicy) -> CachedPolicy:
    """The same slots with the share of missed experts copied at which link and CPU together are fastest."""
    shares = {near.policy.experts_on_gpu, *(np.arange(STEPS) / STEPS).tolist()} - {1.0}
    estimates = [_run(rates, _with_copied(near.policy, share), near.stats) for share in sorted(shares)]
    best = sorted(estimates, key=_throughput, reverse=True)[:REPLAYED]
    copied = _run(rates, _with_copied(near.policy, 1.0), near.stats)
    return max((copied, *(_simulated(rates, routing, entry.policy) for entry in best)), key=_throughput)


def _with_copied(policy: Policy, share: float) -> Policy:
    return Policy.model_validate(policy.model_dump() | {"experts_on_gpu": share})


def _estimated(rates: Rates, routing: Routing, policy: Policy) -> CachedPolicy:
    """As if what the CPU computes entered the cache too, whatever its share: only the best are worth a replay each."""
    stats = routed_cache_stats(routing, rates.sizes, _with_copied(policy, 1.0))
    return _run(rates, policy, replace(stats, on_cpu=()))


def _simulated(rates: Rates, routing: Routing, policy: Policy) -> CachedPolicy:
    return _run(rates, policy, routed_cache_stats(routing, rates.sizes, policy))


def _run(rates: Rates, policy: Policy, stats: CacheStats) -> CachedPolicy:
    simulator = Simulator(rates.for_chunk(policy.prefill_chunk_tokens))
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
