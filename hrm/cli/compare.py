"""`hrm compare`: every schedule with its own best policy, simulated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrm.cli import options as opt

if TYPE_CHECKING:
    from hrm.plotting.compare_bars import Bar
    from hrm.predict.rates import Rates
    from hrm.report.compare import ComparedSchedule


def compare(
    profile: opt.ProfileOption,
    model: opt.ModelOption = opt.DEFAULT_MODEL,
    workload: opt.WorkloadOption = None,
    prompt_len: opt.PromptLenOption = None,
    prompt_len_max: opt.PromptLenMaxOption = None,
    gen_len: opt.GenLenOption = None,
    padded: opt.PaddedOption = False,
    dtype: opt.DtypeOption = None,
    kv_dtype: opt.KvDtypeOption = None,
    plot: Annotated[Path | None, typer.Option(help="Write a bar chart: .png, .svg or .pdf.")] = None,
    json: opt.JsonOption = False,
) -> None:
    """Compare all schedules on one machine and workload, each with its own best policy."""
    from hrm.cli.output import check_figure, print_json, print_text
    from hrm.cli.progress import progress_bar
    from hrm.report.compare import compare_schedules

    check_figure(plot)
    read = opt.read_workload(workload, prompt_len, prompt_len_max, gen_len, padded)
    rates = opt.read_rates(profile, model, read, dtype, kv_dtype)
    with progress_bar("schedules searched and simulated") as update:
        rows = compare_schedules(rates, update)
    if plot is not None:
        from hrm.plotting.figures import save_figure
        from hrm.plotting.timeline_figures import compare_figure

        save_figure(compare_figure(_bars(rows)), plot)
    if json:
        print_json([_report(row) for row in rows])
        return
    _print(rates, rows)
    if plot is not None:
        print_text(f"Wrote {plot}")


def _bars(rows: tuple[ComparedSchedule, ...]) -> list[Bar]:
    from hrm.plotting.compare_bars import Bar

    return [
        Bar(row.schedule, row.throughput, row.best.simulated.closed_form, "") if row.best
        else Bar(row.schedule, 0.0, None, "does not fit")
        for row in rows
    ]  # fmt: skip


def _report(row: ComparedSchedule) -> dict[str, Any]:
    if row.best is None:
        return {"schedule": row.schedule, "fits": False, "reason": row.reason}
    return {
        "schedule": row.schedule,
        "fits": True,
        "generation_throughput": row.throughput,
        "closed_form_throughput": row.best.simulated.closed_form,
        "policy": row.best.policy.model_dump(),
    }


def _print(rates: Rates, rows: tuple[ComparedSchedule, ...]) -> None:
    from hrm.cli.output import print_table, print_text
    from hrm.report.explain import describe_gap

    best = rows[0].throughput
    columns = ("schedule", "tokens/s", "of best", "of roofs", "n x mu", "lost to")
    table = [_row(row, best) for row in rows]
    title = f"{rates.model.name} on {rates.machine.profile.title}: every schedule with its best policy, simulated"
    print_table(title, columns, table)
    if rows[0].best is not None:
        print_text(f"{rows[0].schedule}: {describe_gap(rows[0].best.gap)}")


def _row(row: ComparedSchedule, best: float) -> tuple[str, ...]:
    if row.best is None:
        return row.schedule, "does not fit", "", "", "", ""
    policy, simulated = row.best.policy, row.best.simulated
    return (
        row.schedule,
        f"{row.throughput:,.1f}",
        f"{row.throughput / best:.1%}",
        f"{simulated.share_of_roof:.1%}",
        f"{policy.num_micro_batches} x {policy.micro_batch_size:,}",
        row.best.gap.largest if simulated.share_of_roof < 0.99 else "-",
    )
