"""All schedules side by side on one machine and workload, each with its own best policy."""

from collections.abc import Callable
from dataclasses import dataclass

from hrm.errors import InfeasibleError
from hrm.predict.rates import Rates
from hrm.schedule.registry import schedule_names
from hrm.search.refine import Refined, refine
from hrm.search.search import search_policy


@dataclass(frozen=True)
class ComparedSchedule:
    """The best policy of one schedule by simulation; None where nothing fits, with the reason."""

    schedule: str
    best: Refined | None
    reason: str = ""

    @property
    def throughput(self) -> float:
        """Simulated generated tokens/s; 0 where nothing fits."""
        return self.best.simulated.generation_throughput if self.best else 0.0


def compare_schedules(
    rates: Rates, top: int, progress: Callable[[int, int], None] | None = None
) -> tuple[ComparedSchedule, ...]:
    """Searches and refines every schedule, the `top` policies of each; fastest first."""
    names, rows = schedule_names(), []
    for i, name in enumerate(names):
        rows.append(_best(rates, name, top))
        if progress is not None:
            progress(i + 1, len(names))
    return tuple(sorted(rows, key=lambda row: -row.throughput))


def _best(rates: Rates, schedule: str, top: int) -> ComparedSchedule:
    try:
        found = refine(search_policy(rates, schedule, top))
    except InfeasibleError as error:
        return ComparedSchedule(schedule, None, str(error))
    return ComparedSchedule(schedule, found[0])
