"""Figures of a validation: throughputs against each other, and two timelines of one pass."""

from pathlib import Path

from matplotlib.figure import Figure

from hrm.plotting.figures import save_figure
from hrm.plotting.gantt import plot_gantt_pair
from hrm.plotting.gantt_kinds import legend_rows
from hrm.plotting.parity import ParityPoint, parity_figure
from hrm.plotting.style import style
from hrm.plotting.timeline_figures import ROW, WIDTH
from hrm.predict.timeline import Timeline
from runtime.validation.report import ValidationReport
from runtime.validation.validate import Validation

TITLE, BETWEEN, AXIS = 0.5, 0.75, 0.75  # inches above each chart, below the upper one, below the lower one
LEGEND_ROW = 0.28


def parity_points(report: ValidationReport) -> list[ParityPoint]:
    """Decoded tokens/s of every run, a group per schedule that was searched."""
    return [
        ParityPoint(
            f"{run.label}, context {run.context_len}",
            run.label.split(",")[0],
            run.measured_tokens_per_s,
            run.predicted_tokens_per_s,
        )
        for run in report.runs
    ]


def validation_parity(report: ValidationReport) -> Figure:
    """Predicted against measured decoded tokens/s. Raises HrmError where nothing ran."""
    return parity_figure(
        parity_points(report), "measured (decoded tokens/s of a pass)", "predicted (decoded tokens/s of a pass)"
    )


def gantt_pair_figure(predicted: Timeline, measured: Timeline, layers: tuple[int, int] | None = None) -> Figure:
    """The predicted timeline above the measured one, on one scale.

    Raises:
        HrmError: as `plot_gantt_pair`.
    """
    chart = ROW * (len(predicted.graph.queues) + 0.35)
    below = AXIS + LEGEND_ROW * legend_rows(len({task.kind for task in predicted.graph.tasks}))
    height = 2 * (TITLE + chart) + BETWEEN + below
    with style():
        figure = Figure(figsize=(WIDTH, height))
        bottoms = (below + chart + BETWEEN + TITLE, below)
        axes = [figure.add_axes((0.085, at / height, 0.9, chart / height)) for at in bottoms]
        plot_gantt_pair(predicted, measured, axes, layers)
    return figure


def save_figures(validation: Validation, plot: Path | None, gantt: Path | None) -> list[Path]:
    """The parity plot, and both timelines of the runs predicted worst and best; the files written.

    Raises:
        HrmError: nothing ran, or a file that cannot be written.
    """
    written = []
    if plot is not None:
        save_figure(validation_parity(validation.report), plot)
        written.append(plot)
    for name, run in (("worst", validation.worst), ("best", validation.best)):
        if gantt is not None and run is not None:
            path = gantt.with_stem(f"{gantt.stem}-{name}")
            save_figure(gantt_pair_figure(run.predicted, run.measured), path)
            written.append(path)
    return written
