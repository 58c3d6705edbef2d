"""Executes a task graph: a lane per queue, a few threads, synchronisation from the graph's `after` edges alone.

A task is *issued* when its call has returned; on a GPU lane its work may still be to come. A task that waits for one
of another queue waits on the host until that is issued, and then, if it was issued to a GPU lane, lets its own lane
wait for the mark behind it; so the copy thread runs as far ahead as the graph allows and never waits for work that only
the GPU has to wait for.

One thread issues to the GPU's own lanes (compute, device to host, kernels that read the host's memory): what any of
them waits for on the host, the next compute task waits for too, and several threads that launch at once fight for
Python's lock (measured: 0.8 ms instead of 0.12 ms for the norm and projections of a micro-batch).
"""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray

from hrm.predict.timeline import Timeline
from hrm.schedule.graph import TaskGraph
from hrm.schedule.task import Kind, Resource, Task
from runtime.device import HOST_LANES, CpuDevice, CudaDevice, Mark

SWITCH_SECONDS = 50e-6  # Python's default, 5 ms, is longer than most tasks take
ISSUED_TOGETHER = frozenset((Resource.GPU, Resource.DTOH, Resource.ZERO_COPY))
Perform = Callable[[int, Task], None]


@dataclass(frozen=True)
class Wiring:
    """What each task of a graph waits for beside its own queue: (task, its queue, its position there)."""

    graph: TaskGraph

    @cached_property
    def waits(self) -> list[tuple[tuple[int, Resource, int], ...]]:
        """Per task, the latest it waits for in each other queue."""
        position = {i: k for queue in self.graph.queues.values() for k, i in enumerate(queue)}
        found = []
        for task in self.graph.tasks:
            latest: dict[Resource, int] = {}
            for i in task.after:
                other = self.graph.tasks[i].resource
                if other != task.resource:
                    latest[other] = max(latest.get(other, -1), i)
            found.append(tuple((i, other, position[i]) for other, i in latest.items()))
        return found

    @cached_property
    def threads(self) -> dict[Resource, tuple[int, ...]]:
        """Tasks by the thread that issues them (named after one of its queues), in order.

        Queues stay apart where the host waits in one of them for something that another need not wait for: experts on
        the CPU, pageable memory; or where tasks do not come after all that they wait for.
        """
        queues, tasks = self.graph.queues, self.graph.tasks
        apart = any(task.kind == Kind.CPU_EXPERT_FFN or task.resource == Resource.HOST for task in tasks)
        if apart or any(before > i for i, task in enumerate(tasks) for before in task.after):
            return dict(queues)
        together = sorted(i for r in ISSUED_TOGETHER & queues.keys() for i in queues[r])
        return {r: q for r, q in queues.items() if r not in ISSUED_TOGETHER} | {Resource.GPU: tuple(together)}


class AbortedError(Exception):
    """Another queue of the pass has failed."""


@dataclass
class PassRun:
    """Marks before and after every task of a pass under way, and how far each queue is."""

    wiring: Wiring
    perform: Perform
    begun: Mark
    starts: list[Mark | None] = field(default_factory=list)
    ends: list[Mark | None] = field(default_factory=list)
    issued: dict[Resource, int] = field(default_factory=dict)
    waiters: dict[Resource, list[tuple[int, threading.Event]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    failure: BaseException | None = None

    def advance(self, resource: Resource) -> None:
        """One more task of a queue is issued; wakes only those who wait for it, or all would fight for the GIL."""
        with self.lock:
            self.issued[resource] = issued = self.issued[resource] + 1
            waiters = self.waiters[resource]
            if not waiters:
                return
            due = [event for count, event in waiters if count <= issued]
            self.waiters[resource] = [waiter for waiter in waiters if waiter[0] > issued]
        for event in due:
            event.set()

    def fail(self, error: BaseException) -> None:
        """Ends the pass for everybody."""
        with self.lock:
            self.failure = self.failure or error
            waiters = [event for queue in self.waiters.values() for _, event in queue]
        for event in waiters:
            event.set()

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


class Pipeline:
    """Threads of all queues, kept from pass to pass."""

    def __init__(self, device: CpuDevice | CudaDevice) -> None:
        self.device = device
        self._jobs: dict[Resource, SimpleQueue[PassRun | None]] = {}
        self._threads: list[threading.Thread] = []
        self._done: SimpleQueue[Resource] = SimpleQueue()
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))

    def run(self, wiring: Wiring, perform: Perform) -> PassRun:
        """Runs a pass until every task is issued; `perform` is called in the lane of each task's queue.

        Raises whatever `perform` raised first.
        """
        with self.device.lane(Resource.GPU):
            begun = self.device.mark()
        queues, count = wiring.graph.queues, len(wiring.graph.tasks)
        run = PassRun(wiring, perform, begun, [None] * count, [None] * count, dict.fromkeys(queues, 0))
        run.waiters = {resource: [] for resource in queues}
        wiring.waits  # noqa: B018 - made before the threads ask for it
        for resource in wiring.threads:
            self._queue(resource).put(run)
        for _ in wiring.threads:
            self._done.get()
        if run.failure is not None:
            self.device.synchronise()
            raise run.failure
        return run

    def close(self) -> None:
        """Ends the threads."""
        for jobs in self._jobs.values():
            jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._jobs.clear()
        self._threads.clear()

    def _queue(self, resource: Resource) -> "SimpleQueue[PassRun | None]":
        if resource not in self._jobs:
            self._jobs[resource] = jobs = SimpleQueue[PassRun | None]()
            thread = threading.Thread(target=self._serve, args=(resource, jobs), name=f"queue {resource}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return self._jobs[resource]

    def _serve(self, resource: Resource, jobs: "SimpleQueue[PassRun | None]") -> None:
        with torch.inference_mode(), self.device.lane(resource):
            while (run := jobs.get()) is not None:
                try:
                    self._run_queue(resource, run)
                except AbortedError:
                    pass
                except BaseException as error:
                    run.fail(error)
                self._done.put(resource)

    def _run_queue(self, thread: Resource, run: PassRun) -> None:
        tasks = run.wiring.graph.tasks
        for i in run.wiring.threads[thread]:
            task = tasks[i]
            self.device.enter(task.resource)
            self._wait(i, task.resource, run)
            run.starts[i] = self.device.mark()
            run.perform(i, task)
            run.ends[i] = self.device.mark()
            run.advance(task.resource)

    def _wait(self, index: int, resource: Resource, run: PassRun) -> None:
        for before, other, position in run.wiring.waits[index]:
            run.wait_issued(other, position + 1)
            mark = run.ends[before]
            assert mark is not None
            if resource in HOST_LANES:
                self.device.host_wait(mark)
            elif other not in HOST_LANES:
                self.device.order_after(mark)
