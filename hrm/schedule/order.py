"""What certainly happens before what in a task graph: vector clocks over its queues and `after` edges."""

from itertools import pairwise

from hrm.schedule.faults import fault, named
from hrm.schedule.graph import TaskGraph

LONGEST_SHOWN = 6  # tasks of a cycle that a message names


class Order:
    """Per task, how many tasks of every queue have certainly ended when it starts.

    Raises:
        ScheduleError: tasks that wait for each other, or for a task that the graph does not hold.
    """

    def __init__(self, graph: TaskGraph) -> None:
        self._queue, self._position = [0] * len(graph.tasks), [0] * len(graph.tasks)
        for q, queue in enumerate(graph.queues.values()):
            for position, i in enumerate(queue):
                self._queue[i], self._position[i] = q, position
        self._started = self._clocks(graph)

    def before(self, first: int, then: int) -> bool:
        """Whether task `first` has ended, whatever the durations, when task `then` starts."""
        return self._started[then][self._queue[first]] > self._position[first]

    def _clocks(self, graph: TaskGraph) -> list[tuple[int, ...]]:
        waits = waited_for(graph)
        nothing = (0,) * len(graph.queues)
        started, ended = [nothing] * len(waits), [nothing] * len(waits)
        for i in topological_order(graph, waits):
            clock = nothing
            for earlier in waits[i]:
                clock = tuple(map(max, clock, ended[earlier]))
            q = self._queue[i]
            started[i], ended[i] = clock, (*clock[:q], self._position[i] + 1, *clock[q + 1 :])
        return started


def waited_for(graph: TaskGraph) -> list[list[int]]:
    """Per task, what it waits for: its `after` edges and the task before it on its queue."""
    waits = [list(task.after) for task in graph.tasks]
    for i, task in enumerate(graph.tasks):
        outside = [dep for dep in task.after if not 0 <= dep < len(waits)]
        if outside:
            raise fault(graph, f"{named(graph, i)} waits for task {outside[0]}; there are {len(waits)}")
    for queue in graph.queues.values():
        for earlier, later in pairwise(queue):
            waits[later].append(earlier)
    return waits


def topological_order(graph: TaskGraph, waits: list[list[int]]) -> list[int]:
    """All tasks, each behind what it waits for."""
    waiting = [len(earlier) for earlier in waits]
    followers: list[list[int]] = [[] for _ in waits]
    for i, earlier in enumerate(waits):
        for dep in earlier:
            followers[dep].append(i)
    order = [i for i, count in enumerate(waiting) if count == 0]
    for i in order:  # grows while it is walked
        for later in followers[i]:
            waiting[later] -= 1
            if waiting[later] == 0:
                order.append(later)
    if len(order) < len(waits):
        raise fault(graph, _cycle(graph, waits, set(order)))
    return order


def _cycle(graph: TaskGraph, waits: list[list[int]], done: set[int]) -> str:
    path = [next(i for i in range(len(waits)) if i not in done)]
    while path[-1] not in path[:-1]:
        path.append(next(dep for dep in waits[path[-1]] if dep not in done))
    circle = path[path.index(path[-1]) :]
    shown = [named(graph, i) for i in circle[:LONGEST_SHOWN]]
    if len(circle) > LONGEST_SHOWN:
        shown.append(f"{len(circle) - LONGEST_SHOWN} more")
    return f"tasks wait for each other: {', which waits for '.join(shown)}"
