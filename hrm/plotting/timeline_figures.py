"""Whole figures of timelines and of throughputs: what the command line and the notebooks save."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from hrm.plotting.compare_bars import Bar, plot_compare_bars
from hrm.plotting.gantt import plot_gantt
from hrm.plotting.gantt_bars import gantt_window
from hrm.plotting.gantt_kinds import legend_rows
from hrm.plotting.page import text_size
from hrm.plotting.style import LABEL_SIZE, style
from hrm.predict.timeline import Timeline

WIDTH = 14.5  # inches
ROW = 0.68  # inches per queue


def gantt_figure(timeline: Timeline, layers: tuple[int, int] | None = None) -> Figure:
    """One timeline, a row per queue.

    Raises:
        HrmError: as `plot_gantt`.
    """
    window = gantt_window(timeline, layers)
    shown = np.flatnonzero((timeline.end > window.start) & (timeline.start < window.end))
    kinds = {timeline.graph.tasks[i].kind for i in shown}
    above, below = 0.5, 0.75 + 0.28 * legend_rows(len(kinds))
    height = ROW * (len(timeline.graph.queues) + 0.35) + above + below
    with style():
        figure = Figure(figsize=(WIDTH, height))
        figure.subplots_adjust(left=0.085, right=0.985, top=1 - above / height, bottom=below / height)
        plot_gantt(timeline, figure.subplots(), layers)
    return figure


def compare_figure(bars: Sequence[Bar], unit: str = "tokens/s") -> Figure:
    """Schedules or systems side by side, a bar each.

    Raises:
        HrmError: as `plot_compare_bars`.
    """
    above, below = 0.2, 0.7
    left = 0.3 + max((text_size(bar.label, LABEL_SIZE, False)[0] for bar in bars), default=0.0) / 72
    width, height = left + 7.8, 0.55 * max(len(bars), 1) + above + below
    with style():
        figure = Figure(figsize=(width, height))
        figure.subplots_adjust(left=left / width, right=0.98, top=1 - above / height, bottom=below / height)
        plot_compare_bars(bars, figure.subplots(), unit)
    return figure
