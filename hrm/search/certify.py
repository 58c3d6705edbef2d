"""Solves many like linear programs by reusing a basis: each optimum is certified by its own optimality conditions.

Neighbouring cells mostly share the optimal basis. Given the basis of one solved cell, the basic solution of all others
is a batched linear solve; where it is primal and dual feasible it is optimal (the Karush-Kuhn-Tucker conditions of a
linear program), and no solver has to be asked. Cells that fail the test lend the next basis.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import highspy
import numpy as np
from numpy.typing import NDArray

from hrm.search.batch_lp import Matrix, NodeSolutions, make_block, run_highs, solve_exactly
from hrm.search.node_programs import EXCESS, NUM_COLS, NodePrograms

TOLERANCE = 1e-9
ATTEMPTS = 40


@dataclass(frozen=True)
class Basis:
    """Which columns are basic, which bound the others sit at, and which rows hold with equality."""

    basic: NDArray[np.intp]
    at_upper: NDArray[np.bool_]
    active: NDArray[np.intp]


def solve_by_basis(programs: NodePrograms) -> NodeSolutions:
    """Optima of a batch of like programs; same contract as `solve_nodes` for one batch.

    Raises:
        SolverError: the solver failed on a cell.
    """
    return solve_exactly([programs], [programs.cost], _basis_engine)[0]


def _basis_engine(batches: Sequence[NodePrograms], costs: Sequence[Matrix]) -> list[Matrix]:
    return [_solve(batch, cost) for batch, cost in zip(batches, costs, strict=True)]


def _solve(programs: NodePrograms, cost: Matrix) -> Matrix:
    x = np.zeros((len(programs.nodes), NUM_COLS))
    pending = np.arange(len(x))
    for _ in range(ATTEMPTS):
        if not len(pending):
            return x
        lender = pending[len(pending) // 2 : len(pending) // 2 + 1]
        basis = _solve_one(programs.take(lender), cost[lender])
        solution, optimal = _try_basis(programs.take(pending), cost[pending], basis)
        x[pending[optimal]] = solution[optimal]
        pending = pending[~optimal]
    if len(pending):
        solver = run_highs(make_block([programs.take(pending)], [cost[pending]]))
        x[pending] = np.asarray(solver.getSolution().col_value).reshape(-1, NUM_COLS)
    return x


def _solve_one(program: NodePrograms, cost: Matrix) -> Basis:
    basis = run_highs(make_block([program], [cost])).getBasis()
    columns = np.array([int(s) for s in basis.col_status])
    rows = np.array([int(s) for s in basis.row_status])
    is_basic = int(highspy.HighsBasisStatus.kBasic)
    return Basis(
        np.flatnonzero(columns == is_basic),
        columns == int(highspy.HighsBasisStatus.kUpper),
        np.flatnonzero(rows != is_basic),
    )


def _try_basis(
    programs: NodePrograms, cost: NDArray[np.float64], basis: Basis
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Basic solutions [cells, NUM_COLS], and where they are optimal."""
    rows, lower, upper = programs.rows, programs.lower, programs.upper
    x = np.where(basis.at_upper, upper, lower)
    x[:, basis.basic] = 0.0
    active = rows[:, basis.active]
    square = active[:, :, basis.basic]
    with np.errstate(all="ignore"):
        try:
            x[:, basis.basic] = np.linalg.solve(square, -np.einsum("krc,kc->kr", active, x)[..., None])[..., 0]
            dual = np.linalg.solve(square.transpose(0, 2, 1), cost[:, basis.basic, None])[..., 0]
        except np.linalg.LinAlgError:
            return x, np.zeros(len(x), dtype=bool)
        reduced = cost - np.einsum("krc,kr->kc", active, dual)
        scale = np.abs(np.delete(cost, EXCESS, axis=1)).max(axis=1, keepdims=True, initial=1e-3)
        primal = (x >= lower - TOLERANCE).all(axis=1) & (x <= upper + TOLERANCE).all(axis=1)
        primal &= np.einsum("krc,kc->kr", rows, x).max(axis=1) <= TOLERANCE
        fixed = lower == upper
        price = np.where(basis.at_upper, -reduced, reduced)
        price[:, basis.basic] = 0.0
        dual_ok = ((price >= -TOLERANCE * scale) | fixed).all(axis=1) & (dual <= TOLERANCE * scale).all(axis=1)
    return x, primal & dual_ok
