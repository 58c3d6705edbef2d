"""How many tasks of a host lane are done, in a word that lanes of the GPU wait for by themselves.

A thread that issues to the GPU so need not wait for what the CPU computes: it queues the wait, then everything behind.
"""

import ctypes
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from runtime.memory.host_buffer import HostBuffer

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
ALL_BITS = 0xFFFFFFFF
AT_LEAST = 0  # CU_STREAM_WAIT_VALUE_GEQ, which counts on past 2^32


@dataclass(frozen=True)
class Signal:
    """Where compiled code says that nothing can keep it from being done with a task, and that it is: addresses of two
    words, and what it writes there. Neither needs Python's lock.
    """

    sure: int
    done: int
    value: int


class HostCounter:
    """Counts on from pass to pass: `begin` a pass of so many tasks, then `reach` 1, 2, ... of them, or `signal` who
    does.
    """

    def __init__(self) -> None:
        self._buffer = HostBuffer(2 * torch.int32.itemsize)
        self._buffer.lock()
        self._buffer.bytes.zero_()
        self._at = at = self._buffer.bytes.data_ptr()
        self._done, self._sure = ctypes.c_uint32.from_address(at), ctypes.c_uint32.from_address(at + 4)
        self._base = self._top = 0

    def begin(self, tasks: int) -> None:
        """A pass, once all of the one before are reached."""
        self._base, self._top = self._top, self._top + tasks

    def reach(self, count: int) -> None:
        """So many of the pass's tasks are done."""
        self._done.value = self._sure.value = (self._base + count) & ALL_BITS

    def reach_all(self) -> None:
        """Nobody is to wait any longer."""
        self._done.value = self._sure.value = self._top & ALL_BITS

    def signal(self, count: int) -> Signal:
        """For the task with which so many of the pass's are done."""
        return Signal(self._at + 4, self._at, (self._base + count) & ALL_BITS)

    def is_sure(self, count: int) -> bool:
        """Whether so many will be done whatever happens. Only then may a lane wait for them: what the driver does for a
        thread can wait for the device, with Python's lock in hand, and so for a lane that waits for another thread.
        """
        behind = (self._sure.value - self._base - count) & ALL_BITS
        return behind <= ALL_BITS >> 1

    def hold(self, stream: torch.cuda.Stream, count: int) -> None:
        """What is queued on the stream from here on waits until so many of the pass's tasks are done."""
        code = _wait_value()(stream.cuda_stream, self._at, (self._base + count) & ALL_BITS)
        if code != 0:
            raise RuntimeError(f"the driver refuses to wait for a word of page-locked memory (error {code})")


def make_counter(stream: torch.cuda.Stream) -> HostCounter | None:
    """A counter, where lanes such as this one can wait for it."""
    if _wait_value() is None:
        return None
    counter = HostCounter()
    try:
        counter.hold(stream, 0)
    except RuntimeError:
        return None
    return counter


@cache
def _wait_value() -> Any:
    """cuStreamWaitValue32 as a function of stream, address and value, or None where the driver lacks it."""
    try:
        found = ctypes.CDLL(LIBRARY).cuStreamWaitValue32_v2
    except (OSError, AttributeError):
        return None
    found.argtypes, found.restype = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint), ctypes.c_int
    return lambda stream, address, value: found(stream, address, value, AT_LEAST)
