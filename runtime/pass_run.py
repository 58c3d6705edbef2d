"""A pass under way: how far each queue is, and when every task began and ended."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hrm.predict.timeline import Timeline
from hrm.schedule.task import Resource, Task
from runtime.device import CpuDevice, CudaDevice, Mark
from runtime.host_counter import HostCounter, Signal
from runtime.wiring import Wiring

Perform = Callable[[int, Task], None]


class AbortedError(Exception):
    """Another queue of the pass has failed."""


@dataclass
class PassRun:
    """Marks before and after every task of a pass under way, and how far each queue is.

    counters: of host lanes for which lanes of the GPU wait by themselves.
    """

    wiring: Wiring
    perform: Perform
    begun: Mark
    starts: list[Mark | None] = field(default_factory=list)
    ends: list[Mark | None] = field(default_factory=list)
    issued: dict[Resource, int] = field(default_factory=dict)
    waiters: dict[Resource, list[tuple[int, threading.Event]]] = field(default_factory=dict)
    counters: dict[Resource, HostCounter] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    failure: BaseException | None = None
    timed: bool = True  # all marks are there

    def advance(self, resource: Resource) -> None:
        """One more task of a queue is issued; wakes only those who wait for it, or all would fight for the GIL."""
        with self.lock:
            self.issued[resource] = issued = self.issued[resource] + 1
            if resource in self.counters and self.failure is None:
                self.counters[resource].reach(issued)
            waiters = self.waiters[resource]
            if not waiters:
                return
            due = [event for count, event in waiters if count <= issued]
            self.waiters[resource] = [waiter for waiter in waiters if waiter[0] > issued]
        for event in due:
            event.set()

    def fail(self, error: BaseException) -> None:
        """Ends the pass for everybody, lanes that wait for the host too."""
        with self.lock:
            self.failure = self.failure or error
            for counter in self.counters.values():
                counter.reach_all()
            waiters = [event for queue in self.waiters.values() for _, event in queue]
        for event in waiters:
            event.set()

    def is_sure(self, resource: Resource, count: int) -> bool:
        """Whether a lane of the GPU may wait for so many tasks of a host lane by itself."""
        return resource in self.counters and self.counters[resource].is_sure(count)

    def signal(self, index: int) -> Signal | None:
        """For compiled code that does a task for which lanes of the GPU wait; None where they do not."""
        resource = self.wiring.graph.tasks[index].resource
        if index not in self.wiring.awaited_by_lanes or resource not in self.counters:
            return None
        return self.counters[resource].signal(self.wiring.position[index] + 1)

    def wait_issued(self, resource: Resource, count: int) -> None:
        """Returns once `count` tasks of a queue are issued. Raises AbortedError if the pass has failed."""
        if self.issued[resource] < count:
            self._wait(resource, count)
        if self.failure is not None:
            raise AbortedError

    def _wait(self, resource: Resource, count: int) -> None:
        event = threading.Event()
        with self.lock:
            if self.issued[resource] >= count or self.failure is not None:
                return
            self.waiters[resource].append((count, event))
        event.wait()

    def _seconds(self, marks: list[Mark | None], device: CpuDevice | CudaDevice) -> NDArray[np.float64]:
        """Seconds from the start of the pass; a host lane's mark may be a moment older."""
        return np.array([max(0.0, device.seconds(self.begun, mark)) for mark in marks if mark is not None])

    def timeline(self, device: CpuDevice | CudaDevice) -> Timeline:
        """Measured starts and ends; every task must have been reached."""
        start, end = (self._seconds(marks, device) for marks in (self.starts, self.ends))
        return Timeline(self.wiring.graph, start, end, end - start)
