"""Predicted generation throughput of every schedule, each with its own best policy, on several machines (README table).

python benchmarks/schedule_table.py [PROFILE ...]
"""

import sys

from hrm.errors import InfeasibleError
from hrm.schedule.registry import AUTO, schedule_names
from hrm.search.search import make_rates, search_policy
from hrm.spec.hardware import load_profile
from hrm.spec.model_config import load_model
from hrm.spec.workload_file import load_workload

PROFILES = ("t4", "l4", "a10g", "rtx4090", "a100-40gb")
MODEL = "mixtral-8x7b"
WORKLOAD = "mtbench"


def cell(profile: str, schedule: str) -> str:
    """Tokens per second, or that nothing fits."""
    rates = make_rates(load_profile(profile), load_model(MODEL), load_workload(WORKLOAD))
    try:
        return f"{search_policy(rates, schedule).prediction.generation_throughput:,.0f}"
    except InfeasibleError:
        return "does not fit"


def main() -> None:
    """Prints the table as Markdown."""
    profiles = sys.argv[1:] or PROFILES
    print("| schedule | " + " | ".join(profiles) + " |")
    print("|---" * (len(profiles) + 1) + "|")
    for schedule in schedule_names():
        name = f"**{schedule}**" if schedule == AUTO else schedule
        print(f"| {name} | " + " | ".join(cell(p, schedule) for p in profiles) + " |")


if __name__ == "__main__":
    main()
