"""Times work on a CPU or a CUDA device, and makes the random data it runs on."""

import math
from collections.abc import Callable
from time import perf_counter

import torch

from runtime.calibration.plan import Effort
from runtime.calibration.results import Timing

MOST_CALLS = 1000
_BLOCK = 2**22  # elements of the random pattern that large tensors repeat
_FEWEST = 3


def synchronise(device: torch.device) -> None:
    """Waits until all work queued on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def warm_up(device: torch.device, seconds: float) -> None:
    """Keeps `device` busy until its clock has risen and threads are spread over its cores."""
    square = random_tensor((512, 512), torch.float32, device)
    start = perf_counter()
    while perf_counter() - start < seconds:
        square @ square
        synchronise(device)


def time_calls(
    call: Callable[[], object], device: torch.device, effort: Effort, size: int, nbytes: float = 0.0, flops: float = 0.0
) -> Timing:
    """Seconds per call, several times over, after a warm-up; `nbytes` and `flops` are those of one call."""
    call()
    synchronise(device)
    start = perf_counter()
    call()
    synchronise(device)
    once = max(perf_counter() - start, 1e-9)
    calls = min(MOST_CALLS, max(1, math.ceil(effort.shortest / once)))
    affordable = int(effort.seconds / (once * calls))
    repeats = min(effort.repeats, max(_FEWEST, affordable))
    timer = _cuda_seconds if device.type == "cuda" else _cpu_seconds
    return Timing(size, tuple(timer(call, calls) for _ in range(repeats)), nbytes, flops)


def _cpu_seconds(call: Callable[[], object], calls: int) -> float:
    start = perf_counter()
    for _ in range(calls):
        call()
    return (perf_counter() - start) / calls


def _cuda_seconds(call: Callable[[], object], calls: int) -> float:
    before, after = new_event(enable_timing=True), new_event(enable_timing=True)
    before.record()
    for _ in range(calls):
        call()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1e3 / calls  # it counts milliseconds


def new_event(enable_timing: bool = False, blocking: bool = False) -> torch.cuda.Event:
    """A CUDA event (PyTorch leaves its constructor untyped)."""
    return torch.cuda.Event(enable_timing=enable_timing, blocking=blocking)  # type: ignore[no-untyped-call]


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """A CUDA stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> torch.Tensor:
    """Normally distributed values; a tensor above 4 Mi elements repeats a pattern of that many, in pages of its own."""
    elements = math.prod(shape)
    block = (torch.randn(min(elements, _BLOCK)) * scale).to(dtype).to(device)
    out = torch.empty(elements, dtype=dtype, device=device)
    for start in range(0, elements, _BLOCK):
        part = out[start : start + _BLOCK]
        part.copy_(block[: part.numel()])
    return out.view(shape)
