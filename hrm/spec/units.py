"""Quantities as text with a unit at the border, SI floats inside.

Decimal (kB, MB, GB) and binary (KiB, MiB, GiB) multiples are different units here and are never confused:
bandwidths print in decimal units, memory sizes in binary ones.
"""

import math
import re
import reprlib

from hrm.errors import UnitError
from hrm.spec.suggest import unknown_name

_DECIMAL = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_BINARY = {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}
_BYTES = {**_DECIMAL, **_BINARY}
_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}

_UNITS: dict[str, dict[str, float]] = {
    "bytes": _BYTES,
    "bytes_per_s": {f"{unit}/s": scale for unit, scale in _BYTES.items()},
    "flops_per_s": {
        **{f"{prefix}FLOP/s": scale for prefix, scale in _PREFIXES.items()},
        **{f"{prefix}FLOPS": scale for prefix, scale in _PREFIXES.items()},
        **{f"{prefix}OPS": _PREFIXES[prefix] for prefix in ("G", "T", "P")},
    },
    "seconds": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9},
    "flops_per_byte": {"FLOP/B": 1.0, "flops/byte": 1.0},
    "ratio": {"%": 0.01},
}
_EXAMPLES = {
    "bytes": "16 GiB",
    "bytes_per_s": "320 GB/s",
    "flops_per_s": "65 TFLOP/s",
    "seconds": "10 us",
    "flops_per_byte": "81 FLOP/B",
    "ratio": "62 %",
}
_QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:nan|inf(?:inity)?|(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?))\s*(?P<unit>[^\s\d+.-].*)?",
    re.IGNORECASE | re.ASCII,
)
_LARGEST = 1e30


def parse_quantity(text: object, dimension: str, where: str) -> float:
    """The SI value of a quantity written with its unit, such as "320 GB/s".

    `dimension` is one of bytes, bytes_per_s, flops_per_s, seconds, flops_per_byte, ratio (written in %);
    `where` names the file and field for the message, e.g. "t4.yaml: gpu.memory_bandwidth".
    Units are case-sensitive. Raises UnitError for anything else than a positive, finite quantity of that
    dimension up to 1e30, in particular for a bare number; UnknownNameError for an unknown dimension.
    """
    if dimension not in _UNITS:
        raise unknown_name("dimension", dimension, _UNITS, where)
    number, unit = _split(text, dimension, where)
    scale = _scale(unit, text, dimension, where)
    value = number * scale if scale >= 1 else number / round(1 / scale)  # 1e-6 itself is not exact in binary
    if not math.isfinite(value):
        raise _unit_error(where, text, "is not a finite number", dimension)
    if value <= 0:
        raise _unit_error(where, text, "must be above zero", dimension)
    if value > _LARGEST:
        raise _unit_error(where, text, "is absurdly large", dimension)
    return value


def _split(text: object, dimension: str, where: str) -> tuple[float, str]:
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        raise _unit_error(where, text, "is a bare number without a unit", dimension)
    if not isinstance(text, str):
        raise _unit_error(where, text, "is not a quantity with a unit", dimension)
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise _unit_error(where, text, "is not a quantity with a unit", dimension)
    if match["unit"] is None:
        raise _unit_error(where, text, "is a bare number without a unit", dimension)
    return float(match["number"]), match["unit"]


def _scale(unit: str, text: object, dimension: str, where: str) -> float:
    scales = _UNITS[dimension]
    if unit not in scales:
        known = ", ".join(scales)
        shown = reprlib.repr(unit)
        raise _unit_error(where, text, f"has unit {shown}, not one of {dimension} ({known})", dimension)
    return scales[unit]


def _unit_error(where: str, text: object, wrong: str, dimension: str) -> UnitError:
    return UnitError(f'{where}: {reprlib.repr(text)} {wrong}; write "{_EXAMPLES[dimension]}"')


def format_bytes(value: float) -> str:
    """A memory size for people, three significant digits in binary units: "15 GiB"."""
    return _format(value, {"B": 1.0, **_BINARY})


def format_rate(value: float) -> str:
    """A bandwidth for people, three significant digits in decimal units: "320 GB/s"."""
    return _format(value, {f"{unit}/s": scale for unit, scale in _DECIMAL.items()})


def format_flops_rate(value: float) -> str:
    """A compute rate for people, three significant digits: "65 TFLOP/s"."""
    return _format(value, {f"{prefix}FLOP/s": scale for prefix, scale in _PREFIXES.items()})


def format_seconds(value: float) -> str:
    """A duration for people, three significant digits from ns to s: "12.3 ms"."""
    return _format(value, {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0})


def _format(value: float, units: dict[str, float]) -> str:
    """`units` ascend; the largest not above the value (to three digits) is used, else the smallest."""
    unit = next(iter(units))
    for name, scale in units.items():
        if abs(value) >= 0.9995 * scale:
            unit = name
    scaled = value / units[unit]
    number = f"{scaled:.0f}" if 999.5 <= abs(scaled) < 1e15 else f"{scaled:.3g}"
    return f"{number} {unit}"
