"""`hrm published`: the published end-to-end results, predicted."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrm.cli import options as opt

if TYPE_CHECKING:
    from hrm.report.published import PublishedErrors, PublishedPrediction
    from hrm.report.published_auto import AutoCase


def published(
    auto: Annotated[bool, typer.Option("--auto/--no-auto", help="Also search what auto would reach.")] = True,
    plot: Annotated[Path | None, typer.Option(help="Write a parity plot: .png, .svg or .pdf.")] = None,
    json: opt.JsonOption = False,
) -> None:
    """Predict every published throughput of MoE-Lightning, FlexGen and DeepSpeed, with the published policies.

    Machine constants are from datasheets and published component measurements; nothing is fitted to the throughputs.
    """
    from hrm.cli.output import check_figure, print_json, print_text
    from hrm.cli.progress import progress_bar
    from hrm.report.published import diagnosis, predict_published, published_errors
    from hrm.report.published_auto import auto_case, published_cases
    from hrm.report.published_text import describe_diagnosis

    check_figure(plot)
    with progress_bar("published rows simulated") as update:
        predictions = predict_published(update)
    cases = []
    if auto:
        with progress_bar("cases searched for auto") as update:
            for i, case in enumerate(names := published_cases(predictions)):
                cases.append(auto_case(case))
                update(i + 1, len(names))
    errors, without_tensor_cores = published_errors(predictions), published_errors(diagnosis())
    if plot is not None:
        _save(predictions, plot)
    if json:
        print_json({**_report(predictions, cases, errors), "diagnosis": asdict(without_tensor_cores)})
        return
    _print(predictions, cases, errors)
    print_text(describe_diagnosis(without_tensor_cores))
    if plot is not None:
        print_text(f"Wrote {plot}")


def _save(predictions: tuple[PublishedPrediction, ...], path: Path) -> None:
    from hrm.plotting.figures import save_figure
    from hrm.plotting.parity import ParityPoint, parity_figure

    points = [
        ParityPoint(f"{p.row.setting} {p.row.system} {p.row.gen_len}", p.row.system, p.row.throughput, p.predicted)
        for p in predictions
    ]
    save_figure(parity_figure(points), path)


def _report(
    predictions: tuple[PublishedPrediction, ...], cases: list[AutoCase], errors: PublishedErrors
) -> dict[str, Any]:
    return {
        "errors": asdict(errors),
        "rows": [
            {
                **asdict(p.row),
                "predicted": p.predicted,
                "error": p.error,
                "prefill_seconds": p.prefill_seconds,
                "decode_seconds": p.decode_seconds,
                "policy": p.policy.model_dump(),
            }
            for p in predictions
        ],
        "auto": [
            {
                "setting": c.case[0],
                "workload": c.case[1],
                "gen_len": c.case[2],
                "generation_throughput": c.best.simulated.generation_throughput,
                "policy": c.best.policy.model_dump(),
            }
            for c in cases
        ],
    }


def _print(predictions: tuple[PublishedPrediction, ...], cases: list[AutoCase], errors: PublishedErrors) -> None:
    from hrm.cli.output import print_table, print_text
    from hrm.report.published_text import describe_errors, residue

    rows = [
        (
            f"{_case(p.row.case)} {p.row.system}",
            f"{p.policy.num_micro_batches} x {p.policy.micro_batch_size}",
            f"{p.row.throughput:,.1f}",
            f"{p.predicted:,.1f}",
            f"{p.error:+.0%}",
        )
        for p in sorted(predictions, key=lambda p: p.row.case)
    ]
    columns = ("machine, workload, gen_len, system", "n x mu", "publ.", "pred.", "error")
    print_table("Generated tokens/s, published and predicted, policies as published", columns, rows)
    print_text(describe_errors(errors) + "\n")
    if cases:
        _print_auto(predictions, cases)
    print_text(residue())


def _case(case: tuple[str, str, int]) -> str:
    return f"{case[0]} {case[1].removeprefix('helm_').replace('_', '-')} {case[2]}"


def _print_auto(predictions: tuple[PublishedPrediction, ...], cases: list[AutoCase]) -> None:
    from hrm.cli.output import print_table

    rows = []
    for c in cases:
        rivals = [p for p in predictions if p.row.case == c.case]
        best = max(rivals, key=lambda p: p.row.throughput)
        value, policy = c.best.simulated.generation_throughput, c.best.policy
        rows.append(
            (
                _case(c.case),
                f"{value:,.1f}",
                f"{policy.num_micro_batches} x {policy.micro_batch_size}",
                best.row.system,
                f"{best.predicted:,.1f}",
                f"{value / best.predicted:.2f}x",
            )
        )
    columns = ("case", "auto", "n x mu", "best publ.", "its pred.", "gain")
    title = "auto on the same machines: same clocks and component rates, no padding, no staging copies (simulated)"
    print_table(title, columns, rows)
