"""Schedules or systems as horizontal bars, each with what the roofs would allow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from hrm.errors import HrmError
from hrm.plotting.page import page_size, text_size
from hrm.plotting.style import COLOURS, LABEL_SIZE

HEIGHT = 0.62  # of a bar, in rows
AWAY = 8.0  # points from a bar, or its bound, to its value
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
    """Bars from top to bottom as given, with values and remarks behind them and a tick at each bound.

    Raises:
        HrmError: no bar, or a value or bound that is negative or not finite.
    """
    _check(bars)
    rows = range(len(bars))
    ax.barh(rows, [bar.seconds_or_throughput for bar in bars], height=HEIGHT, color=COLOURS["cpu"])
    ax.set_yticks(rows, [bar.label for bar in bars])
    ax.set_ylim(len(bars) - 0.5, -0.5)
    ax.set_xlim(0, _right_end(ax, bars))
    bounds = [(row, bar.bound) for row, bar in enumerate(bars) if bar.bound is not None]
    if bounds:
        at, reach = [row for row, _ in bounds], HEIGHT / 2 + 0.1
        ax.vlines([bound for _, bound in bounds], [row - reach for row in at], [row + reach for row in at],
                  color=COLOURS["text"], linewidth=1.8, label="what the roofs allow (closed form)")  # fmt: skip
        ax.legend(loc="upper right", bbox_to_anchor=(1.0, -24 / page_size(ax)[1]), borderaxespad=0.0)
    for row, bar in enumerate(bars):
        _write(ax, row, bar)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_formatter("{x:,g}")
    ax.set_xlabel(unit, loc="left")
    return ax


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
    ax.annotate(_number(bar), (bar.reach, row), xytext=(AWAY, 0), textcoords="offset points", va="center",
                fontsize=LABEL_SIZE, fontweight="bold", color=COLOURS["text"])  # fmt: skip
    if bar.note:
        behind = 2 * AWAY + text_size(_number(bar), LABEL_SIZE, True)[0]
        ax.annotate(bar.note, (bar.reach, row), xytext=(behind, 0), textcoords="offset points", va="center",
                    fontsize=LABEL_SIZE, color=COLOURS["muted"])  # fmt: skip


def _number(bar: Bar) -> str:
    value = bar.seconds_or_throughput
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
