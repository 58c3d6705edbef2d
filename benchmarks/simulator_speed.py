"""Times the simulator: one pass of Mixtral 8x7B with 20 micro-batches, and a run of 2,000 requests x 128 tokens.

python benchmarks/simulator_speed.py [--output results.json]

Limits: 0.1 s for the pass (graph, durations and simulation, all 32 layers), 3 s for the run. Exits with 1 beyond them.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from machine import this_machine

from hrm.predict.generation import simulate_generation
from hrm.predict.requests import workload_requests
from hrm.predict.simulate import Simulator
from hrm.schedule.slice import decode_slice
from hrm.search.search import make_rates, search_policy
from hrm.spec.hardware import load_profile
from hrm.spec.model_config import load_model
from hrm.spec.policy import Policy
from hrm.spec.workload_file import load_workload

PASS_SECONDS, RUN_SECONDS = 0.1, 3.0
MICRO_BATCHES, REQUESTS, GEN_LEN = 20, 2000, 128
PROFILES = ("t4", "l4", "h200-16gib")
SCHEDULES = ("cgopipe", "module_batched", "flexgen", "auto")
REPEATS = 3


def with_micro_batches(policy: Policy, count: int) -> Policy:
    """The policy with `count` micro-batches, none larger than its own."""
    mu = min(policy.micro_batch_size, policy.batch_size // count)
    ffn = mu * count if policy.ffn_batching == "batch" else mu
    sizes = {"batch_size": mu * count, "micro_batch_size": mu, "ffn_batch_size": ffn}
    return Policy.model_validate(policy.model_dump() | sizes)


def time_one(profile: str, schedule: str) -> dict[str, Any]:
    """Best of three for the pass, single time of the run; seconds."""
    workload = load_workload("mtbench-questions", GEN_LEN)
    rates = make_rates(load_profile(profile), load_model("mixtral-8x7b"), workload)
    policy = with_micro_batches(search_policy(rates, schedule).policy, MICRO_BATCHES)
    passes = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        done = Simulator(rates).simulate(policy, decode_slice(policy, workload.mean_context_len))
        passes.append(time.perf_counter() - started)
    started = time.perf_counter()
    run = simulate_generation(Simulator(rates), policy, workload_requests(workload, REQUESTS))
    return {
        "profile": profile,
        "schedule": schedule,
        "tasks": len(done.timeline.graph.tasks),
        "pass_seconds": min(passes),
        "run_seconds": time.perf_counter() - started,
        "run_passes": len(run.passes),
    }


def main() -> None:
    """Times every profile and schedule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    for profile in PROFILES:
        for schedule in SCHEDULES:
            rows.append(time_one(profile, schedule))
            print(" ".join(f"{k}={v:.3f}" if isinstance(v, float) else f"{k}={v}" for k, v in rows[-1].items()))
    worst_pass, worst_run = max(r["pass_seconds"] for r in rows), max(r["run_seconds"] for r in rows)
    print(f"worst pass {worst_pass:.3f} s (limit {PASS_SECONDS}), worst run {worst_run:.2f} s (limit {RUN_SECONDS})")
    if options.output:
        options.output.write_text(json.dumps({"machine": this_machine(), "rows": rows}, indent=1))
    sys.exit(worst_pass > PASS_SECONDS or worst_run > RUN_SECONDS)


if __name__ == "__main__":
    main()
