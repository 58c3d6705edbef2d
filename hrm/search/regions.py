"""The best policy over a grid of scaled machines: a faster or slower CPU and host-to-device link."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from hrm.errors import InfeasibleError
from hrm.predict.rates import Rates
from hrm.search.search import search_policy
from hrm.search.sensitivity import scaled_rates

if TYPE_CHECKING:
    import pandas as pd

CPU_RESOURCES = ("cpu_memory_bandwidth", "cpu_compute")
FIELDS = ("attention_on_gpu", "kv_on_gpu", "weights_on_gpu", "experts_on_gpu", "batch_size", "micro_batch_size")


def policy_regions(
    rates: Rates, cpu_factors: Sequence[float], htod_factors: Sequence[float], schedule: str = "auto"
) -> pd.DataFrame:
    """One row per (cpu_factor, htod_factor): the best policy's choices and its throughput; `feasible` says if any fits.

    `cpu_factor` scales CPU memory bandwidth and compute together, as Fig. 10 of arXiv 2411.11217 does.

    Raises:
        ProfileError: an impossible factor. UnknownNameError: an unknown schedule.
    """
    import pandas as pd

    rows = []
    for cpu, htod in product(cpu_factors, htod_factors):
        scaled = scaled_rates(rates, "htod", htod)
        for resource in CPU_RESOURCES:
            scaled = scaled_rates(scaled, resource, cpu)
        rows.append({"cpu_factor": cpu, "htod_factor": htod, **_best(scaled, schedule)})
    return pd.DataFrame(rows)


def _best(rates: Rates, schedule: str) -> dict[str, Any]:
    try:
        best = search_policy(rates, schedule).best
    except InfeasibleError:
        return {"feasible": False}
    chosen = {name: getattr(best.policy, name) for name in FIELDS}
    return {"feasible": True, **chosen, "generation_throughput": best.prediction.generation_throughput}
