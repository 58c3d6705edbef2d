"""CUDA events for marks, used again and again: making one costs more than recording it."""

from collections import deque
from collections.abc import Iterable

import torch


class SpunEvent(torch.cuda.Event):
    """An event for which a host thread spins, without Python's lock: waking one that sleeps takes tens of microseconds.

    One of the threads that feed the GPU waits so, for the choice of every layer's routers.
    """


class EventPool:
    """Events that nobody waits for any more, of both kinds; several threads take and give."""

    def __init__(self) -> None:
        self._timed: deque[torch.cuda.Event] = deque()
        self._spun: deque[SpunEvent] = deque()

    def timed(self) -> torch.cuda.Event:
        """One that tells the time; a thread that waits for it sleeps, and takes no core from work on the CPU."""
        try:
            return self._timed.pop()
        except IndexError:
            return torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]

    def spun(self) -> SpunEvent:
        """One that a thread is about to wait for."""
        try:
            return self._spun.pop()
        except IndexError:
            return SpunEvent(enable_timing=False, blocking=False)  # type: ignore[no-untyped-call]

    def give(self, marks: Iterable[object]) -> None:
        """Each once."""
        for mark in marks:
            if isinstance(mark, SpunEvent):
                self._spun.append(mark)
            elif isinstance(mark, torch.cuda.Event):
                self._timed.append(mark)
