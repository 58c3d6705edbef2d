"""The sections `gpu` and `cpu` of a profile: processors, memory sizes and bandwidths."""

from typing import Any

from hrm.spec.units import format_bytes
from runtime.calibration.numbers import (
    bytes_text,
    entry,
    flops_text,
    highest_entry,
    rate_text,
    seconds_text,
    spread_entry,
)
from runtime.calibration.results import Calibration, Spread, Timing
from runtime.calibration.steps import fastest_copy, streaming
from runtime.host_memory import RESERVE
from runtime.profile_limits import GPU_RESERVE, RESERVE_SHARE

GPU_OVERHEAD_WORDS = "tasks before and after attention on one token of a tiny model, one after the other"
GRAPH_OVERHEAD_WORDS = "the same tasks, each a graph"
GATE_OVERHEAD_WORDS = "an expert cache's decision, layer by layer while 16 sequences decode; experts as many, but tiny"
CPU_OVERHEAD_WORDS = "decode attention over one block of KV a sequence, no more than gives every thread a piece"


def gpu_section(calibration: Calibration) -> dict[str, Any]:
    """The GPU, or the CPU in its place."""
    machine, measured = calibration.machine, calibration.overhead
    others = {"expert FFN": calibration.gpu_experts, "prefill attention": calibration.gpu_prefill}
    bandwidths = {
        "copy, reads and writes": calibration.gpu_copy.bytes_per_s.median,
        "weights of linear layers": _streamed(calibration.gpu_linear[calibration.dtype]),
        "weights of experts": _streamed(calibration.gpu_experts),
        "decode attention over paged KV": _streamed(calibration.gpu_decode),
        "over contiguous KV": _streamed(calibration.gpu_decode_contiguous),
    }
    name = machine.gpu_name if machine.has_gpu else f"{machine.cpu_name} in place of a GPU"
    return {
        "processor": {"name": name, "peak_flops": _peaks(calibration.gpu_linear, calibration.dtype, others)},
        "memory_capacity": entry(bytes_text(machine.gpu_capacity), _gpu_capacity_note(calibration)),
        "memory_usable": entry(bytes_text(machine.gpu_usable), **_gpu_usable(calibration)),
        "memory_bandwidth": highest_entry(bandwidths, rate_text),
        **_overhead("task_overhead", measured.gpu if measured else None, GPU_OVERHEAD_WORDS),
        **_overhead("graph_overhead", measured.graph if measured else None, GRAPH_OVERHEAD_WORDS),
    }


def cpu_section(calibration: Calibration) -> dict[str, Any]:
    """The CPU and its DRAM, whose bandwidth CPU work and copies share."""
    machine, contention, measured = calibration.machine, calibration.contention, calibration.overhead
    bandwidths = {
        "plain read with many threads": calibration.cpu_read.bytes_per_s.median,
        "decode attention and copies to the GPU together": contention.together,
        "decode attention alone": _streamed(calibration.cpu_decode),
        "weights of linear layers": _streamed(calibration.cpu_linear[calibration.dtype]),
        "weights of experts": _streamed(calibration.cpu_experts),
        "copies to the GPU": fastest_copy(calibration.htod),
        "copies from the GPU": fastest_copy(calibration.dtoh),
        "copies both ways": calibration.both_ways.median,
    }
    bandwidth = highest_entry(bandwidths, rate_text)
    one = rate_text(calibration.cpu_read_one_thread.bytes_per_s.median)
    bandwidth["note"] += f"; a plain read with one thread {one}"
    usable = (
        entry(bytes_text(machine.cpu_usable), "stated by --cpu-memory", kind="fitted")
        if machine.cpu_limit
        else entry(bytes_text(machine.cpu_usable), _cpu_usable_note(machine.has_gpu))
    )
    return {
        "processor": {
            "name": machine.cpu_name,
            "cores": machine.threads,
            "peak_flops": _peaks(calibration.cpu_linear, calibration.dtype, {"expert FFN": calibration.cpu_experts}),
        },
        "memory_capacity": entry(bytes_text(machine.cpu_capacity), _cpu_capacity_note(calibration)),
        "memory_usable": usable,
        "memory_bandwidth": bandwidth,
        **_overhead("task_overhead", measured.cpu if measured else None, CPU_OVERHEAD_WORDS),
        **_overhead("gate_overhead", measured.gate if measured else None, GATE_OVERHEAD_WORDS),
    }


def _overhead(field: str, measured: Spread | None, words: str) -> dict[str, Any]:
    """The field; nothing where it was not measured."""
    return {} if measured is None else {field: spread_entry(measured, seconds_text, words)}


def _peaks(
    linear: dict[str, tuple[Timing, ...]], dtype: str, others: dict[str, tuple[Timing, ...]]
) -> dict[str, dict[str, Any]]:
    """By dtype, the highest rate of any operator that ran in it."""
    rates = {name: {"linear": _fastest(timings)} for name, timings in linear.items()}
    rates[dtype].update({name: _fastest(timings) for name, timings in others.items()})
    return {name: highest_entry(found, flops_text) for name, found in rates.items()}


def _fastest(timings: tuple[Timing, ...]) -> float:
    return max(t.flops_per_s.median for t in timings)


def _streamed(timings: tuple[Timing, ...]) -> float:
    return streaming(timings)[1].median


def _gpu_usable(calibration: Calibration) -> dict[str, str]:
    machine = calibration.machine
    if machine.gpu_limit:
        set_in = f"set in the allocator; {_reserve()}; the CUDA context lies outside it"
        where = set_in if machine.has_gpu else "of this CPU's memory"
        return {"kind": "fitted", "note": f"--gpu-memory, emulated: {where}"}
    if machine.has_gpu:
        return {"note": f"free right after the CUDA context was made; {_reserve()}"}
    return {"note": "what is available, less what the CPU keeps; in halves where no option says more"}


def _reserve() -> str:
    return f"less {format_bytes(GPU_RESERVE)}, or 1/{RESERVE_SHARE} where that is less, for workspaces and gaps"


def _gpu_capacity_note(calibration: Calibration) -> str:
    return "what the driver reports" if calibration.machine.has_gpu else "this CPU's memory, which both share"


def _cpu_capacity_note(calibration: Calibration) -> str:
    machine = calibration.machine
    if machine.cpu_limit and machine.cpu_capacity == machine.cpu_usable:
        return f"at least the {format_bytes(machine.cpu_usable)} of --cpu-memory, as the system reports no more"
    return "what the operating system reports; a virtual machine may be given more as it is used"


def _cpu_usable_note(has_gpu: bool) -> str:
    less = f"less {format_bytes(RESERVE)}, or a quarter where that is less, for the process and the system"
    return (
        f"available once the CUDA context was made, {less}"
        if has_gpu
        else "available, less the part that plays GPU memory"
    )
