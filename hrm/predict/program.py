"""A laid-out pass with its costs: what the event loop runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from hrm.predict.layer_rates import Cost
from hrm.predict.layout import Layout
from hrm.predict.sharing import Demand, Sharing


@dataclass(frozen=True)
class Program:
    """A layout with the seconds of every task, and what it takes of shared parts as an index into `table`."""

    layout: Layout
    seconds: list[list[float]]
    demands: list[list[int]]
    table: list[Demand]
    contended: bool


def make_program(layout: Layout, slot_costs: Sequence[Cost], sharing: Sharing) -> Program:
    """Fills a layout with the cost of each slot."""
    seconds = [cost.seconds for cost in slot_costs]
    resource_of = {s: r for r, slots in zip(layout.resources, layout.slots, strict=True) for s in set(slots)}
    known: dict[Demand, int] = {}
    demand_of = [
        known.setdefault(sharing.demand(resource_of[s], cost), len(known)) for s, cost in enumerate(slot_costs)
    ]
    demands = [[demand_of[s] for s in queue] for queue in layout.slots]
    table = list(known)
    return Program(
        layout,
        [[seconds[s] for s in queue] for queue in layout.slots],
        demands,
        table,
        _may_contend([[table[d] for d in set(queue)] for queue in demands]),
    )


def _may_contend(demands: list[list[Demand]]) -> bool:
    """Whether the largest demands of all queues together exceed a shared part."""
    worst = [[max(d[part] for d in queue) for queue in demands] for part in range(3)]
    return any(sum(part) > 1.0 for part in worst)
