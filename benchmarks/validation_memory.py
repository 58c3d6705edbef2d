"""CPU memory of recorded validation runs, predicted again by today's model.

python benchmarks/validation_memory.py --report benchmarks/results/validation_h200.json --profile h200

What a policy needs follows from its shapes alone, so a report's measured bytes judge a memory model that is newer than
the report. The profile only completes the cost model; no number of it enters a memory form.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from hrm.errors import HrmError
from hrm.predict.closed_form import predict
from hrm.predict.machine import Machine
from hrm.predict.rates import Rates
from hrm.spec.hardware import load_profile
from hrm.spec.policy import Policy
from hrm.spec.precision import Precision
from runtime.checkpoint.synthetic import synthetic_checkpoint
from runtime.validation.check import ROOMY, with_memory
from runtime.validation.workloads import run_shape


def predicted_bytes(run: dict[str, Any], report: dict[str, Any], machine: Machine) -> float:
    """CPU memory of one recorded run."""
    policy = Policy.model_validate(run["policy"])
    shape = run_shape(policy, run["context_len"], report["gen_len"], len(run["pass_seconds"]))
    spec = synthetic_checkpoint(report["model"], report["num_layers"], 0).spec
    rates = Rates(spec, shape.workload, machine).for_chunk(policy.prefill_chunk_tokens)
    return sum(predict(with_memory(rates, ROOMY), policy).cpu_memory.parts.values())


def main() -> None:
    """A line per run, then the errors of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--profile", required=True)
    args = parser.parse_args()
    try:
        report = json.loads(args.report.read_text())
        dtype = report["dtype"]
        machine = Machine(load_profile(args.profile), Precision(dtype, dtype, dtype, dtype))
        errors = []
        for run in report["runs"]:
            measured = run["cpu_memory"]["measured_total"]
            errors.append(predicted_bytes(run, report, machine) / measured - 1)
            print(f"{run['label']}, context {run['context_len']}: {measured / 1e9:.2f} GB measured, {errors[-1]:+.1%}")
    except HrmError as error:
        raise SystemExit(f"validation_memory: {error}") from None
    mean = sum(map(abs, errors)) / len(errors)
    print(f"{len(errors)} runs: {mean:.1%} off on average, worst {max(errors, key=abs):+.1%}")


if __name__ == "__main__":
    main()
