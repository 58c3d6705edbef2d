"""Copies between CPU and GPU memory: by size, both ways at once, and the latency of a small one.

Without a GPU they are plain copies within CPU memory.
"""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter

import torch

from runtime.calibration.plan import Effort, Plan
from runtime.calibration.results import LinkResult, Spread, spread
from runtime.calibration.timing import new_stream, random_tensor, synchronise, time_calls

_SMALL = 1024
_PAIR_COPIES = 8  # of the largest size in each direction, per repeat
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class CopyBuffers:
    """Two byte tensors of one size: page-locked CPU memory (where there is a GPU), and GPU memory."""

    host: torch.Tensor
    device: torch.Tensor

    def pairs(self, size: int, to_device: bool) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(target, source) pieces of `size` bytes that walk through the buffers, so that no cache holds them."""
        target, source = (self.device, self.host) if to_device else (self.host, self.device)
        offsets = range(0, source.numel() - size + 1, size)
        return itertools.cycle((target[o : o + size], source[o : o + size]) for o in offsets)


def copy_buffers(nbytes: int, device: torch.device) -> CopyBuffers:
    """Buffers of `nbytes` bytes of random data."""
    elements = nbytes // 4
    host = torch.empty(elements, dtype=torch.float32, pin_memory=device.type == "cuda")
    host.copy_(random_tensor((elements,), torch.float32, _CPU))
    on_device = random_tensor((elements,), torch.float32, device)
    return CopyBuffers(host.view(torch.uint8), on_device.view(torch.uint8))


def measure_link(buffers: CopyBuffers, plan: Plan, to_device: bool) -> LinkResult:
    """One direction by size of the copy, and its latency."""
    timings = []
    for size in plan.copy_sizes:
        copy = _copier(buffers.pairs(size, to_device))
        timings.append(time_calls(copy, buffers.device.device, plan.effort, size, nbytes=size))
    return LinkResult(tuple(timings), _latency(buffers, to_device, 50 if plan.quick else 2000))


def _copier(pairs: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], object]:
    def copy() -> object:
        target, source = next(pairs)
        return target.copy_(source, non_blocking=True)

    return copy


def _latency(buffers: CopyBuffers, to_device: bool, repeats: int) -> Spread:
    copy, device = _copier(buffers.pairs(_SMALL, to_device)), buffers.device.device
    seconds = []
    for _ in range(repeats + repeats // 10):
        start = perf_counter()
        copy()
        synchronise(device)
        seconds.append(perf_counter() - start)
    return spread(tuple(seconds[repeats // 10 :]))


def measure_both_ways(nbytes: int, device: torch.device, effort: Effort) -> Spread:
    """Bytes/s of both directions together, each copying pieces of a quarter of `nbytes`."""
    inbound, outbound = copy_buffers(nbytes, device), copy_buffers(nbytes, device)
    size = nbytes // 4
    copies = (_copier(inbound.pairs(size, True)), _copier(outbound.pairs(size, False)))
    streams = [new_stream(device) for _ in copies] if device.type == "cuda" else [None, None]

    def run(i: int) -> None:
        stream = streams[i]
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            for _ in range(_PAIR_COPIES):
                copies[i]()

    rates = []
    synchronise(device)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(1 + min(10, effort.repeats)):
            start = perf_counter()
            list(pool.map(run, (0, 1)))
            synchronise(device)
            rates.append(2 * _PAIR_COPIES * size / (perf_counter() - start))
    return spread(tuple(rates[1:]))
