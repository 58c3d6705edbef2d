"""The section `efficiency` of a profile: what each class of operators reached, below the roofs above it."""

from collections.abc import Callable
from typing import Any

from runtime.calibration.numbers import entry, flops_text, rate_text, rows_text, size_text, spread_entry, spread_text
from runtime.calibration.results import Calibration, Timing
from runtime.calibration.steps import ComputeStep, compute_steps, never_falling, streaming, sustained_copy


def efficiency_section(calibration: Calibration) -> dict[str, Any]:
    """By level and operator class, and by link."""
    dtype = calibration.dtype
    gpu_attention = {
        "compute_by_tokens": _table(never_falling(calibration.gpu_prefill), dtype, _prompt),
        **_decode_attention(calibration.gpu_decode),
    }
    return {
        "gpu": {
            "linear": _matmuls(calibration.gpu_linear[dtype], dtype),
            "expert_ffn": _matmuls(calibration.gpu_experts, dtype, " per expert"),
            "attention": gpu_attention,
        },
        "cpu": {
            "linear": _matmuls(calibration.cpu_linear[dtype], dtype),
            "expert_ffn": _matmuls(calibration.cpu_experts, dtype, _cpu_rows(calibration)),
            "attention": _decode_attention(calibration.cpu_decode, _beside_copies(calibration)),
        },
        "links": _links(calibration),
    }


def _cpu_rows(calibration: Calibration) -> str:
    return " per expert, beside copies to the GPU" if calibration.machine.has_gpu else " per expert"


def _prompt(size: int) -> str:
    return f"prompts of {size:,} tokens, causal"


def _matmuls(timings: tuple[Timing, ...], dtype: str, each: str = "") -> dict[str, Any]:
    def rows(size: int) -> str:
        return rows_text(size) + each

    best, rate = streaming(timings)
    return {
        "compute_by_tokens": _table(compute_steps(timings), dtype, rows),
        "memory": spread_entry(rate, rate_text, f"weights streamed at {rows(best.size)}"),
    }


def _table(steps: tuple[ComputeStep, ...], dtype: str, describe: Callable[[int], str]) -> list[dict[str, Any]]:
    return [_step(step, dtype, describe(step.timing.size)) for step in steps]


def _step(step: ComputeStep, dtype: str, size: str) -> dict[str, Any]:
    note = f"{size}; {spread_text(step.timing.flops_per_s, flops_text)}"
    if step.is_lowered:
        note += f"; {flops_text(step.timing.flops_per_s.median)} lowered to what a larger size reaches"
    return entry(flops_text(step.rate), note, from_tokens=step.from_rows, dtype=dtype)


def _decode_attention(timings: tuple[Timing, ...], words: str = "") -> dict[str, Any]:
    """The slowest context."""
    slowest = min(timings, key=lambda t: t.bytes_per_s.median)
    by_context = ", ".join(f"{rate_text(t.bytes_per_s.median)} at context {t.size}" for t in timings)
    return {"memory": spread_entry(slowest.bytes_per_s, rate_text, f"decode, {by_context}{words}")}


def _beside_copies(calibration: Calibration) -> str:
    found = calibration.contention
    attention, copies = rate_text(found.attention.median), rate_text(found.copies.median)
    return f"; beside copies {attention}, which then run at {copies}"


def _links(calibration: Calibration) -> dict[str, Any]:
    shares = {}
    for name, link in (("htod", calibration.htod), ("dtoh", calibration.dtoh)):
        timing, rate = sustained_copy(link)
        shares[name] = spread_entry(rate, rate_text, f"copies of {size_text(timing.size)}, the slowest from 64 MiB up")
    disk = calibration.disk
    if disk is not None:
        shares["disk_read"] = spread_entry(disk.read.bytes_per_s, rate_text)
        shares["disk_write"] = spread_entry(disk.write.bytes_per_s, rate_text)
    return shares
