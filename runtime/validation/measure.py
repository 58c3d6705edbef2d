"""Runs one policy for a few passes: seconds, the timeline of the median pass, and memory."""

import time
from dataclasses import dataclass

import torch

from hrm.predict.timeline import Timeline
from hrm.schedule.slice import PassSlice
from runtime.model_memory import ModelMemory
from runtime.pass_run import PassRun
from runtime.passes import PassResult
from runtime.validation.bench import Bench, Session
from runtime.validation.cases import Case
from runtime.validation.workloads import RunShape, random_prompts


@dataclass(frozen=True)
class MeasuredMemory:
    """Bytes by part. On a GPU: the allocator's peak and what it holds; None without one."""

    gpu_parts: dict[str, int]
    cpu_parts: dict[str, int]
    gpu_peak: int | None
    gpu_reserved: int | None


@dataclass(frozen=True)
class Measured:
    """One run. slice, timeline: of the pass whose seconds are the median; prefill: the first pass and its slice."""

    pass_seconds: tuple[float, ...]
    seconds: float
    slice: PassSlice
    timeline: Timeline
    prefill: tuple[float, PassSlice] | None
    memory: MeasuredMemory
    load_seconds: float


def measure(bench: Bench, case: Case, shape: RunShape) -> Measured:
    """Loads, prefills, warms up and measures `shape.passes` passes.

    Raises:
        HrmError, torch.cuda.OutOfMemoryError: memory that cannot be had. PolicyError: the runtime cannot run it.
    """
    began = time.perf_counter()
    session = bench.open(case.policy, random_prompts(shape, bench.model.config.vocab_size))
    load_seconds = time.perf_counter() - began
    on_gpu = bench.device.torch_device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        return _run(session, shape, load_seconds, on_gpu)
    finally:
        session.close()


def _run(session: Session, shape: RunShape, load_seconds: float, on_gpu: bool) -> Measured:
    first, _ = session.step()
    for _ in range(shape.first_measured - 1):
        session.step()
    passes = [session.step() for _ in range(shape.passes)]
    result, run = _median(passes)
    session.runner.device.synchronise()
    prefill = None if session.policy.mixed_prefill else (first.seconds, first.batch.slice)
    return Measured(
        tuple(each.seconds for each, _ in passes),
        result.seconds,
        result.batch.slice,
        session.runner.timeline_of(run, result.batch.slice),
        prefill,
        _memory(session.memory, on_gpu),
        load_seconds,
    )


def _median(passes: list[tuple[PassResult, PassRun]]) -> tuple[PassResult, PassRun]:
    """The pass in the middle by seconds; of an even number, the faster of both."""
    return sorted(passes, key=lambda each: each[0].seconds)[(len(passes) - 1) // 2]


def _memory(memory: ModelMemory, on_gpu: bool) -> MeasuredMemory:
    return MeasuredMemory(
        memory.gpu_parts,
        {**memory.cpu_parts, "buffers": memory.staging_bytes},
        torch.cuda.max_memory_allocated() if on_gpu else None,
        torch.cuda.max_memory_reserved() if on_gpu else None,
    )
