"""`hrm routing`: what a routing trace says about experts: skew, distinct experts, reuse, hit rates."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.cli import options as opt
from hrm.errors import HrmError

if TYPE_CHECKING:
    from hrm.predict.path_predictions import PathPredictions
    from hrm.predict.routing_stats import RoutingStats
    from hrm.predict.routing_trace import RoutingTrace


def routing(
    trace: Annotated[Path, typer.Argument(help="Routing trace (.npz) of hrm run --trace-routing.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Check it against this model: shipped name or config.json.")
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Predictions for it (hrm predictor evaluate): adds the predictive cache."),
    ] = None,
    fetches_per_layer: Annotated[
        float | None, typer.Option(help="Experts that the link copies in a layer's time. Default: no limit.")
    ] = None,
    batches: Annotated[str | None, typer.Option(help="Batch sizes. Default: 1,4,16, as far as it has prompts.")] = None,
    prompts: Annotated[int | None, typer.Option(help="Only the prompts with the lowest numbers, so many.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write five figures into this folder.")] = None,
    json: opt.JsonOption = False,
) -> None:
    """Show which experts a recorded run used: skew, distinct experts per batch, reuse, hit rate against cache size.

    Caches are replayed on decode steps, in batches of prompts in the order of their numbers.
    """
    from hrm.cli.output import print_json
    from hrm.cli.progress import progress_bar
    from hrm.cli.routing_tables import print_routing
    from hrm.predict.routing_stats import routing_stats
    from hrm.report.routing_report import routing_report

    sizes = None if batches is None else parse_batches(batches)
    if fetches_per_layer is not None and predictions is None:
        raise HrmError("--fetches-per-layer is for the predictive cache; give --predictions too")
    recorded, predicted = _read(trace, model, predictions, prompts)
    _make_folder(plot)
    with progress_bar("caches replayed") as update:
        stats = routing_stats(recorded, sizes, predicted, update, fetches_per_layer)
    if plot is not None:
        _write_figures(stats, plot)
    if json:
        print_json(routing_report(stats))
    else:
        print_routing(stats)


def parse_batches(text: str) -> tuple[int, ...]:
    """Batch sizes, rising.

    Raises:
        HrmError: not whole numbers from 1 on.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 and int(part) > 0 for part in parts):
        raise HrmError(f"--batches {text[:80]!r}: give whole numbers from 1 on, such as 1,4,16")
    return tuple(sorted({int(part) for part in parts}))


def _read(
    path: Path, model: str | None, predictions: Path | None, prompts: int | None
) -> tuple[RoutingTrace, PathPredictions | None]:
    from hrm.predict.routing_demand import first_prompts
    from hrm.predict.routing_predictions import load_predictions
    from hrm.predict.routing_trace_file import load_routing_trace
    from hrm.spec.model_config import load_model

    trace = load_routing_trace(path, None if model is None else load_model(model))
    predicted: PathPredictions | None = None if predictions is None else load_predictions(predictions, trace)
    if prompts is None:
        return trace, predicted
    kept, rows = first_prompts(trace, prompts)
    return kept, None if predicted is None else predicted.rows(rows)


def _make_folder(path: Path | None) -> None:
    if path is not None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HrmError(f"--plot {path}: cannot be made ({error.strerror}); name a folder") from None


def _write_figures(stats: RoutingStats, folder: Path) -> None:
    from hrm.plotting.figures import save_figure
    from hrm.plotting.routing_figures import routing_figures

    for name, figure in routing_figures(stats):
        save_figure(figure, folder / f"{name}.png")
        print(f"Wrote {folder / name}.png", file=sys.stderr)
