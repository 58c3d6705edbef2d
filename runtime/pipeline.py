"""Executes a task graph: a lane per queue, a few threads, synchronisation from the graph's `after` edges alone.

A task is *issued* when its call has returned; on a GPU lane its work may still be to come. A task that waits for one
of another queue waits on the host until that is issued, and then, if it was issued to a GPU lane, lets its own lane
wait for the mark behind it; so the copy thread runs as far ahead as the graph allows and never waits for work that only
the GPU has to wait for. For results of the CPU's experts, where a wiring says so, the lane waits by itself too.

One thread issues to the GPU's own lanes (compute, device to host, kernels that read the host's memory): what any of
them waits for on the host, the next compute task waits for too, and several threads that launch at once fight for
Python's lock (measured: 0.8 ms instead of 0.12 ms for the norm and projections of a micro-batch).
"""

import sys
import threading
from queue import SimpleQueue

import torch

from hrm.schedule.task import Kind, Resource, Task
from runtime.device import HOST_LANES, CpuDevice, CudaDevice
from runtime.host_counter import HostCounter
from runtime.pass_run import AbortedError, PassRun, Perform
from runtime.wiring import Wiring

LOADS = (Kind.EMBEDDING_LOAD, Kind.HIDDEN_LOAD)
SWITCH_SECONDS = 50e-6  # Python's default, 5 ms, is longer than most tasks take


class Pipeline:
    """Threads of all queues, kept from pass to pass."""

    def __init__(self, device: CpuDevice | CudaDevice) -> None:
        self.device = device
        self._jobs: dict[Resource, SimpleQueue[PassRun | None]] = {}
        self._threads: list[threading.Thread] = []
        self._done: SimpleQueue[Resource] = SimpleQueue()
        self._counters: dict[Resource, HostCounter | None] = {}
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))

    def run(self, wiring: Wiring, perform: Perform, timed: bool = True) -> PassRun:
        """Runs a pass until every task is issued; `perform` is called in the lane of each task's queue.

        timed: every task is marked, not only those that others wait for.

        Raises whatever `perform` raised first.
        """
        return self.execute(self.prepare(wiring, perform, timed))

    def prepare(self, wiring: Wiring, perform: Perform, timed: bool) -> PassRun:
        """A pass that is to be run next."""
        with self.device.lane(Resource.GPU):
            begun = self.device.mark()
        queues, count = wiring.graph.queues, len(wiring.graph.tasks)
        run = PassRun(wiring, perform, begun, [None] * count, [None] * count, dict.fromkeys(queues, 0), timed=timed)
        run.waiters = {resource: [] for resource in queues}
        run.counters = self._begin_counters(wiring)
        wiring.waits  # noqa: B018 - made before the threads ask for it
        return run

    def execute(self, run: PassRun) -> PassRun:
        """Runs it."""
        for resource in run.wiring.threads:
            self._queue(resource).put(run)
        self._await(run)
        if run.failure is not None:
            self.device.synchronise()
            raise run.failure
        return run

    def _begin_counters(self, wiring: Wiring) -> dict[Resource, HostCounter]:
        """Of the host lanes for which lanes of the GPU wait, where they can."""
        found = {}
        for resource in {wiring.graph.tasks[i].resource for i in wiring.awaited_by_lanes}:
            if resource not in self._counters:
                self._counters[resource] = self.device.host_counter()
            counter = self._counters[resource]
            if counter is not None:
                counter.begin(len(wiring.graph.queues[resource]))
                found[resource] = counter
        return found

    def _await(self, run: PassRun) -> None:
        """Until all threads are through; interrupted, it ends the pass and waits all the same."""
        left, interrupted = len(run.wiring.threads), None
        while left:
            try:
                self._done.get()
                left -= 1
            except BaseException as error:
                interrupted = error
                run.fail(error)
        if interrupted is not None:
            raise interrupted

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
        self.device.begin_thread(resource)
        with torch.inference_mode(), self.device.lane(resource):
            while (run := jobs.get()) is not None:
                try:
                    self._run_queue(resource, run)
                except AbortedError:
                    pass
                except BaseException as error:
                    run.fail(error)
                run = None  # a pass that is over holds the model's memory
                self._done.put(resource)

    def _run_queue(self, thread: Resource, run: PassRun) -> None:
        tasks, waits, awaited = run.wiring.graph.tasks, run.wiring.waits, run.wiring.awaited
        lane, mark, timed = None, None, run.timed
        for i in run.wiring.threads[thread]:
            task = tasks[i]
            if task.resource != lane:
                self.device.enter(task.resource)
                lane, mark = task.resource, None
            self._wait(i, task, run)
            if timed:
                run.starts[i] = mark if mark is not None and not waits[i] else self.device.mark()
            run.perform(i, task)
            if timed or i in awaited:
                run.ends[i] = mark = self.device.mark()  # and where a task of this lane follows at once, its start
            run.advance(task.resource)

    def _wait(self, index: int, task: Task, run: PassRun) -> None:
        """For all that the task comes after; of prefetched experts, whoever uses one waits for its slot.

        Prompts' hidden states are allocated once earlier ones are gone, not once that is merely queued, so their load
        waits on the host.
        """
        on_host = task.resource in HOST_LANES or (task.kind in LOADS and task.work.prompt_tokens > 0)
        for before, other, position in run.wiring.waits[index]:
            if before in run.wiring.awaited_by_lanes and not on_host and run.is_sure(other, position + 1):
                self.device.order_after_host(run.counters[other], position + 1)
                continue
            run.wait_issued(other, position + 1)
            if other in HOST_LANES:
                continue
            mark = run.ends[before]
            assert mark is not None
            if on_host:
                self.device.host_wait(mark)
            elif run.wiring.graph.tasks[before].kind != Kind.EXPERT_PREFETCH:
                self.device.order_after(mark)
