"""All schedules side by side on one machine and workload, each with its own best policy."""

from collections.abc import Callable
from dataclasses import dataclass

from hrm.errors import InfeasibleError
from hrm.predict.rates import Rates
from hrm.schedule.registry import schedule_names
from hrm.search.refine import Refined, best_by_simulation


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


def compare_schedules(rates: Rates, progress: Callable[[int, int], None] | None = None) -> tuple[ComparedSchedule, ...]:
    """Searches every schedule and simulates its best policies; fastest first."""
    names, rows = schedule_names(), []
    for i, name in enumerate(names):
        rows.append(_best(rates, name))
        if progress is not None:
            progress(i + 1, len(names))
    return tuple(sorted(rows, key=lambda row: -row.throughput))


def _best(rates: Rates, schedule: str) -> ComparedSchedule:
    try:
        found = best_by_simulation(rates, schedule)
    except InfeasibleError as error:
        return ComparedSchedule(schedule, None, str(error))
    return ComparedSchedule(schedule, found)
