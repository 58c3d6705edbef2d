"""A validation in words and rows, for the terminal and the notebook."""

from collections.abc import Sequence

from hrm.spec.units import format_bytes, format_seconds
from runtime.validation.explain import WAITING
from runtime.validation.report import MachineFacts, NotRun, RunCheck, Term, ValidationReport
from runtime.validation.summary import summary

COLUMNS = (
    "policy", "context", "pass", "measured", "predicted", "error", "tokens/s", "GPU memory", "CPU memory", "wrong term",
)  # fmt: skip
NARROW = ("policy", "context", "measured", "predicted", "error", "wrong term")  # in 80 columns
NEGLIGIBLE = 0.05  # of the measured pass: a smaller gap has no term to blame


def run_rows(report: ValidationReport) -> list[tuple[str, ...]]:
    """A row for every run; memory is predicted over measured."""
    return [
        (
            run.label,
            f"{run.context_len}",
            run.pass_name,
            format_seconds(run.measured_seconds),
            format_seconds(run.predicted_seconds),
            f"{run.error:+.0%}",
            f"{run.measured_tokens_per_s:,.1f}",
            f"{run.gpu_memory.error:+.0%}",
            f"{run.cpu_memory.error:+.0%}",
            wrong_term(run),
        )
        for run in report.runs
    ]


def describe_result(result: RunCheck | NotRun) -> str:
    """One line: what was measured and predicted, or why there is nothing."""
    where = f"{result.label}, context {result.context_len}"
    if isinstance(result, NotRun):
        return f"{where}: {result.reason}"
    seconds = f"{format_seconds(result.measured_seconds)} a pass, predicted {format_seconds(result.predicted_seconds)}"
    return f"{where}: {seconds} ({result.error:+.0%})"


def chosen_columns(rows: Sequence[tuple[str, ...]], names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Of rows in COLUMNS, those columns."""
    places = [COLUMNS.index(name) for name in names]
    return [tuple(row[i] for i in places) for row in rows]


def wrong_term(run: RunCheck) -> str:
    """The term that explains most of the gap, with its seconds; where it is waiting, for which kind."""
    explanation = run.explanation
    if abs(explanation.gap) < NEGLIGIBLE * run.measured_seconds:
        return "-"
    text = f"{explanation.wrong} {_signed(explanation.wrong_seconds)}"
    behind = _behind(explanation.critical, explanation.gap)
    if explanation.wrong.startswith(WAITING) and behind is not None:
        text += f", for {behind.name} {_signed(behind.seconds)}"
    return text


def _behind(critical: Sequence[Term], gap: float) -> Term | None:
    """The kind that made the critical path longer (or shorter) most."""
    tasks = [term for term in critical if term.name != WAITING and term.seconds * gap > 0]
    return max(tasks, key=lambda term: abs(term.seconds), default=None)


def explanation_rows(run: RunCheck) -> list[tuple[str, ...]]:
    """The busiest queue's terms, as shares of the gap."""
    gap = run.explanation.gap
    return [(term.name, _signed(term.seconds), f"{term.seconds / gap:+.0%}") for term in run.explanation.terms if gap]


def kind_rows(run: RunCheck) -> list[tuple[str, ...]]:
    """Seconds by kind of task on both sides."""
    return [
        (
            row.kind,
            row.queue,
            f"{row.count:,}",
            _seconds(row.measured),
            _seconds(row.predicted),
            _ratio(row.predicted, row.measured),
        )
        for row in run.kinds
    ]


def not_run_rows(entries: Sequence[NotRun]) -> list[tuple[str, ...]]:
    """Policy, context and reason."""
    return [
        (
            e.label,
            "" if e.context_len is None else f"{e.context_len}",
            f"{'out of memory: ' if e.out_of_memory else ''}{e.reason}",
        )
        for e in entries
    ]


def title(report: ValidationReport) -> str:
    """Model and machine."""
    layers = f"{report.num_layers} layers, {report.dtype}"
    return f"{report.model} ({layers}) on {report.machine.device}, {report.machine.date}: measured and predicted passes"


def describe_machine(machine: MachineFacts) -> str:
    """Profile and memory."""
    how = "limited to" if machine.gpu_memory_emulated else "with"
    return (
        f"Profile {machine.profile}; GPU {how} {format_bytes(machine.gpu_memory_bytes)}, CPU memory "
        f"{format_bytes(machine.cpu_memory_bytes)}; {machine.software}."
    )


def describe_errors(report: ValidationReport) -> str:
    """The summary in sentences."""
    if not report.runs:
        return "Nothing ran."
    found = summary(report)
    words = [
        f"{found['runs']} runs: pass time is predicted with a mean absolute error of "
        f"{found['mean_absolute_error']:.1%} "
        f"(median {found['median_absolute_error']:.1%}, signed {found['median_signed_error']:+.1%}, worst "
        f"{found['worst_error']:+.1%}: {found['worst_run']}).",
        f"GPU memory within {found['gpu_memory_mean_absolute_error']:.1%} on average "
        f"(worst {found['gpu_memory_worst_error']:+.1%}), CPU memory within "
        f"{found['cpu_memory_mean_absolute_error']:.1%}.",
    ]
    words += [
        f"Context {ranking['context_len']}: the policy predicted best ({ranking['predicted_best']}) reaches "
        f"{ranking['reached']:.1%} of the best measured ({ranking['measured_best']})."
        for ranking in found["rankings"]
    ]
    wrong = ", ".join(f"{term} in {count}" for term, count in found["wrong_terms"].items())
    return " ".join([*words, f"Terms that explain most of a gap: {wrong}."])


def _seconds(value: float) -> str:
    return format_seconds(value) if value > 0 else "0 s"


def _signed(value: float) -> str:
    return f"{'-' if value < 0 else '+'}{_seconds(abs(value))}"


def _ratio(predicted: float, measured: float) -> str:
    return f"{predicted / measured - 1:+.0%}" if measured > 0 else "-"
