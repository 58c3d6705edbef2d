"""Reads and writes a task graph as text."""

from pathlib import Path

from hrm.errors import ScheduleError
from hrm.schedule.graph import TaskGraph
from hrm.schedule.text import dump, load
from hrm.schedule.validate import validate
from hrm.spec.text_file import read_text


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
    try:
        path.write_text(dump(graph), encoding="utf-8")
    except OSError as error:
        raise ScheduleError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from None
