"""What `hrm run` says at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hrm.predict.timeline import Timeline
    from hrm.spec.policy import Policy


@dataclass(frozen=True)
class RunSummary:
    """One run, or the part of one since it was continued. Rates in tokens/s; timeline: of the last pass.

    unpredicted: why there is no prediction. earlier: requests that were finished before.
    """

    model_name: str
    device: str
    policy: Policy
    predicted_tokens_per_s: float | None
    unpredicted: str
    finished: int
    refused: int
    earlier: int
    generated_tokens: int
    passes: int
    seconds: float
    timeline: Timeline | None

    @property
    def tokens_per_s(self) -> float | None:
        """Measured, prefill included; None where nothing ran."""
        return self.generated_tokens / self.seconds if self.generated_tokens and self.seconds > 0 else None


def run_report(summary: RunSummary) -> dict[str, Any]:
    """The summary as JSON."""
    timeline = summary.timeline
    shares = {} if timeline is None else {str(r): share for r, share in timeline.utilisation.items()}
    return {
        "model": summary.model_name,
        "device": summary.device,
        "policy": summary.policy.model_dump(),
        "requests": {"finished": summary.finished, "refused": summary.refused, "finished_earlier": summary.earlier},
        "generated_tokens": summary.generated_tokens,
        "seconds": summary.seconds,
        "passes": summary.passes,
        "tokens_per_s": summary.tokens_per_s,
        "predicted_tokens_per_s": summary.predicted_tokens_per_s,
        "last_pass": None if timeline is None else {"seconds": timeline.makespan, "utilisation": shares},
    }


def print_run(summary: RunSummary) -> None:
    """The summary for people."""
    from hrm.cli.output import print_table, print_text
    from hrm.report.explain import describe_policy
    from hrm.spec.units import format_seconds

    policy, words = summary.policy, describe_policy(summary.policy)
    seconds = format_seconds(summary.seconds) if summary.seconds else "0 s"
    earlier = f", {summary.earlier:,} finished earlier" if summary.earlier else ""
    rows = [
        ("requests", f"{summary.finished:,} finished, {summary.refused:,} refused{earlier}"),
        ("generated", f"{summary.generated_tokens:,} tokens in {seconds}, {summary.passes:,} passes"),
        ("measured", _rate(summary.tokens_per_s, "")),
        ("predicted", _predicted(summary)),
        ("batch N = n x mu", f"{policy.batch_size:,} = {policy.num_micro_batches} x {policy.micro_batch_size}"),
    ]
    print_table(f"{policy.schedule}: {summary.model_name} on {summary.device}", ("", ""), rows)
    print_text(words[0].upper() + words[1:] + "\n")
    if summary.timeline is not None:
        _print_pass(summary.timeline)


def _rate(value: float | None, without: str) -> str:
    return without or "nothing ran" if value is None else f"{value:,.1f} tokens/s"


def _predicted(summary: RunSummary) -> str:
    predicted, measured = summary.predicted_tokens_per_s, summary.tokens_per_s
    text = _rate(predicted, f"none ({summary.unpredicted})")
    return f"{text} ({measured / predicted:.1%} reached)" if predicted and measured else text


def _print_pass(timeline: Timeline) -> None:
    from hrm.cli.output import print_table
    from hrm.spec.units import format_seconds

    shares, busy = timeline.utilisation, timeline.busy_seconds
    rows = [
        (str(queue), f"{len(tasks):,}", format_seconds(busy[queue]), f"{shares[queue]:.1%}")
        for queue, tasks in timeline.graph.queues.items()
    ]
    print_table(
        f"Last pass: {format_seconds(timeline.makespan)}", ("queue", "tasks", "busy", "utilisation"), rows
    )  # fmt: skip
