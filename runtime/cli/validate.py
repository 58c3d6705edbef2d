"""`hrm validate`: runs policies on this machine and reports predicted against measured."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.cli import options as opt

if TYPE_CHECKING:
    from runtime.validation.report import NotRun, RunCheck, ValidationReport
    from runtime.validation.validate import Validation


WIDE = 130  # columns of a terminal that shows everything


def validate(
    profile: opt.ProfileOption,
    policies: Annotated[
        list[Path] | None, typer.Argument(help="Policies as YAML instead of searched ones; same as --policies.")
    ] = None,
    policies_option: Annotated[
        list[Path] | None, typer.Option("--policies", help="A policy as YAML; may be given several times.")
    ] = None,
    model: Annotated[Path | None, typer.Option("--model", "-m", help="Checkpoint directory, as on the hub.")] = None,
    synthetic: Annotated[
        str | None,
        typer.Option(help="Random weights: a shipped model's name, or a config.json. Default: mixtral-tiny."),
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Only the first layers of --synthetic.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; default: the model's.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; default: cuda where there is one.")] = None,
    gpu_memory: Annotated[str | None, typer.Option(help="Use no more GPU memory than this, such as 16GiB.")] = None,
    cpu_memory: Annotated[str | None, typer.Option(help="Search for no more CPU memory than this.")] = None,
    schedules: Annotated[str | None, typer.Option(help="Such as auto,cgopipe; default: all.")] = None,
    contexts: Annotated[str | None, typer.Option(help="Tokens per sequence while decoding. Default: 64,256.")] = None,
    batches: Annotated[
        str | None, typer.Option(help="Largest batch sizes, such as 256,64. Default: the best one's, half, a quarter.")
    ] = None,
    passes: Annotated[int, typer.Option(min=1, help="Measured passes of every policy.")] = 3,
    gen_len: Annotated[int, typer.Option(min=2, help="Tokens per request that policies are searched for.")] = 16,
    quick: Annotated[bool, typer.Option("--quick", help="One context, and two batches of each schedule.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write everything as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a parity plot: .png, .svg or .pdf.")] = None,
    gantt: Annotated[
        Path | None, typer.Option(help="Write FILE-worst and FILE-best: both timelines of these two policies.")
    ] = None,
    json: opt.JsonOption = False,
) -> None:
    """Run policies on this machine and report predicted against measured: pass time, memory, and which term is wrong.

    Without policies, the best one of every schedule on the profile (hrm calibrate writes it), and smaller batches.
    """
    from hrm.cli.output import check_figure, check_writable, print_json
    from hrm.cli.progress import progress_bar
    from runtime.cli.requirements import require_runtime
    from runtime.validation.options import ValidateOptions, parse_bytes, parse_names, parse_numbers

    options = ValidateOptions(
        profile, model, synthetic, layers, dtype, device,
        parse_bytes(gpu_memory, "--gpu-memory"), parse_bytes(cpu_memory, "--cpu-memory"), parse_names(schedules),
        (*(policies or ()), *(policies_option or ())), parse_numbers(contexts, "--contexts"),
        parse_numbers(batches, "--batches"), passes, gen_len, quick,
    )  # fmt: skip
    options.check()
    check_writable(report)
    check_figure(plot)
    check_figure(gantt)
    require_runtime()
    from runtime.validation.summary import report_json
    from runtime.validation.validate import validate as run_validation

    result = run_validation(options, progress_bar, _tell)
    _write(result, report, plot, gantt)
    print_json(report_json(result.report)) if json else _print(result.report)


def _tell(result: RunCheck | NotRun) -> None:
    """A line for each policy, so that nobody waits in the dark."""
    from runtime.validation.tables import describe_result

    print(describe_result(result), file=sys.stderr, flush=True)


def _write(result: Validation, report: Path | None, plot: Path | None, gantt: Path | None) -> None:
    written: list[Path] = []
    if report is not None:
        from runtime.validation.summary import write_report

        write_report(result.report, report)
        written.append(report)
    if result.report.runs and (plot is not None or gantt is not None):
        from runtime.validation.figures import save_figures

        written += save_figures(result, plot, gantt)
    for path in written:
        print(f"Wrote {path}", file=sys.stderr)


def _print(report: ValidationReport) -> None:
    from hrm.cli.output import print_table, print_text
    from runtime.validation.summary import worst_run
    from runtime.validation.tables import (
        COLUMNS,
        NARROW,
        chosen_columns,
        describe_errors,
        describe_machine,
        explanation_rows,
        kind_rows,
        not_run_rows,
        run_rows,
        title,
    )

    columns = COLUMNS if shutil.get_terminal_size().columns >= WIDE else NARROW
    print_table(title(report), columns, chosen_columns(run_rows(report), columns))
    print_text(describe_machine(report.machine))
    print_text(describe_errors(report) + "\n")
    if report.runs:
        worst = worst_run(report)
        where = f"{worst.label}, context {worst.context_len}"
        terms = ("term", "measured - predicted", "of the gap")
        print_table(f"Worst: {where}; its busiest queue is {worst.explanation.queue}", terms, explanation_rows(worst))
        print_table("Its tasks", ("kind", "queue", "tasks", "measured", "predicted", "error"), kind_rows(worst))
    for name, entries in (("Left out: does not fit the profile", report.skipped), ("Failed", report.failed)):
        if entries:
            print_table(name, ("policy", "context", "reason"), not_run_rows(entries), numeric_from=3)
