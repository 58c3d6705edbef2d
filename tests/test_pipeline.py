"""The pipeline runs every task of a graph once, in the order of its queue, never before what it waits for."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from tiny_schedules import SLICES, VARIANTS, tiny_graph

from hrm.schedule.graph import TaskGraph
from hrm.schedule.task import Kind, Resource, Task
from runtime.device import CpuDevice
from runtime.issue_order import issue_order
from runtime.pipeline import Pipeline
from runtime.wiring import ISSUED_TOGETHER, Wiring

RUN_HERE = [name for name, p in VARIANTS.items() if p.weights_on_disk == 0 and p.tensor_parallel_size == 1]
GRAPHS = [(name, slice_name) for name in RUN_HERE for slice_name in SLICES]
TOGETHER = "cgopipe_kernel"  # one thread for all lanes of the GPU
APART = "cgopipe_pageable"  # a thread per queue


@cache
def wiring_of(name: str, slice_name: str = "decode") -> Wiring:
    return Wiring(tiny_graph(VARIANTS[name], slice_name))


class Recorder:
    """Performs tasks by noting when they begin and end; some take a moment, so that orders differ."""

    def __init__(self, seed: int = 0, longest: float = 0.0) -> None:
        self.random, self.longest = np.random.default_rng(seed), longest
        self.events: list[tuple[bool, int]] = []  # whether it begins, task
        self.threads: dict[int, str] = {}

    def __call__(self, index: int, task: Task) -> None:
        self.events.append((True, index))
        self.threads[index] = threading.current_thread().name
        if self.longest and index % 5 == 0:
            time.sleep(self.longest * (index * 7919 % 13) / 13)
        self.events.append((False, index))

    def begun(self) -> list[int]:
        return [i for begins, i in self.events if begins]

    def check(self, graph: TaskGraph) -> None:
        """Everything once, each queue in order, nothing before what it waits for has ended."""
        assert sorted(self.begun()) == list(range(len(graph.tasks)))
        for queue in graph.queues.values():
            members = set(queue)
            assert [i for i in self.begun() if i in members] == list(queue)
        ended: set[int] = set()
        for begins, i in self.events:
            assert not begins or ended.issuperset(graph.tasks[i].after), f"{graph.tasks[i]} began too early"
            if not begins:
                ended.add(i)


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    made = Pipeline(CpuDevice())
    yield made
    made.close()


@pytest.mark.parametrize(("name", "slice_name"), GRAPHS)
def test_every_task_once_in_order_after_what_it_waits_for(pipeline: Pipeline, name: str, slice_name: str) -> None:
    wiring, recorder = wiring_of(name, slice_name), Recorder(longest=4e-4)
    pipeline.run(wiring, recorder)
    recorder.check(wiring.graph)


@pytest.mark.parametrize(("name", "slice_name"), GRAPHS)
def test_threads_share_out_the_tasks(name: str, slice_name: str) -> None:
    """Every task belongs to one thread, in an order that keeps that of its queue."""
    wiring = wiring_of(name, slice_name)
    found = [i for tasks in wiring.threads.values() for i in tasks]
    assert sorted(found) == list(range(len(wiring.graph.tasks)))
    for tasks in wiring.threads.values():
        for queue in wiring.graph.queues.values():
            assert [i for i in tasks if i in set(queue)] in ([], list(queue))


@pytest.mark.parametrize("name", ["auto_kernel_experts_on_cpu", "auto_kernel_batch_experts_on_cpu"])
def test_experts_on_the_gpu_are_issued_before_the_thread_waits_for_those_on_the_cpu(name: str) -> None:
    """And what the CPU is to compute later too, as far as nothing that it waits for comes behind."""
    wiring = wiring_of(name)
    tasks, order = wiring.graph.tasks, wiring.threads[Resource.GPU]
    place = {i: k for k, i in enumerate(order)}
    loads = [i for i, t in enumerate(tasks) if t.kind == Kind.HIDDEN_LOAD and place.get(i) is not None]
    assert loads and any(place[i] > place[j] for i in loads for j in order if j > i)
    for i in loads:
        beside = [j for j, t in enumerate(tasks) if (t.kind, t.layer) == (Kind.EXPERT_FFN, tasks[i].layer)]
        assert all(place[j] < place[i] for j in beside if tasks[j].micro_batch == tasks[i].micro_batch)


def test_a_reader_in_another_thread_is_waited_for_too() -> None:
    """What the GPU's lanes issue before it must not wait for a task that itself waits for the load."""
    graph = wiring_of("auto_kernel_batch_experts_on_cpu").graph
    load = next(i for i, t in enumerate(graph.tasks) if t.kind == Kind.HIDDEN_LOAD and t.resource == Resource.ZERO_COPY)
    readers = [i for i, t in enumerate(graph.tasks) if load in t.after]
    direct = issue_order(graph, ISSUED_TOGETHER)
    assert direct.index(load) < min(direct.index(i) for i in readers)
    behind = max(direct[: direct.index(load)])
    page = next(i for i in range(load + 1, behind) if graph.tasks[i].resource == Resource.HTOD)
    tasks = list(graph.tasks)
    tasks[page] = replace(tasks[page], after=(*tasks[page].after, load))
    tasks[behind] = replace(tasks[behind], after=(*tasks[behind].after, page))
    changed = issue_order(replace(graph, tasks=tuple(tasks)), ISSUED_TOGETHER)
    assert changed.index(load) < changed.index(behind)


