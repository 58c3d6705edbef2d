"""Solves many small linear programs at once, as one block-diagonal program in HiGHS."""

from collections.abc import Sequence
from dataclasses import dataclass

import highspy
import numpy as np
from numpy.typing import NDArray

from hrm.errors import SolverError
from hrm.search.relaxation import EXCESS, NUM_COLS, NodePrograms

EXCESS_PENALTY = 1e4
EXCESS_TOLERANCE = 1e-9
FEASIBILITY_TOLERANCE = 1e-10


@dataclass(frozen=True)
class NodeSolutions:
    """Optima of a batch: `value` seconds per token (inf where memory does not suffice), `x` [nodes, NUM_COLS]."""

    value: NDArray[np.float64]
    x: NDArray[np.float64]


def solve_nodes(
    batches: Sequence[NodePrograms], costs: Sequence[NDArray[np.float64]] | None = None
) -> list[NodeSolutions]:
    """Solves the programs of every batch in one call; `costs` replaces their objective.

    Capacity rows may be exceeded at a price, so that one node that does not fit leaves the others solvable; such a
    node's value is inf.

    Raises:
        SolverError: HiGHS did not reach optimality.
    """
    if not batches:
        return []
    objectives = [batch.cost for batch in batches] if costs is None else list(costs)
    model = make_block(
        [b.rows for b in batches],
        [scaled_costs(cost) for cost in objectives],
        [b.lower for b in batches],
        [b.upper for b in batches],
    )
    x = np.asarray(run_highs(model).getSolution().col_value).reshape(-1, NUM_COLS)
    results, start = [], 0
    for objective in objectives:
        own = x[start : start + len(objective)]
        start += len(objective)
        results.append(NodeSolutions(true_values(objective, own), own))
    return results


def true_values(objective: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """objective @ x per program; inf where a capacity is exceeded."""
    value: NDArray[np.float64] = np.einsum("kc,kc->k", objective, x)
    value[x[:, EXCESS].max(axis=1) > EXCESS_TOLERANCE] = np.inf
    return value


def scaled_costs(cost: NDArray[np.float64]) -> NDArray[np.float64]:
    """The objective scaled to at most 1 per program, with the price of exceeding a capacity."""
    scaled: NDArray[np.float64] = cost / np.maximum(cost.max(axis=1, keepdims=True), 1e-300)
    scaled[:, EXCESS] = EXCESS_PENALTY
    return scaled


def make_block(
    rows: list[NDArray[np.float64]],
    costs: list[NDArray[np.float64]],
    lowers: list[NDArray[np.float64]],
    uppers: list[NDArray[np.float64]],
) -> highspy.HighsLp:
    """The block-diagonal program of all nodes; rows[i] is [nodes_i, rows_i, NUM_COLS]."""
    pieces, first = [], 0
    for block in rows:
        node, row, column = np.nonzero(block)
        counts = np.count_nonzero(block, axis=2).ravel()
        pieces.append((counts, (first + node) * NUM_COLS + column, block[node, row, column]))
        first += len(block)
    counts = np.concatenate([p[0] for p in pieces])
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = first * NUM_COLS, len(counts)
    model.col_cost_ = np.concatenate(costs).ravel()
    model.col_lower_, model.col_upper_ = np.concatenate(lowers).ravel(), np.concatenate(uppers).ravel()
    model.row_lower_, model.row_upper_ = np.full(len(counts), -np.inf), np.zeros(len(counts))
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    model.a_matrix_.index_ = np.concatenate([p[1] for p in pieces]).astype(np.int32)
    model.a_matrix_.value_ = np.concatenate([p[2] for p in pieces])
    return model


def run_highs(model: highspy.HighsLp) -> highspy.Highs:
    """The solver after it has proven optimality.

    Raises:
        SolverError: it ended otherwise.
    """
    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("primal_feasibility_tolerance", FEASIBILITY_TOLERANCE)
    solver.setOptionValue("dual_feasibility_tolerance", FEASIBILITY_TOLERANCE)
    solver.passModel(model)
    solver.run()
    status = solver.getModelStatus()
    if status != highspy.HighsModelStatus.kOptimal:
        raise SolverError(f"the linear relaxation ended as {solver.modelStatusToString(status)}, not as optimal")
    return solver
