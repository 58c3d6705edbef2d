"""How a fault of a task graph is reported: the schedule, and the task it is about."""

from hrm.errors import ScheduleError
from hrm.schedule.graph import TaskGraph


def fault(graph: TaskGraph, problem: str) -> ScheduleError:
    """The error to raise."""
    return ScheduleError(f"schedule {graph.schedule}: {problem}")


def named(graph: TaskGraph, index: int) -> str:
    """A task by its index and what it is."""
    return f"task {index} {graph.tasks[index]!r}"
