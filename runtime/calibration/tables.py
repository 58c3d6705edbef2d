"""The results of a calibration as rows for a table."""

from runtime.calibration.numbers import Text, flops_text, rate_text, rows_text, seconds_text, size_text
from runtime.calibration.results import Calibration, Spread, Timing

Row = tuple[str, str, str, str]
COLUMNS = ("measured", "median", "lowest to highest", "repeats")


def result_rows(calibration: Calibration) -> list[Row]:
    """(what, median, range, repeats) of every point that was measured."""
    c = calibration
    rows: list[Row] = []
    for name, link in (("HTOD", c.htod), ("DTOH", c.dtoh)):
        rows += [_row(f"{name} copy, {size_text(t.size)}", t.bytes_per_s, rate_text) for t in link.timings]
        rows.append(_row(f"{name} latency, 1 KiB", link.latency, seconds_text))
    rows.append(_row("copies both ways at once", c.both_ways, rate_text))
    rows.append(_row("CPU read, many threads", c.cpu_read.bytes_per_s, rate_text))
    rows.append(_row("CPU read, 1 thread", c.cpu_read_one_thread.bytes_per_s, rate_text))
    rows.append(_row("GPU copy, reads and writes", c.gpu_copy.bytes_per_s, rate_text))
    rows += _attention_rows(c)
    rows.append(_row("CPU attention beside HTOD copies", c.contention.attention, rate_text))
    rows.append(_row("HTOD copies beside CPU attention", c.contention.copies, rate_text))
    rows += _matmul_rows("CPU", c.cpu_linear, c.cpu_experts, c.dtype)
    if c.machine.has_gpu:
        rows += _matmul_rows("GPU", c.gpu_linear, c.gpu_experts, c.dtype)
    return rows + _overhead_rows(c) + _disk_rows(c)


def _attention_rows(c: Calibration) -> list[Row]:
    rows = [_row(f"CPU decode attention, context {t.size}", t.bytes_per_s, rate_text) for t in c.cpu_decode]
    for name, timings in (("paged", c.gpu_decode), ("contiguous", c.gpu_decode_contiguous)):
        rows += [_row(f"GPU decode attention, {name}, context {t.size}", t.bytes_per_s, rate_text) for t in timings]
    return rows + [_row(f"GPU prefill attention, prompt {t.size}", t.flops_per_s, flops_text) for t in c.gpu_prefill]


def _matmul_rows(
    level: str, linear: dict[str, tuple[Timing, ...]], experts: tuple[Timing, ...], dtype: str
) -> list[Row]:
    rows = []
    for name, timings in linear.items():
        rows += [_matmul_row(f"{level} linear {name}, {rows_text(t.size)}", t) for t in timings]
    return rows + [_matmul_row(f"{level} experts {dtype}, {rows_text(t.size)} each", t) for t in experts]


def _matmul_row(name: str, timing: Timing) -> Row:
    """Arithmetic, with the bytes per second beside it."""
    what, rate, extent, repeats = _row(name, timing.flops_per_s, flops_text)
    return what, f"{rate} = {rate_text(timing.bytes_per_s.median)}", extent, repeats


def _overhead_rows(c: Calibration) -> list[Row]:
    if c.overhead is None:
        return []
    found = {
        "least time of a GPU task": c.overhead.gpu,
        "least time of a GPU task, a graph": c.overhead.graph,
        "least time of a CPU task": c.overhead.cpu,
        "an expert cache's decision": c.overhead.gate,
    }
    return [_row(name, measured, seconds_text) for name, measured in found.items() if measured is not None]


def _disk_rows(c: Calibration) -> list[Row]:
    if c.disk is None:
        return []
    return [
        _row("disk read", c.disk.read.bytes_per_s, rate_text),
        _row("disk write", c.disk.write.bytes_per_s, rate_text),
        _row("disk read latency, 4 KiB", c.disk.read_latency, seconds_text),
        _row("disk write latency, 4 KiB", c.disk.write_latency, seconds_text),
    ]


def _row(name: str, spread: Spread, text: Text) -> Row:
    return name, text(spread.median), f"{text(spread.lowest)} to {text(spread.highest)}", str(spread.repeats)
