"""Times the policy search on every shipped profile x four models x three prompt lengths.

python benchmarks/search_speed.py [--output results.json] [--markdown]

Prints one line per instance: seconds of the solver (branch and bound with the MILP, without loading files), the
optimum, and how many boxes were bounded. Instances where nothing fits are listed as such.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

from hrm.errors import InfeasibleError
from hrm.search.search import make_rates, search_policy
from hrm.spec.hardware import load_profile, shipped_profiles
from hrm.spec.model_config import load_model
from hrm.spec.workload import make_workload

MODELS = ("mixtral-8x7b", "mixtral-8x22b", "dbrx", "qwen3-30b-a3b")
PROMPTS = (77, 242, 1693)
GEN_LEN = 128


def run_one(profile: str, model: str, prompt_len: int) -> dict[str, Any]:
    """One search; `seconds` is wall time of the solver."""
    rates = make_rates(load_profile(profile), load_model(model), make_workload(GEN_LEN, prompt_len))
    row: dict[str, Any] = {"profile": profile, "model": model, "prompt_len": prompt_len}
    started = time.perf_counter()
    try:
        result = search_policy(rates)
    except InfeasibleError:
        return {**row, "seconds": time.perf_counter() - started, "feasible": False}
    return {
        **row,
        "seconds": time.perf_counter() - started,
        "feasible": True,
        "generation_throughput": result.prediction.generation_throughput,
        "batch_size": result.policy.batch_size,
        "boxes_bounded": result.solver.boxes_bounded,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Solver seconds per profile: median and worst over the instances."""
    lines = ["| profile | median s | worst s | instances |", "|---|---|---|---|"]
    for profile in dict.fromkeys(row["profile"] for row in rows):
        seconds = [row["seconds"] for row in rows if row["profile"] == profile]
        lines.append(f"| {profile} | {statistics.median(seconds):.2f} | {max(seconds):.2f} | {len(seconds)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs all instances."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    run_one("t4", "mixtral-8x7b", 77)  # first use of the solvers loads their libraries
    rows = []
    for profile in shipped_profiles():
        for model in MODELS:
            for prompt_len in PROMPTS:
                rows.append(run_one(profile, model, prompt_len))
                print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    seconds = [row["seconds"] for row in rows]
    machine = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    print(f"{len(rows)} instances on {machine}: median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s")
    if options.markdown:
        print(markdown(rows))
    if options.output:
        options.output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
