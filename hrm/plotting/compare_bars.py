"""Schedules or systems as horizontal bars, each with what the roofs would allow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from hrm.errors import HrmError
from hrm.plotting.page import page_size, text_size
from hrm.plotting.style import COLOURS, LABEL_SIZE

HEIGHT = 0.62  # of a bar, in rows
AWAY = 8.0  # points from a bar, or its bound, to its value
LEGEND_BELOW = 27.0  # points from the axes down to the legend
ROOM = 0.4  # of the axes' width that the longest bar keeps, however long the texts


@dataclass(frozen=True)
class Bar:
    """One schedule or system: its seconds or throughput, the closed form's (None: not known), and a remark."""

    label: str
    seconds_or_throughput: float
    bound: float | None
    note: str

    @property
    def reach(self) -> float:
        """Where bar and bound end."""
        return max(self.seconds_or_throughput, self.bound or 0.0)


def plot_compare_bars(bars: Sequence[Bar], ax: Axes, unit: str = "tokens/s") -> Axes:
    """Bars from top to bottom as given, with their values, remarks behind them, and a tick at each bound.

    Raises:
        HrmError: no bar, or a value or bound that is negative or not finite.
    """
    _check(bars)
    rows = range(len(bars))
    ax.barh(rows, [bar.seconds_or_throughput for bar in bars], height=HEIGHT, color=COLOURS["cpu"])
    ax.set_yticks(rows, [bar.label for bar in bars])
    ax.set_ylim(len(bars) - 0.5, -0.5)
    ax.set_xlim(0, _right_end(ax, bars))
    for row, bar in enumerate(bars):
        _write(ax, row, bar)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_formatter("{x:,g}")
    ax.set_xlabel(unit, loc="left")
    _draw_bounds(ax, bars)
    return ax


def _draw_bounds(ax: Axes, bars: Sequence[Bar]) -> None:
    bounds = {row: bar.bound for row, bar in enumerate(bars) if bar.bound is not None}
    if not bounds:
        return
    low, high = [row - HEIGHT / 2 - 0.1 for row in bounds], [row + HEIGHT / 2 + 0.1 for row in bounds]
    ax.vlines(list(bounds.values()), low, high, color=COLOURS["text"], linewidth=1.8)
    mark = Line2D([], [], linestyle="", marker="|", markersize=14, markeredgewidth=1.8, color=COLOURS["text"],
                  label="what the roofs allow (closed form)")  # fmt: skip
    ax.legend(handles=[mark], loc="upper right", bbox_to_anchor=(1.0, -LEGEND_BELOW / page_size(ax)[1]),
              borderaxespad=0.0, borderpad=0.0, handletextpad=0.2)  # fmt: skip


def _check(bars: Sequence[Bar]) -> None:
    if not bars:
        raise HrmError("comparison: no bar to draw; give at least one")
    for bar in bars:
        for name, value in (("value", bar.seconds_or_throughput), ("bound", bar.bound)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise HrmError(f"comparison: {name} of {bar.label!r} is {value}; give a finite number, 0 or more")


def _right_end(ax: Axes, bars: Sequence[Bar]) -> float:
    """The end of the x axis that leaves every bar room for its texts."""
    longest, width = max(bar.reach for bar in bars) or 1.0, page_size(ax)[0]
    free = [max(ROOM, 1 - (_texts_width(bar) + AWAY) / width) for bar in bars]
    return max(longest, *(bar.reach / share for bar, share in zip(bars, free, strict=True)))


def _texts_width(bar: Bar) -> float:
    note = AWAY + text_size(bar.note, LABEL_SIZE, False)[0] if bar.note else 0.0
    return AWAY + text_size(_number(bar), LABEL_SIZE, True)[0] + note


def _write(ax: Axes, row: int, bar: Bar) -> None:
    """The value inside its bar where bar and bound leave room, else behind both; the remark behind both."""
    number, value = _number(bar), bar.seconds_or_throughput
    needed, behind = text_size(number, LABEL_SIZE, True)[0] + 2 * AWAY, AWAY
    before = bar.bound if bar.bound is not None and bar.bound < value else 0.0
    inside = (value - before) * page_size(ax)[0] / ax.get_xlim()[1] > needed
    at = (value, -AWAY, "white", "right") if inside else (bar.reach, AWAY, COLOURS["text"], "left")
    _text(ax, row, number, *at, bold=True)
    if not inside:
        behind += needed - AWAY
    if bar.note:
        _text(ax, row, bar.note, bar.reach, behind, COLOURS["muted"], "left")


def _text(ax: Axes, row: int, text: str, x: float, off: float, colour: str, side: str, bold: bool = False) -> None:
    """A text that begins, or on the other side ends, `off` points from x."""
    ax.annotate(text, (x, row), xytext=(off, 0), textcoords="offset points", va="center_baseline", ha=side,
                fontsize=LABEL_SIZE, fontweight="bold" if bold else "normal", color=colour)  # fmt: skip


def _number(bar: Bar) -> str:
    value = bar.seconds_or_throughput
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
