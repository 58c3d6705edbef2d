"""What one pass has fetched for the next, and where the page pool goes on."""

from runtime.memory.paging import Paging
from runtime.tasks.state import Carried


def carry_key(paging: Paging) -> object:
    """Passes with the same key find each other's prefetched pages in place."""
    if not paging.plan.ahead:
        return None
    if paging.double_buffer:
        return ("double buffer", paging.region.nbytes)
    return ("ring", paging.plan, paging.region)


def recount(carried: Carried, paging: Paging) -> None:
    """The same layers in place, cut into another number of pages."""
    layers = carried.base // max(1, carried.per_layer)
    carried.base = layers * paging.per_layer
    if carried.pages:
        last = carried.pages[max(carried.pages)]
        carried.pages = dict.fromkeys(range(paging.plan.ahead), last)


def next_base(paging: Paging, base: int) -> int:
    """Pages so far, as far as it matters for where the next one goes; counted anew in layers for a double buffer."""
    period = 2 * paging.per_layer if paging.double_buffer else paging.plan.num_slots
    return (base + paging.plan.per_pass) % period
