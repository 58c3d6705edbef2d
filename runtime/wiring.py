"""What each task of a graph waits for beside its own queue, and which thread issues it."""

from dataclasses import dataclass
from functools import cached_property

from hrm.schedule.graph import TaskGraph
from hrm.schedule.task import Kind, Resource
from runtime.device import HOST_LANES
from runtime.issue_order import issue_order

ISSUED_TOGETHER = frozenset((Resource.GPU, Resource.DTOH, Resource.ZERO_COPY))


@dataclass(frozen=True)
class Wiring:
    """What each task of a graph waits for beside its own queue: (task, its queue, its position there)."""

    graph: TaskGraph

    @cached_property
    def position(self) -> dict[int, int]:
        """Of every task in its queue."""
        return {i: k for queue in self.graph.queues.values() for k, i in enumerate(queue)}

    @cached_property
    def waits(self) -> list[tuple[tuple[int, Resource, int], ...]]:
        """Per task, the latest it waits for in each other queue."""
        position, found = self.position, []
        for task in self.graph.tasks:
            latest: dict[Resource, int] = {}
            for i in task.after:
                other = self.graph.tasks[i].resource
                if other != task.resource:
                    latest[other] = max(latest.get(other, -1), i)
            found.append(tuple((i, other, position[i]) for other, i in latest.items()))
        return found

    @cached_property
    def awaited(self) -> frozenset[int]:
        """Tasks for whose marks others wait."""
        return frozenset(before for waits in self.waits for before, other, _ in waits if other not in HOST_LANES)

    @cached_property
    def awaited_by_lanes(self) -> frozenset[int]:
        """Tasks of the CPU's experts whose result a lane of the GPU may wait for, instead of the thread that issues it.

        None where no layer's gate stops that thread: it would run ahead until the driver's queue is full, and then wait
        with Python's lock in hand, which the CPU's thread needs.
        """
        tasks = self.graph.tasks
        if all(task.kind != Kind.EXPERT_CORRECTION for task in tasks):
            return frozenset()
        return frozenset(i for i, task in enumerate(tasks) if task.kind == Kind.CPU_EXPERT_FFN)

    @cached_property
    def threads(self) -> dict[Resource, tuple[int, ...]]:
        """Tasks by the thread that issues them (named after one of its queues), in order.

        Queues stay apart where the host waits in one of them for something that another need not wait for (pageable
        memory), or where tasks do not come after all that they wait for.
        """
        queues, tasks = self.graph.queues, self.graph.tasks
        apart = any(task.resource == Resource.HOST for task in tasks)
        if apart or any(before > i for i, task in enumerate(tasks) for before in task.after):
            return dict(queues)
        lanes = ISSUED_TOGETHER
        if all(tasks[i].kind == Kind.EXPERT_PREFETCH for i in queues.get(Resource.HTOD, ())):
            lanes |= {Resource.HTOD}  # little to issue, while the CPU's experts or the link keep the layer waiting
        together = issue_order(self.graph, lanes)
        return {r: q for r, q in queues.items() if r not in lanes} | {Resource.GPU: together}
