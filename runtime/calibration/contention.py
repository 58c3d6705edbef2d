"""CPU decode attention while copies to the GPU run: what each is left with."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from time import perf_counter

import torch

from runtime.calibration.attention import cpu_decode, decode_step
from runtime.calibration.links import CopyBuffers, copy_buffers
from runtime.calibration.plan import Plan
from runtime.calibration.results import ContentionResult, spread
from runtime.calibration.timing import new_event, new_stream

_WINDOWS = 5
_QUEUED = 2  # copies kept waiting behind the running one


@dataclass
class _Copies:
    """Bytes copied so far by the thread that copies; raised errors end up in `failure`."""

    bytes: int = 0
    failure: BaseException | None = None


def measure_contention(buffers: CopyBuffers, plan: Plan, dtype: torch.dtype) -> ContentionResult:
    """Bytes/s of attention and of copies of the largest size, each while the other runs, in a few windows of time."""
    data = decode_step(plan.shapes, dtype, plan.contexts[-1], plan.kv_bytes)
    step = cpu_decode(data)
    step()
    attention, copies = [], []
    with _copying(buffers, plan.copy_sizes[-1]) as progress:
        while not progress.bytes and progress.failure is None:
            step()
        for _ in range(_WINDOWS):
            if progress.failure is not None:
                raise progress.failure
            steps, copied, seconds = _window(step, progress, plan.contention_seconds)
            attention.append(steps * data.bytes / seconds)
            copies.append(copied / seconds)
    return ContentionResult(spread(tuple(attention)), spread(tuple(copies)))


def _window(step: Callable[[], None], progress: _Copies, seconds: float) -> tuple[int, int, float]:
    """Steps done, bytes copied and seconds of a window that ends once a copy has ended and `seconds` are over."""
    before, start, steps = progress.bytes, perf_counter(), 0
    while perf_counter() - start < seconds or progress.bytes == before:
        step()
        steps += 1
        if progress.failure is not None:
            break
    return steps, progress.bytes - before, perf_counter() - start


@contextmanager
def copying(device: torch.device, size: int) -> Iterator[None]:
    """Copies of `size` bytes to a GPU without pause, as weights are streamed in every pass; nothing without one."""
    if device.type != "cuda":
        yield
        return
    with _copying(copy_buffers(size, device), size) as progress:
        yield
    if progress.failure is not None:
        raise progress.failure


@contextmanager
def _copying(buffers: CopyBuffers, size: int) -> Iterator[_Copies]:
    """Copies to the device without pause in a thread of their own."""
    progress, stop = _Copies(), Event()
    thread = Thread(target=_copy_until, args=(buffers, size, progress, stop), daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        stop.set()
        thread.join()


def _copy_until(buffers: CopyBuffers, size: int, progress: _Copies, stop: Event) -> None:
    try:
        if buffers.device.device.type == "cuda":
            _queue_copies(buffers, size, progress, stop)
        else:
            for target, source in buffers.pairs(size, to_device=True):
                target.copy_(source)
                progress.bytes += size
                if stop.is_set():
                    return
    except BaseException as failure:
        progress.failure = failure


def _queue_copies(buffers: CopyBuffers, size: int, progress: _Copies, stop: Event) -> None:
    stream, ends = new_stream(buffers.device.device), deque[torch.cuda.Event]()
    with torch.cuda.stream(stream):
        for target, source in buffers.pairs(size, to_device=True):
            target.copy_(source, non_blocking=True)
            ends.append(new_event(blocking=True))
            ends[-1].record()
            if len(ends) > _QUEUED:
                ends.popleft().synchronize()
                progress.bytes += size
            if stop.is_set():
                break
    stream.synchronize()
