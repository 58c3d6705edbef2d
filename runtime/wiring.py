"""What each task of a graph waits for beside its own queue, and which thread issues it."""

from dataclasses import dataclass
from functools import cached_property

from hrm.schedule.graph import TaskGraph
from hrm.schedule.task import Kind, Resource

ISSUED_TOGETHER = frozenset((Resource.GPU, Resource.DTOH, Resource.ZERO_COPY))


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
        the CPU, pageable memory; or where tasks do not come after all that they wait for. With experts in slots what
        comes after the CPU's result is the next layer, which needs it.
        """
        queues, tasks = self.graph.queues, self.graph.tasks
        kinds = {task.kind for task in tasks}
        awaits = Resource.HOST in queues or (Kind.CPU_EXPERT_FFN in kinds and Kind.EXPERT_CORRECTION not in kinds)
        if awaits or any(before > i for i, task in enumerate(tasks) for before in task.after):
            return dict(queues)
        together = sorted(i for r in ISSUED_TOGETHER & queues.keys() for i in queues[r])
        return {r: q for r, q in queues.items() if r not in ISSUED_TOGETHER} | {Resource.GPU: tuple(together)}
