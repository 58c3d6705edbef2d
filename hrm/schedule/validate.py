"""Whether a task graph can run: no deadlock, nothing left out or twice, no buffer read or overwritten out of turn."""

from itertools import pairwise

from hrm.schedule.accesses import Accesses
from hrm.schedule.buffers import Use, describe
from hrm.schedule.coverage import check_coverage
from hrm.schedule.faults import fault, named
from hrm.schedule.graph import TaskGraph
from hrm.schedule.order import Order


def validate(graph: TaskGraph) -> None:
    """Checks a graph for every possible timing: only its edges and the order of its queues count.

    Raises:
        ScheduleError: the task at fault and what is wrong with it.
    """
    order = Order(graph)
    check_coverage(graph)
    buffers = Accesses(graph).versions
    for buffer, versions in buffers.items():
        for version, use in versions.items():
            _check_written(graph, order, use, describe(buffer, version))
    for buffer, versions in buffers.items():
        for former, version in pairwise(sorted(versions)):
            _check_free(graph, order, versions[former], versions[version], describe(buffer, version))


def _check_written(graph: TaskGraph, order: Order, use: Use, what: str) -> None:
    """Whatever reads a version finds all of it there, and something does."""
    if not use.readers and not use.kept:
        by = named(graph, use.writers[0]) if use.writers else "the pass before"
        raise fault(graph, f"nothing reads {what}, written by {by}")
    for reader in use.readers:
        if not use.writers and not use.in_place:
            raise fault(graph, f"{named(graph, reader)} reads {what}, which nothing writes")
        for writer in use.writers:
            if not order.before(writer, reader):
                early, late = named(graph, reader), named(graph, writer)
                raise fault(graph, f"{early} may read {what} before {late} has written it")


def _check_free(graph: TaskGraph, order: Order, former: Use, use: Use, what: str) -> None:
    """A buffer is written again when all is done with the version before; a task may change one in place."""
    for writer in use.writers:
        for user in (*former.writers, *former.readers):
            if user != writer and not order.before(user, writer):
                early, late = named(graph, writer), named(graph, user)
                raise fault(graph, f"{early} writes {what} while {late} may still use what was there before")
