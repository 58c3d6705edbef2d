"""The policy search as one mixed-integer linear program in PuLP, over any set of cells.

This is the specification: a binary per (placement, mu, N) cell, each with its own copy of the continuous choices
(disaggregated, which keeps the relaxation tight), named constraints, one cell chosen, fewest seconds per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pulp

from hrm.errors import SolverError
from hrm.search.node_programs import EXCESS, Col, NodePrograms

# CBC by default stops at solutions 1e-5 apart and accepts rows violated by 1e-7: too coarse to tell near ties.
CBC_OPTIONS = ["allowableGap 0", "increment 1e-11", "primalTolerance 1e-9", "dualTolerance 1e-9"]


@dataclass(frozen=True)
class MilpResult:
    """The chosen cell as (batch of programs, index in it), its seconds per token, and how large the problem was."""

    batch: int
    index: int
    seconds_per_token: float
    num_cells: int
    num_variables: int
    num_constraints: int


def build_milp(batches: Sequence[NodePrograms]) -> tuple[pulp.LpProblem, list[tuple[int, int, pulp.LpVariable]]]:
    """The problem and its cells' binaries; every program of `batches` must be a single cell (t fixed at 1)."""
    problem = pulp.LpProblem("policy_search", pulp.LpMinimize)
    chosen, objective = [], []
    scale = _objective_scale(batches)
    for b, batch in enumerate(batches):
        for k in range(len(batch.nodes)):
            cell = f"p{b}_mu{batch.nodes.mu_lo[k]:.0f}_N{batch.nodes.n_lo[k]:.0f}"
            binary = pulp.LpVariable(f"choose_{cell}", cat=pulp.LpBinary)
            chosen.append((b, k, binary))
            objective += _add_cell(problem, batch, k, cell, binary, scale)
    problem += pulp.lpSum(objective), "seconds_per_token"
    problem += pulp.lpSum(binary for _, _, binary in chosen) == 1, "choose_one_cell"
    return problem, chosen


def _objective_scale(batches: Sequence[NodePrograms]) -> float:
    """Seconds per token that count as 1 in the objective: small, so that near ties stand far above CBC's tolerances."""
    return 1e-4 * max(float(batch.cost.max()) for batch in batches)


def _add_cell(
    problem: pulp.LpProblem, batch: NodePrograms, k: int, cell: str, binary: pulp.LpVariable, scale: float
) -> list[tuple[pulp.LpVariable, float]]:
    variables = {}
    for column in range(batch.rows.shape[2]):
        if column in (Col.UNIT, Col.T):
            variables[column] = binary
        elif column not in EXCESS:
            name = Col(column).name.lower() if column in set(Col) else f"pass_{column - Col.PASS}"
            variables[column] = pulp.LpVariable(f"{name}_{cell}", lowBound=0)
            upper, lower = batch.upper[k, column], batch.lower[k, column]
            if np.isfinite(upper):
                problem += variables[column] <= float(upper) * binary, f"{name}_upper_{cell}"
            if lower > 0:
                problem += variables[column] >= float(lower) * binary, f"{name}_lower_{cell}"
    for r, row_name in enumerate(batch.row_names):
        row = batch.rows[k, r]
        terms = [(variables[c], float(row[c])) for c in np.flatnonzero(row).tolist() if c not in EXCESS]
        problem += pulp.LpAffineExpression(_merged(terms)) <= 0, f"{row_name}_{r}_{cell}"
    cost = batch.cost[k]
    return [float(cost[c] / scale) * variables[c] for c in np.flatnonzero(cost).tolist() if c in variables]


def _merged(terms: list[tuple[pulp.LpVariable, float]]) -> dict[pulp.LpVariable, float]:
    total: dict[pulp.LpVariable, float] = {}
    for variable, value in terms:
        total[variable] = total.get(variable, 0.0) + value
    return total


def solve_milp(batches: Sequence[NodePrograms]) -> MilpResult:
    """Solves the program over the given cells to proven optimality with CBC.

    Raises:
        SolverError: CBC did not prove optimality (no feasible cell among those given, or a solver fault).
    """
    problem, chosen = build_milp(batches)
    problem.solve(pulp.PULP_CBC_CMD(msg=False, gapRel=0.0, options=CBC_OPTIONS))
    status = pulp.LpStatus[problem.status]
    if status != "Optimal":
        raise SolverError(f"CBC ended the policy search as {status!r}, not as proven optimal")
    b, k, _ = max(chosen, key=lambda entry: float(entry[2].value() or 0.0))
    value = float(pulp.value(problem.objective)) * _objective_scale(batches)
    return MilpResult(b, k, value, len(chosen), problem.numVariables(), problem.numConstraints())
