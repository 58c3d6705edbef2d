"""A validation in numbers, and as a JSON file."""

import json
from pathlib import Path
from statistics import mean, median
from typing import Any

from pydantic import ValidationError

from hrm.errors import HrmError
from hrm.spec.text_file import read_text, write_text
from runtime.validation.report import Part, RunCheck, ValidationReport


class Ranking(Part):
    """At one context: what the policy predicted best reached of the best measured one."""

    context_len: int
    predicted_best: str
    measured_best: str
    reached: float


def rankings(report: ValidationReport) -> tuple[Ranking, ...]:
    """One for every context, by decoded tokens/s."""
    found = []
    for context in sorted({run.context_len for run in report.runs}):
        runs = [run for run in report.runs if run.context_len == context]
        chosen = max(runs, key=lambda run: run.predicted_tokens_per_s)
        best = max(runs, key=lambda run: run.measured_tokens_per_s)
        reached = chosen.measured_tokens_per_s / best.measured_tokens_per_s
        found.append(
            Ranking(context_len=context, predicted_best=chosen.label, measured_best=best.label, reached=reached)
        )
    return tuple(found)


def worst_run(report: ValidationReport) -> RunCheck:
    """The one whose pass time is predicted worst; there must be a run."""
    return max(report.runs, key=lambda run: abs(run.error))


def summary(report: ValidationReport) -> dict[str, Any]:
    """The whole report in numbers: errors of the pass time and of memory, and how well the choice ranks."""
    counts = {"runs": len(report.runs), "skipped": len(report.skipped), "failed": len(report.failed)}
    if not report.runs:
        return counts
    errors, worst = [abs(run.error) for run in report.runs], worst_run(report)
    wrong = [run.explanation.wrong for run in report.runs]
    return {
        **counts,
        "mean_absolute_error": mean(errors),
        "median_absolute_error": median(errors),
        "median_signed_error": median(run.error for run in report.runs),
        "worst_error": worst.error,
        "worst_run": f"{worst.label}, context {worst.context_len}",
        "gpu_memory_mean_absolute_error": mean(abs(run.gpu_memory.error) for run in report.runs),
        "gpu_memory_worst_error": max((run.gpu_memory.error for run in report.runs), key=abs),
        "cpu_memory_mean_absolute_error": mean(abs(run.cpu_memory.error) for run in report.runs),
        "wrong_terms": {term: wrong.count(term) for term in sorted(set(wrong), key=lambda t: (-wrong.count(t), t))},
        "rankings": [ranking.model_dump() for ranking in rankings(report)],
    }


def report_json(report: ValidationReport) -> dict[str, Any]:
    """The report with its summary in front; `read_report` reads it back."""
    return {"summary": summary(report), **report.model_dump(mode="json")}


def write_report(report: ValidationReport, path: Path) -> None:
    """Writes `report_json`. Raises HrmError where that is not possible."""
    write_text(path, json.dumps(report_json(report), indent=1) + "\n", HrmError)


def read_report(path: Path) -> ValidationReport:
    """A report that `hrm validate --report` wrote.

    Raises:
        HrmError: unreadable, or no report.
    """
    try:
        data = json.loads(read_text(path, HrmError))
        return ValidationReport.model_validate({k: v for k, v in data.items() if k != "summary"})
    except (json.JSONDecodeError, ValidationError, AttributeError) as error:
        first = str(error).splitlines()[0]
        raise HrmError(f"{path}: is no report of `hrm validate` ({first}); write it again with --report") from None