def test_waiting_for_the_latest_is_waiting_for_all() -> None:
    """Of several tasks of another queue the last is enough, and none of the own queue is left in."""
    for name, slice_name in GRAPHS:
        graph, wiring = wiring_of(name, slice_name).graph, wiring_of(name, slice_name)
        for i, task in enumerate(graph.tasks):
            by_queue = {other: before for before, other, _ in wiring.waits[i]}
            assert task.resource not in by_queue
            for before in task.after:
                other = graph.tasks[before].resource
                assert before < i if other == task.resource else before <= by_queue[other]
            assert all(graph.queues[other][position] == before for before, other, position in wiring.waits[i])


@pytest.mark.parametrize("name", [TOGETHER, "expert_cache_predictive", "expert_cache_predictive_on_cpu"])
def test_the_gpus_own_lanes_share_a_thread(pipeline: Pipeline, name: str) -> None:
    recorder = Recorder()
    pipeline.run(wiring_of(name), recorder)
    tasks = wiring_of(name).graph.tasks
    used = {recorder.threads[i] for i, task in enumerate(tasks) if task.resource in ISSUED_TOGETHER}
    assert used == {"queue GPU"}
    copies = [i for i, task in enumerate(tasks) if task.resource == Resource.HTOD]
    small = all(tasks[i].kind == Kind.EXPERT_PREFETCH for i in copies)
    assert {recorder.threads[i] for i in copies} == {"queue GPU" if small else "queue HTOD"}


@pytest.mark.parametrize("name", [TOGETHER, APART, "cgopipe_experts_on_cpu", "module_batched"])
def test_measured_times_respect_the_graph(pipeline: Pipeline, name: str) -> None:
    run = pipeline.run(wiring_of(name), Recorder(longest=1e-3))
    timeline, graph = run.timeline(pipeline.device), wiring_of(name).graph
    assert (timeline.start <= timeline.end).all() and timeline.makespan > 0
    for i, task in enumerate(graph.tasks):
        assert all(timeline.end[before] <= timeline.start[i] for before in task.after)
    for queue in graph.queues.values():
        assert (timeline.end[list(queue[:-1])] <= timeline.start[list(queue[1:])]).all()


@pytest.mark.parametrize("name", [TOGETHER, APART, "auto_mixed_experts_on_cpu"])
def test_queues_overlap(pipeline: Pipeline, name: str) -> None:
    """Tasks of different threads are under way at the same time."""
    recorder = Recorder(longest=2e-3)
    pipeline.run(wiring_of(name), recorder)
    under_way = np.cumsum([1 if begins else -1 for begins, _ in recorder.events])
    assert 2 <= under_way.max() <= len(wiring_of(name).threads)


class Fails:
    """Raises at some tasks, each its own exception."""

    def __init__(self, *at: int, error: type[BaseException] = ValueError) -> None:
        self.at, self.error, self.recorder = at, error, Recorder()

    def __call__(self, index: int, task: Task) -> None:
        if index in self.at:
            raise self.error(f"task {index}")
        self.recorder(index, task)


def dependants(graph: TaskGraph, index: int) -> set[int]:
    """All that come, directly or not, behind a task."""
    found = {index}
    for i, task in enumerate(graph.tasks):
        queue = graph.queues[task.resource]
        at = queue.index(i)
        if found.intersection(task.after) or (at and queue[at - 1] in found):
            found.add(i)
    return found


@pytest.mark.parametrize("name", [TOGETHER, APART, "auto_mixed_experts_on_cpu", "flexgen"])
def test_an_exception_ends_the_pass_and_nothing_more(pipeline: Pipeline, name: str) -> None:
    """Wherever it is raised: `run` raises it, nothing behind it is performed, and the next pass is a whole one."""
    wiring = wiring_of(name)
    for index in np.linspace(0, len(wiring.graph.tasks) - 1, 12).astype(int).tolist():
        failing = Fails(index)
        with pytest.raises(ValueError, match=f"^task {index}$"):
            pipeline.run(wiring, failing)
        assert not dependants(wiring.graph, index).intersection(failing.recorder.begun())
        recorder = Recorder()
        pipeline.run(wiring, recorder)
        recorder.check(wiring.graph)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit])
def test_any_kind_of_exception_comes_through(pipeline: Pipeline, error: type[BaseException]) -> None:
    with pytest.raises(error, match="task 3"):
        pipeline.run(wiring_of(APART), Fails(3, error=error))


def test_one_of_several_exceptions_comes_through(pipeline: Pipeline) -> None:
    graph = wiring_of(APART).graph
    first = {resource: queue[0] for resource, queue in graph.queues.items()}
    with pytest.raises(ValueError, match="task") as raised:
        pipeline.run(wiring_of(APART), Fails(*first.values()))
    assert str(raised.value) in {f"task {i}" for i in first.values()}
    recorder = Recorder()
    pipeline.run(wiring_of(APART), recorder)
    recorder.check(graph)


def test_passes_with_other_queues_follow_each_other(pipeline: Pipeline) -> None:
    for name in (TOGETHER, APART, "flexgen_resident", "cgopipe_all_experts_on_cpu", TOGETHER):
        recorder = Recorder()
        pipeline.run(wiring_of(name), recorder)
        recorder.check(wiring_of(name).graph)


def test_close_ends_the_threads() -> None:
    before = set(threading.enumerate())
    pipeline = Pipeline(CpuDevice())
    assert set(threading.enumerate()) == before  # made when they are needed
    pipeline.run(wiring_of(APART), Recorder())
    with pytest.raises(ValueError, match="task 0"):
        pipeline.run(wiring_of(APART), Fails(0))
    assert len(set(threading.enumerate()) - before) == len(wiring_of(APART).graph.queues)
    pipeline.close()
    assert set(threading.enumerate()) == before
    pipeline.close()  # a second time does nothing
