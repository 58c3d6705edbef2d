"""Where the host's time of a pass goes: seconds in the functions of tasks, by thread and kind, and in awaiting routers.

Two readings of the clock per task. A function's time includes waiting for Python's lock, and on the CPU's thread its
work. What a thread's functions leave of a pass it spends waiting for other threads.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from runtime.tasks import layer_plan
from runtime.tasks.registry import FUNCTIONS

GATE_WAIT = "wait for routers"  # part of the time of the task that asks first


@dataclass
class HostTime:
    """Seconds by thread, then by kind of task; `take` empties it."""

    seconds: dict[str, dict[str, float]] = field(default_factory=dict)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time is added up under a name."""

        def run(*given: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*given)
            finally:
                thread = threading.current_thread().name.removeprefix("queue ")
                self.seconds.setdefault(thread, defaultdict(float))[name] += time.perf_counter() - began

        return run

    def take(self) -> dict[str, dict[str, float]]:
        """What has been added up since the last time."""
        taken, self.seconds = {thread: dict(kinds) for thread, kinds in self.seconds.items()}, {}
        return taken


@contextmanager
def host_time() -> Iterator[HostTime]:
    """Within it, functions of tasks are timed."""
    found, real, gate = HostTime(), dict(FUNCTIONS), layer_plan._routed_experts
    FUNCTIONS.update({kind: found.timed(kind.name.lower(), function) for kind, function in real.items()})
    layer_plan._routed_experts = found.timed(GATE_WAIT, gate)
    try:
        yield found
    finally:
        FUNCTIONS.update(real)
        layer_plan._routed_experts = gate


def mean_by_layer(passes: list[dict[str, dict[str, float]]], layers: int) -> dict[str, dict[str, float]]:
    """Mean seconds of a layer, by thread and kind."""
    total: dict[str, dict[str, float]] = {}
    for each in passes:
        for thread, kinds in each.items():
            for kind, seconds in kinds.items():
                mine = total.setdefault(thread, {})
                mine[kind] = mine.get(kind, 0.0) + seconds / (len(passes) * layers)
    return total
