"""Measured quantities as entries of a profile: value with unit, kind, source, and the spread as a note."""

from collections.abc import Callable
from typing import Any

from runtime.calibration.results import Spread, Timing

SOURCE = "calibration"
_PREFIXES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
_DIGITS = 4
Text = Callable[[float], str]


def rate_text(value: float) -> str:
    """A bandwidth in decimal units, four digits: "55.31 GB/s"."""
    return _scaled(value, "B/s")


def flops_text(value: float) -> str:
    """A compute rate, four digits: "4.873 TFLOP/s"."""
    return _scaled(value, "FLOP/s")


def seconds_text(value: float) -> str:
    """A duration in microseconds, four digits."""
    return f"{value * 1e6:.{_DIGITS}g} us" if value < 9.9e-3 else f"{value:.{_DIGITS}g} s"


def bytes_text(value: int) -> str:
    """A memory size to the byte."""
    return f"{value} B"


def rows_text(value: int) -> str:
    """ "1 row", "1,024 rows"."""
    return "1 row" if value == 1 else f"{value:,} rows"


def size_text(value: int) -> str:
    """A size of a copy in whole binary units: "64 KiB"."""
    return f"{value // 2**20} MiB" if value % 2**20 == 0 else f"{value // 2**10} KiB"


def spread_text(spread: Spread, text: Text) -> str:
    """ "median of 20, 54.9 GB/s to 55.4 GB/s"."""
    return f"median of {spread.repeats}, {text(spread.lowest)} to {text(spread.highest)}"


def entry(value: str, note: str | None = None, kind: str = "measured", **fields: Any) -> dict[str, Any]:
    """One number of a profile."""
    return {**fields, "value": value, "kind": kind, "source": SOURCE, **({"note": note} if note else {})}


def spread_entry(spread: Spread, text: Text, words: str = "") -> dict[str, Any]:
    """The median of repeats, with their range and `words` in the note."""
    return entry(text(spread.median), "; ".join(filter(None, (words, spread_text(spread, text)))))


def highest_entry(candidates: dict[str, float], text: Text) -> dict[str, Any]:
    """The highest of several rates as a roof; the note lists them all."""
    listed = ", ".join(f"{name} {text(value)}" for name, value in candidates.items())
    return entry(text(max(candidates.values())), f"highest measured: {listed}")


def by_size(timings: tuple[Timing, ...]) -> str:
    """ "64 KiB 11.2 GB/s, 1 MiB 48 GB/s", medians."""
    return ", ".join(f"{size_text(t.size)} {rate_text(t.bytes_per_s.median)}" for t in timings)


def _scaled(value: float, unit: str) -> str:
    prefix, scale = next(((p, s) for p, s in _PREFIXES if value >= s), ("", 1.0))
    return f"{value / scale:.{_DIGITS}g} {prefix}{unit}"
