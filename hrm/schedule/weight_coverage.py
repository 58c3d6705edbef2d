"""Whether a graph fetches every streamed weight once, for this pass and what the next one finds in place."""

import math

from hrm.schedule.faults import fault, named
from hrm.schedule.graph import TaskGraph
from hrm.schedule.task import Kind

PAGED = (Kind.WEIGHT_READ, Kind.WEIGHT_STAGE, Kind.WEIGHT_FETCH)
ROUNDING = 1e-9


def check_weights(graph: TaskGraph) -> None:
    """Raises ScheduleError for a page or a unit of dense weights that is missing, repeated or in the wrong layer."""
    for kind in PAGED:
        _check_pages(graph, kind)
    _check_page_shares(graph)
    _check_dense(graph)


def check_plan(graph: TaskGraph) -> None:
    """The page plan covers every layer, and its slots hold what is in place."""
    plan = graph.pages
    if len(plan.per_layer) != graph.num_layers:
        raise fault(graph, f"its page plan covers {len(plan.per_layer)} layers of {graph.num_layers}")
    if not 0 <= plan.ahead <= min(plan.num_slots, plan.per_pass) or (plan.per_pass and not plan.num_slots):
        raise fault(graph, f"{plan.num_slots} page slots hold {plan.ahead} of {plan.per_pass} pages at the start")


def _check_pages(graph: TaskGraph, kind: Kind) -> None:
    """Pages of the pass that are not in place, and those of the next pass that will be: each fetched once."""
    plan, found = graph.pages, dict[int, int]()
    wanted = range(plan.ahead, plan.per_pass + plan.ahead)
    for i, task in enumerate(graph.tasks):
        for page in range(*task.work.pages) if task.kind == kind else ():
            wrong = ""
            if page not in wanted:
                wrong = f"has page {page}; the pass fetches from {wanted.start} up to {wanted.stop}"
            elif page in found:
                wrong = f"repeats page {page} of task {found[page]}"
            elif task.layer != plan.layer_of(page):
                wrong = f"has page {page}, which is of L{plan.layer_of(page)}"
            if wrong:
                raise fault(graph, f"{named(graph, i)} {wrong}")
            found[page] = i
    missing = [page for page in wanted if page not in found]
    if missing and (found or kind == Kind.WEIGHT_FETCH):
        raise fault(graph, f"page {missing[0]} of L{plan.layer_of(missing[0])} has no {kind}")


def _check_page_shares(graph: TaskGraph) -> None:
    for i, task in enumerate(graph.tasks):
        pages = range(*task.work.pages)
        if task.kind == Kind.WEIGHT_FETCH and not math.isclose(
            task.work.share, math.fsum(map(graph.pages.share, pages)), rel_tol=ROUNDING
        ):
            raise fault(graph, f"{named(graph, i)} copies a share of {task.work.share:.6g}, not that of its pages")


def _check_dense(graph: TaskGraph) -> None:
    """Streamed dense weights: layers 1 to the last, the LM head, the next pass's first layer, in this order."""
    found = [(i, t) for i, t in enumerate(graph.tasks) if t.kind in (Kind.DENSE_FETCH, Kind.HEAD_FETCH)]
    last = graph.num_layers - 1
    wanted = [(Kind.DENSE_FETCH, layer) for layer in range(1, last + 1)]
    wanted += [(Kind.HEAD_FETCH, last), (Kind.DENSE_FETCH, 0)]
    for (i, task), (kind, layer) in zip(found, wanted, strict=False):
        if (task.kind, task.layer) != (kind, layer):
            raise fault(graph, f"{named(graph, i)} stands where {kind} L{layer} has to")
    if found and len(found) != len(wanted):
        raise fault(graph, f"{len(found)} units of dense weights are fetched, not {len(wanted)}")
