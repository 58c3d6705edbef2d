"""When every task of a pass ran: predicted by the simulator, or measured by the runtime."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hrm.schedule.graph import TaskGraph
from hrm.schedule.task import Resource


@dataclass(frozen=True)
class Interval:
    """Seconds from `start` to `end` of the pass."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start


@dataclass(frozen=True)
class Timeline:
    """Start and end of every task of a graph, seconds from the start of the pass, arrays [tasks].

    `alone` are the seconds a task takes when nothing shares its memory or wire (equal to end - start where unknown).
    """

    graph: TaskGraph
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    alone: NDArray[np.float64]

    @cached_property
    def makespan(self) -> float:
        """Seconds from the first start to the last end."""
        return float(self.end.max())

    @cached_property
    def busy_seconds(self) -> dict[Resource, float]:
        """Seconds that every queue spends on tasks."""
        length = self.end - self.start
        return {r: float(length[list(q)].sum()) for r, q in self.graph.queues.items()}

    @property
    def utilisation(self) -> dict[Resource, float]:
        """Share of the makespan that every queue is busy."""
        return {r: busy / self.makespan if self.makespan else 0.0 for r, busy in self.busy_seconds.items()}

    def bubbles(self, resource: Resource, shortest: float = 0.0) -> Iterator[Interval]:
        """Idle stretches of a queue longer than `shortest` seconds, from the start of the pass to its end."""
        at = 0.0
        for i in self.graph.queues.get(resource, ()):
            if self.start[i] - at > shortest:
                yield Interval(at, float(self.start[i]))
            at = float(self.end[i])
        if self.makespan - at > shortest:
            yield Interval(at, self.makespan)

    @cached_property
    def critical_path(self) -> tuple[int, ...]:
        """Indices of a chain of tasks, first to last: each waited for the one before, by its edge or its queue.

        It fills the makespan of a simulated pass; a measured one has launches between its tasks.
        """
        before = {i: p for queue in self.graph.queues.values() for p, i in pairwise(queue)}
        at: int | None = int(self.end.argmax())
        path = []
        while at is not None:
            path.append(at)
            waited = [*self.graph.tasks[at].after, *([before[at]] if at in before else [])]
            at = max(waited, key=lambda i: float(self.end[i]), default=None)
        return tuple(reversed(path))

    @cached_property
    def critical_seconds(self) -> dict[str, float]:
        """Seconds of the critical path by task kind, longest first; what no task fills is "waiting"."""
        found: dict[str, float] = {}
        for i in self.critical_path:
            kind = self.graph.tasks[i].kind.value
            found[kind] = found.get(kind, 0.0) + float(self.end[i] - self.start[i])
        waiting = self.makespan - sum(found.values())
        if waiting > 1e-6 * self.makespan:
            found["waiting"] = waiting
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @property
    def contention_seconds(self) -> float:
        """Seconds that the critical path's tasks lose to others on the same memory or wire."""
        path = list(self.critical_path)
        return float((self.end[path] - self.start[path] - self.alone[path]).sum())
