"""What `auto` would reach on the published machines and workloads."""

from dataclasses import dataclass
from functools import cache

from hrm.report.published import PublishedPrediction
from hrm.report.published_machine import published_machine
from hrm.report.published_rows import published_data
from hrm.search.refine import Refined, best_by_simulation
from hrm.search.search import make_rates
from hrm.spec.model_config import load_model
from hrm.spec.workload import make_workload


@dataclass(frozen=True)
class AutoCase:
    """The best simulated policy on one machine, workload and generation length, prompts unpadded."""

    case: tuple[str, str, int]
    best: Refined


@cache
def auto_case(case: tuple[str, str, int]) -> AutoCase:
    """Searches and refines `auto` with the clocks and component rates of the published predictions.

    Raises:
        InfeasibleError: nothing fits.
    """
    setting, name, gen_len = case
    lengths, model = published_data()["workloads"][name], load_model(published_data()["model"])
    workload = make_workload(gen_len, lengths["prompt_len"], lengths["prompt_len_max"], False, name)
    rates = make_rates(published_machine(setting), model, workload)
    return AutoCase(case, best_by_simulation(rates, "auto"))


def published_cases(predictions: tuple[PublishedPrediction, ...]) -> tuple[tuple[str, str, int], ...]:
    """Every machine, workload and generation length once."""
    return tuple(dict.fromkeys(p.row.case for p in predictions))
