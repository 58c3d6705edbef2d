"""The README's table of the runtime beside Hugging Face accelerate, from the results of both benchmarks.

python benchmarks/runtime_table.py [RESULT.json ...]

Reads benchmarks/results/*.json without arguments: those of decode_throughput.py and peers_accelerate.py. One table per
model, machine and limit of GPU memory. Ratios are over the fastest batch of accelerate in that mode.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
OURS, PEER = "decode_throughput", "peers_accelerate"
GIB = 1 << 30
NOTE = (
    "Decode of hrm is at the context stated in its result, which is longer than accelerate's: that is measured right "
    "behind the prompt, where it is fastest; accelerate's end to end is computed from measured steps."
)


@dataclass(frozen=True)
class Row:
    """One line; tokens_per_s is None where it ran out of memory, share_of_roof where nothing states it."""

    measured: str  # "decode" or "end to end"
    system: str
    mode: str  # "default" or "pinned" for accelerate, else ""
    batch: int | None
    tokens_per_s: float | None
    share_of_roof: float | None


@dataclass(frozen=True)
class Place:
    """What rows have to share to stand in one table."""

    model: str
    layers: int | None
    gpu: str | None
    limit: float | None

    def describe(self) -> str:
        """In words."""
        layers = f", first {self.layers} layers" if self.layers else ""
        held = f", GPU memory held to {self.limit / GIB:g} GiB by the allocator (emulated)" if self.limit else ""
        return f"{self.model}{layers}, random weights, on {self.gpu or 'the CPU in place of a GPU'}{held}"


def place_of(data: dict[str, Any]) -> Place:
    """Of one result."""
    settings = data["settings"]
    model = settings["synthetic"] if data["benchmark"] == OURS else settings["model"]
    return Place(model, settings["layers"], data["gpu"], data["gpu_memory_limit_bytes"])


def rows_of(data: dict[str, Any]) -> Iterable[Row]:
    """Of one result."""
    if data["benchmark"] == PEER:
        yield from (row for entry in data["rows"] for row in peer_rows(entry))
        return
    system, window = f"**hrm**, {data['policy']['schedule']}", data.get("window") or {}
    batch = data.get("batch", data["policy"]["batch_size"])
    if data["settings"]["mode"] == "decode" or data.get("interrupted"):  # of a run cut short, its last decode passes
        speed = window.get("tokens_per_s", data.get("tokens_per_s"))
        yield Row("decode", system, "", batch, speed, window.get("share_of_roof"))
    else:
        yield Row("end to end", system, "", batch, data.get("tokens_per_s"), None)


def peer_rows(entry: dict[str, Any]) -> Iterable[Row]:
    """Decode, and with prefill where that was measured."""
    system = "accelerate" if entry["mode"] == "default" else "accelerate, weights page-locked by hand"
    yield Row("decode", system, entry["mode"], entry["batch"], entry.get("tokens_per_s"), None)
    if "generation_tokens_per_s" in entry:
        yield Row("end to end", system, entry["mode"], entry["batch"], entry["generation_tokens_per_s"], None)


def markdown(rows: list[Row]) -> str:
    """Decode first; within it by mode and batch, slowest first."""
    lines = [
        "| measured | system | batch | tokens/s | over accelerate | over accelerate, page-locked | of the roof |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda r: (r.measured, r.mode == "", r.mode, r.batch or 0)):
        cells = [row.measured, row.system, "" if row.batch is None else f"{row.batch:,}", _speed(row.tokens_per_s)]
        cells += [_ratio(row, best(rows, row.measured, mode)) for mode in ("default", "pinned")]
        cells.append("" if row.share_of_roof is None else f"{row.share_of_roof:.1%}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def best(rows: list[Row], measured: str, mode: str) -> float | None:
    """The fastest of accelerate's batches; None where there is none."""
    speeds = [r.tokens_per_s for r in rows if (r.measured, r.mode) == (measured, mode) and r.tokens_per_s]
    return max(speeds, default=None)


def _speed(value: float | None) -> str:
    if value is None:
        return "out of memory"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _ratio(row: Row, base: float | None) -> str:
    return "" if row.mode or base is None or row.tokens_per_s is None else f"{row.tokens_per_s / base:.1f}x"


def machine_lines(results: list[dict[str, Any]]) -> str:
    """Every machine and version once."""
    found = []
    for data in results:
        libraries = ", ".join(f"{name} {number}" for name, number in data["versions"].items() if number)
        found.append(f"{data['system']}: {data['machine']}, {data['cpu_memory_bytes'] / GIB:.0f} GiB; {libraries}")
    return "\n".join(f"- {line}" for line in dict.fromkeys(found))


def load_results(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Those of the two benchmarks, in the order of their names."""
    loaded = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(paths)]
    return [data for data in loaded if isinstance(data, dict) and data.get("benchmark") in (OURS, PEER)]


def tables(results: list[dict[str, Any]]) -> str:
    """Heading, table and machines of every place."""
    parts = []
    for place in dict.fromkeys(place_of(data) for data in results):
        mine = [data for data in results if place_of(data) == place]
        rows = [row for data in mine for row in rows_of(data)]
        parts.append(f"{place.describe()}:\n\n{markdown(rows)}\n\n{NOTE}\n\n{machine_lines(mine)}")
    return "\n\n".join(parts)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path)
    paths = parser.parse_args().results or list(RESULTS.glob("*.json"))
    found = load_results(paths)
    if not found:
        raise SystemExit("runtime_table: no results of decode_throughput.py or peers_accelerate.py; run these first")
    print(tables(found))


if __name__ == "__main__":
    main()
