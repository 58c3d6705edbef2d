"""The published results and their predictions as Markdown, with `auto`'s prediction per case (docs/published.md).

python benchmarks/published_table.py [--output results.json]
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from machine import this_machine

from hrm.report.published import PublishedPrediction, diagnosis, predict_published, published_errors
from hrm.report.published_auto import auto_case, published_cases
from hrm.report.published_text import describe_diagnosis, describe_errors


def rows_table(predictions: tuple[PublishedPrediction, ...]) -> str:
    """One line per published row."""
    lines = ["| machine | workload | gen_len | system | n x mu | published | predicted | error |", "|---" * 8 + "|"]
    for p in sorted(predictions, key=lambda p: p.row.case):
        setting, workload, gen_len = p.row.case
        sizes = f"{p.policy.num_micro_batches} x {p.policy.micro_batch_size}"
        values = f"{p.row.throughput:,.1f} | {p.predicted:,.1f} | {p.error:+.0%}"
        lines.append(f"| {setting} | {workload} | {gen_len} | {p.row.system} | {sizes} | {values} |")
    return "\n".join(lines)


def auto_table(predictions: tuple[PublishedPrediction, ...]) -> str:
    """`auto` on every case beside the best published system's published and predicted throughput."""
    lines = [
        "| machine | workload | gen_len | best published | published | predicted | auto | gain |",
        "|---" * 8 + "|",
    ]
    for case in sorted(published_cases(predictions)):
        best = max((p for p in predictions if p.row.case == case), key=lambda p: p.row.throughput)
        auto = auto_case(case).best.simulated.generation_throughput
        values = f"{best.row.throughput:,.1f} | {best.predicted:,.1f} | {auto:,.1f} | {auto / best.predicted:.2f}x"
        lines.append(f"| {case[0]} | {case[1]} | {case[2]} | {best.row.system} | {values} |")
    return "\n".join(lines)


def systems_table(predictions: tuple[PublishedPrediction, ...]) -> str:
    """Median errors by machine and system."""
    lines = ["| system | S1 (T4) median error | S2 (L4) median error |", "|---|---|---|"]
    for system in dict.fromkeys(p.row.system for p in predictions):
        cells = []
        for setting in ("S1", "S2"):
            chosen = tuple(p for p in predictions if (p.row.system, p.row.setting) == (system, setting))
            cells.append(f"{published_errors(chosen).median_error:+.0%}")
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    predictions = predict_published()
    errors = published_errors(predictions)
    what_if = describe_diagnosis(published_errors(diagnosis()))
    tables = systems_table(predictions), rows_table(predictions), auto_table(predictions)
    print(describe_errors(errors), what_if, *tables, sep="\n\n")
    if options.output:
        rows = [{**asdict(p.row), "predicted": p.predicted, "error": p.error} for p in predictions]
        data = {"machine": this_machine(), "errors": asdict(errors), "rows": rows}
        options.output.write_text(json.dumps(data, indent=1))


if __name__ == "__main__":
    main()
