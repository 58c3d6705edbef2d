"""Reads and writes a task graph as text."""

from pathlib import Path

from hrm.errors import ScheduleError
from hrm.schedule.graph import TaskGraph
from hrm.schedule.text import dump, load
from hrm.schedule.validate import validate
from hrm.spec.text_file import read_text, write_text


def read_graph(path: Path) -> TaskGraph:
    """The valid task graph in a file.

    Raises:
        ScheduleError: unreadable or malformed, or a graph that cannot run (see `validate`).
    """
    graph = load(read_text(path, ScheduleError))
    validate(graph)
    return graph


def write_graph(graph: TaskGraph, path: Path) -> None:
    """Writes a graph that `read_graph` reads back unchanged.

    Raises:
        ScheduleError: the file cannot be written.
    """
    write_text(path, dump(graph), ScheduleError)
