"""`--routing`: how tokens choose experts, as cache statistics of a policy's decode pass."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from hrm.errors import WorkloadError

if TYPE_CHECKING:
    from hrm.predict.rates import Rates
    from hrm.schedule.build import CacheStats
    from hrm.spec.policy import Policy

FORMS = "uniform, zipf:EXPONENT (zipf:1.1), or a routing trace (.npz)"


def read_cache_stats(option: str | None, rates: Rates, policy: Policy) -> CacheStats | None:
    """The statistics that the option asks for, of `batch_size` tokens and `weights_on_gpu`; None without the option.

    A trace is replayed through an LRU cache of floor(weights_on_gpu num_experts) slots per layer.

    Raises:
        WorkloadError: an unknown form, a bad exponent or trace, or a schedule without demand-fetched experts.
    """
    from hrm.predict.routing import uniform_cache_stats, zipf_cache_stats
    from hrm.schedule.registry import placement_of

    if option is None:
        return None
    if placement_of(policy).overlap != "on_demand":
        raise WorkloadError(
            f"--routing: schedule {policy.schedule} fetches experts before routing; leave it out, or use expert_cache"
        )
    model, tokens, resident = rates.model, policy.batch_size, policy.weights_on_gpu
    if option == "uniform":
        return uniform_cache_stats(model, tokens, resident)
    if option.startswith("zipf:"):
        return zipf_cache_stats(model, tokens, resident, _exponent(option))
    if option.endswith(".npz"):
        return _replayed(Path(option), rates, policy)
    raise WorkloadError(f"--routing: unknown form {option[:80]!r}; give {FORMS}")


def _exponent(option: str) -> float:
    try:
        return float(option.removeprefix("zipf:"))
    except ValueError:
        raise WorkloadError(f"--routing: {option[:80]!r} has no number as its exponent; give {FORMS}") from None


def _replayed(path: Path, rates: Rates, policy: Policy) -> CacheStats:
    from hrm.predict.routing_replay import trace_cache_stats
    from hrm.predict.routing_trace import load_routing_trace

    trace = load_routing_trace(path, rates.model)
    slots = math.floor(policy.weights_on_gpu * trace.num_experts + 1e-9)
    return trace_cache_stats(trace, rates.model, policy.batch_size, slots, "lru")
