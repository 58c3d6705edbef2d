"""Runs every measurement in turn and collects the results."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from hrm.errors import HrmError
from runtime.calibration.attention import contiguous_decode, cpu_decode, gpu_decode, measure_decode, measure_prefill
from runtime.calibration.cache_overhead import measure_gate_overhead, measure_graph_overhead
from runtime.calibration.contention import copying, measure_contention
from runtime.calibration.disk import measure_disk
from runtime.calibration.experts import expert_method, measure_cpu_experts, measure_gpu_experts
from runtime.calibration.links import copy_buffers, measure_both_ways, measure_link
from runtime.calibration.matmul import measure_linear
from runtime.calibration.memory import measure_copy, measure_cpu_read
from runtime.calibration.overhead import measure_overhead
from runtime.calibration.plan import Plan
from runtime.calibration.results import (
    Calibration,
    ContentionResult,
    LinkResult,
    MachineFacts,
    OverheadResult,
    Spread,
    Timing,
)
from runtime.calibration.timing import warm_up
from runtime.dtypes import DTYPES, torch_dtype
from runtime.kernels.cpu_attention import attention_backend

Progress = Callable[[int, int], None]
T = TypeVar("T")
_CPU = torch.device("cpu")
_STEPS = 13
_PEAK_ROWS = 3  # the largest of a series, where only the peak of a dtype is asked for


def choose_dtype(name: str | None, device: torch.device) -> str:
    """`name`, or by default bf16 where the device computes in it, else fp16.

    Raises:
        HrmError: an unknown dtype, or one that the device lacks.
    """
    supported = [d for d in DTYPES if _supports(device, d)]
    if name is not None and name not in supported:
        raise HrmError(f"--dtype {name}: must be one that this device computes in: {', '.join(supported)}")
    return name or supported[0]


def _supports(device: torch.device, dtype: str) -> bool:
    return dtype != "bf16" or device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def measure(
    plan: Plan, machine: MachineFacts, device: torch.device, dtype: str, disk: Path | None, progress: Progress
) -> Calibration:
    """All measurements; `progress` is told (steps done, of how many) after each.

    Raises:
        HrmError: a disk that cannot be measured.
    """
    done, on_gpu, kind = itertools.count(1), machine.has_gpu, torch_dtype(dtype)
    gpu_kv_bytes = plan.gpu_kv_bytes if on_gpu else plan.kv_bytes // 4  # SDPA over a mask is slow on a CPU

    def step(run: Callable[[], T]) -> T:
        result = run()
        if on_gpu:
            torch.cuda.empty_cache()
        progress(next(done), _STEPS)
        return result

    progress(0, _STEPS)
    for processor in {device, _CPU}:
        warm_up(processor, plan.effort.seconds)
    htod, dtoh, both_ways, contention = step(lambda: _links(plan, kind, device))
    cpu_read, cpu_read_one_thread = step(lambda: measure_cpu_read(plan))
    gpu_copy = step(lambda: measure_copy(plan, device))
    cpu_linear = step(lambda: _linear(plan, (dtype, "fp32"), _CPU))
    method = expert_method(kind, device)
    cpu_experts = step(lambda: _cpu_experts(plan, kind, device))
    return Calibration(
        machine=machine,
        dtype=dtype,
        model=plan.shapes.model,
        quick=plan.quick,
        htod=htod,
        dtoh=dtoh,
        both_ways=both_ways,
        contention=contention,
        cpu_read=cpu_read,
        cpu_read_one_thread=cpu_read_one_thread,
        gpu_copy=gpu_copy,
        cpu_linear=cpu_linear,
        cpu_experts=cpu_experts,
        gpu_linear=step(lambda: _linear(plan, (dtype, *DTYPES), device) if on_gpu else cpu_linear),
        gpu_experts=step(lambda: measure_gpu_experts(plan, kind, device, plan.gpu_rows if on_gpu else plan.cpu_rows)),
        cpu_decode=step(lambda: measure_decode(plan, kind, _CPU, plan.kv_bytes, cpu_decode)),
        gpu_decode=step(lambda: measure_decode(plan, kind, device, gpu_kv_bytes, gpu_decode)),
        gpu_decode_contiguous=step(lambda: measure_decode(plan, kind, device, gpu_kv_bytes, contiguous_decode)),
        gpu_prefill=step(lambda: measure_prefill(plan, kind, device)),
        disk=step(lambda: None if disk is None else measure_disk(disk, plan)),
        expert_method=method,
        attention_method=attention_backend(),
        overhead=step(lambda: _overheads(plan, kind, device)),
    )


def _overheads(plan: Plan, dtype: torch.dtype, device: torch.device) -> OverheadResult:
    graph, gate = measure_graph_overhead(plan, dtype, device), measure_gate_overhead(plan, dtype, device)
    return replace(measure_overhead(plan, dtype, device), graph=graph, gate=gate)


def _cpu_experts(plan: Plan, dtype: torch.dtype, device: torch.device) -> tuple[Timing, ...]:
    """While copies run: no pass computes experts on the CPU but one that streams others, and they share memory."""
    with copying(device, plan.copy_sizes[-1]):
        return measure_cpu_experts(plan, dtype, plan.cpu_rows)


def _links(
    plan: Plan, dtype: torch.dtype, device: torch.device
) -> tuple[LinkResult, LinkResult, Spread, ContentionResult]:
    buffers = copy_buffers(plan.copy_sizes[-1], device)
    htod, dtoh = (measure_link(buffers, plan, to_device) for to_device in (True, False))
    contention = measure_contention(buffers, plan, dtype)
    return htod, dtoh, measure_both_ways(plan.copy_sizes[-1], device, plan.effort), contention


def _linear(plan: Plan, dtypes: tuple[str, ...], device: torch.device) -> dict[str, tuple[Timing, ...]]:
    """The first of `dtypes` over all rows, the others, as far as supported, over the largest."""
    rows = plan.gpu_rows if device.type == "cuda" else plan.cpu_rows
    results: dict[str, tuple[Timing, ...]] = {}
    for dtype in dtypes:
        if dtype not in results and _supports(device, dtype):
            results[dtype] = measure_linear(plan, torch_dtype(dtype), device, rows[-_PEAK_ROWS:] if results else rows)
    return results
