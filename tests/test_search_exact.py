"""The search against two slower ways to the same optimum: solving every cell, and one MILP over every cell.

Instances are random and small (see random_instances.py); they are the same in every run.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from random_instances import Instance, instances

from hrm.errors import InfeasibleError, SolverError
from hrm.predict.node import single_nodes
from hrm.schedule.registry import schedule_names
from hrm.search.branch import largest_batches
from hrm.search.enumerate import all_cells, enumerate_all
from hrm.search.milp import solve_milp
from hrm.search.node_programs import NodePrograms
from hrm.search.relaxation import node_programs
from hrm.search.search import search_policy

EXACT = 1e-9  # of the search and the enumeration, which solve cells to 1e-10
CBC = 1e-6  # CBC's own feasibility and optimality tolerances
MILP_CELLS = 600  # CBC takes about two seconds for as many

# Without shrinking: a failure is shown as it was drawn, instead of minutes later.
fixed = settings(
    derandomize=True, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


def searched_seconds_per_token(instance: Instance) -> float:
    """inf where the search says that nothing fits."""
    try:
        return 1.0 / search_policy(instance.rates, instance.schedule).prediction.generation_throughput
    except InfeasibleError:
        return np.inf


def every_cell(instance: Instance) -> list[NodePrograms]:
    """Programs of all cells, one batch per placement that fits at all."""
    caps = largest_batches(instance.rates, instance.placements)
    chunks = all_cells(instance.placements, caps)
    return [
        node_programs(
            instance.rates,
            instance.placements[int(chunk.placement[0])],
            single_nodes(chunk.mu_lo.astype(float), chunk.cap.astype(float)),
        )
        for chunk in chunks
    ]


@settings(fixed, max_examples=200)
@given(instances())
def test_search_is_as_good_as_enumerating_every_cell(instance: Instance):
    enumerated = enumerate_all(instance.rates, instance.placements).seconds_per_token
    assert searched_seconds_per_token(instance) == pytest.approx(enumerated, rel=EXACT, abs=0.0)


@settings(fixed, max_examples=40)
@given(instances(largest_batch=12))
def test_milp_over_every_cell_chooses_one_of_the_same_value(instance: Instance):
    """The MILP has no excess variables and no bounds from the search: it shares only the rows of a cell."""
    programs = every_cell(instance)
    enumerated = enumerate_all(instance.rates, instance.placements).seconds_per_token
    assume(sum(len(p.nodes) for p in programs) <= MILP_CELLS)
    if not np.isfinite(enumerated):
        if programs:
            with pytest.raises(SolverError):
                solve_milp(programs)
        return
    assert solve_milp(programs).seconds_per_token == pytest.approx(enumerated, rel=CBC, abs=0.0)


@settings(fixed, max_examples=40)
@given(instances())
def test_auto_is_at_least_every_named_schedule(instance: Instance):
    """What `auto` leaves out must be dominated by what it holds, also where only one sequence fits."""
    best = searched_seconds_per_token(replace(instance, schedule="auto"))
    for name in schedule_names():
        assert best <= searched_seconds_per_token(replace(instance, schedule=name)) * (1 + EXACT)
