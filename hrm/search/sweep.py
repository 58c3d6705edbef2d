"""Searches (or, for policy fields, predicts) over a grid of machine, workload and policy fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from hrm.errors import InfeasibleError, PolicyError
from hrm.predict.closed_form import page_pool_needed, predict
from hrm.predict.rates import Rates
from hrm.search.search import Candidate, search_policy
from hrm.search.vary import Axis, check_axes, vary_policy, vary_rates

if TYPE_CHECKING:
    import pandas as pd

RESULT_FIELDS = ("batch_size", "micro_batch_size", "attention_on_gpu", "experts_on_gpu", "weights_on_gpu", "kv_on_gpu")


def sweep(
    rates: Rates, axes: Sequence[Axis], schedule: str, progress: Callable[[int, int], None] | None = None
) -> pd.DataFrame:
    """One row per grid point: the axes' values, the best policy there and its prediction.

    Machine and workload fields: the policy is searched again at each point. Policy fields: the best policy of the point
    with those fields replaced, everything else kept but a page pool that must grow. A point where nothing fits has
    `feasible` False and a `reason`.

    Raises:
        HrmError: an empty or too large grid, or an impossible value of a machine or workload field.
    """
    import pandas as pd

    check_axes(axes)
    grid = list(product(*(axis.values for axis in axes)))
    rows = []
    for i, point in enumerate(grid):
        rows.append(_row(rates, axes, point, schedule))
        if progress:
            progress(i + 1, len(grid))
    return pd.DataFrame(rows).convert_dtypes()


def _row(rates: Rates, axes: Sequence[Axis], point: Sequence[float], schedule: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        f"{axis.field}_factor" if axis.is_factor else axis.field: value for axis, value in zip(axes, point, strict=True)
    }
    try:
        candidate = _best(rates, axes, point, schedule)
    except (InfeasibleError, PolicyError) as error:
        return {**row, "feasible": False, "reason": str(error)}
    policy, prediction = candidate.policy, candidate.prediction
    row |= {f"policy_{name}" if name in row else name: getattr(policy, name) for name in RESULT_FIELDS}
    return {
        **row,
        "feasible": True,
        "schedule": policy.schedule,
        "attention_place": policy.attention_place,
        "mixed_prefill": policy.mixed_prefill,
        "generation_throughput": prediction.generation_throughput,
        "decode_throughput": prediction.decode_throughput,
        "bottleneck": prediction.bottleneck,
        "gpu_memory_bytes": prediction.gpu_memory.total_bytes,
        "cpu_memory_bytes": prediction.cpu_memory.total_bytes,
    }


def _best(rates: Rates, axes: Sequence[Axis], point: Sequence[float], schedule: str) -> Candidate:
    changes = list(zip(axes, point, strict=True))
    for axis, value in changes:
        if axis.target != "policy":
            rates = vary_rates(rates, axis, value)
    best = search_policy(rates, schedule).best
    policy = best.policy
    for axis, value in changes:
        if axis.target == "policy":
            policy = vary_policy(policy, axis, value)
    if policy is best.policy:
        return best
    pool = max(policy.page_pool_bytes, page_pool_needed(rates, policy))
    policy = policy.model_copy(update={"page_pool_bytes": pool})
    return Candidate(policy, predict(rates, policy))
