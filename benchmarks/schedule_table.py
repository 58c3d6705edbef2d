"""Simulated generation throughput of every schedule, each with its own best policy, on several machines (README table).

python benchmarks/schedule_table.py [PROFILE ...] [--output results.json]
"""

import argparse
import json
from pathlib import Path
from typing import Any

from machine import this_machine

from hrm.report.compare import ComparedSchedule, compare_schedules
from hrm.schedule.registry import AUTO, schedule_names
from hrm.search.search import make_rates
from hrm.spec.hardware import load_profile
from hrm.spec.model_config import load_model
from hrm.spec.workload_file import load_workload

PROFILES = ("t4", "l4", "a10g", "rtx4090", "h200-16gib")
MODEL = "mixtral-8x7b"
WORKLOAD = "mtbench"


def row(profile: str, entry: ComparedSchedule) -> dict[str, Any]:
    """One schedule on one machine, tokens/s."""
    base = {"profile": profile, "schedule": entry.schedule, "fits": entry.best is not None}
    if entry.best is None:
        return base
    return {
        **base,
        "generation_throughput": entry.throughput,
        "closed_form_throughput": entry.best.simulated.closed_form,
        "batch_size": entry.best.policy.batch_size,
        "micro_batch_size": entry.best.policy.micro_batch_size,
        "policy": entry.best.policy.model_dump(),
    }


def markdown(rows: list[dict[str, Any]], profiles: list[str]) -> str:
    """Throughputs, with `auto`'s gain over each schedule in brackets."""
    found = {(r["profile"], r["schedule"]): r.get("generation_throughput") for r in rows}
    lines = ["| schedule | " + " | ".join(profiles) + " |", "|---" * (len(profiles) + 1) + "|"]
    for schedule in schedule_names():
        cells = []
        for profile in profiles:
            value, auto = found[profile, schedule], found[profile, AUTO]
            gain = "" if schedule == AUTO or not value or not auto else f" ({auto / value:.2f}x)"
            cells.append(f"{value:,.0f}{gain}" if value else "does not fit")
        lines.append(f"| {f'**{schedule}**' if schedule == AUTO else schedule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Searches, simulates and prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profiles", nargs="*", default=list(PROFILES))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    for profile in options.profiles:
        rates = make_rates(load_profile(profile), load_model(MODEL), load_workload(WORKLOAD))
        rows += [row(profile, entry) for entry in compare_schedules(rates)]
    print(markdown(rows, options.profiles))
    if options.output:
        options.output.write_text(json.dumps({"machine": this_machine(), "model": MODEL, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
