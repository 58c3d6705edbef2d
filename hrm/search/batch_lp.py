"""Solves many small linear programs at once, as one block-diagonal program in HiGHS."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import highspy
import numpy as np
from numpy.typing import NDArray

from hrm.errors import SolverError
from hrm.search.node_programs import EXCESS, NUM_COLS, NodePrograms

EXCESS_PENALTY = 1e3  # only a first guess at what tells feasible from infeasible; doubtful programs are solved again
EXCESS_TOLERANCE = 1e-9
FEASIBILITY_TOLERANCE = 1e-10

Matrix = NDArray[np.float64]
Engine = Callable[[Sequence[NodePrograms], Sequence[Matrix]], list[Matrix]]
"""Optimal x [nodes, NUM_COLS] of every batch, given its costs [nodes, NUM_COLS]"""


@dataclass(frozen=True)
class NodeSolutions:
    """Optima of a batch: `value` seconds per token (inf where memory does not suffice), `x` [nodes, NUM_COLS]."""

    value: NDArray[np.float64]
    x: Matrix


def solve_nodes(batches: Sequence[NodePrograms], costs: Sequence[Matrix] | None = None) -> list[NodeSolutions]:
    """Solves the programs of every batch in one call; `costs` replaces their objective.

    Raises:
        SolverError: HiGHS did not reach optimality.
    """
    objectives = [batch.cost for batch in batches] if costs is None else list(costs)
    return solve_exactly(batches, objectives, _highs_engine) if batches else []


def solve_exactly(batches: Sequence[NodePrograms], objectives: Sequence[Matrix], engine: Engine) -> list[NodeSolutions]:
    """Optima, or inf for the programs that no choice makes fit.

    Capacity rows may be exceeded at a price, so that one node that does not fit leaves the others solvable. The price
    is no proof: where capacity is exceeded, the least excess is found, and a program that can do without any is solved
    again with the capacity as a hard limit.
    """
    xs = engine(batches, [_scaled(cost, EXCESS_PENALTY) for cost in objectives])
    doubtful = [np.flatnonzero(_excess(x) > EXCESS_TOLERANCE) for x in xs]
    if any(len(index) for index in doubtful):
        least = engine(_taken(batches, doubtful), [_excess_only(len(index)) for index in doubtful])
        fitting = [i[_excess(x) <= EXCESS_TOLERANCE] for i, x in zip(doubtful, least, strict=True)]
        if any(len(index) for index in fitting):
            hard = [b.with_excess_at_most(EXCESS_TOLERANCE) for b in _taken(batches, fitting)]
            again = engine(hard, [_scaled(c[i], 0.0) for c, i in zip(objectives, fitting, strict=True)])
            for x, index, solution in zip(xs, fitting, again, strict=True):
                x[index] = solution
    return [NodeSolutions(_values(cost, x), x) for cost, x in zip(objectives, xs, strict=True)]


def _taken(batches: Sequence[NodePrograms], index: Sequence[NDArray[np.intp]]) -> list[NodePrograms]:
    return [batch.take(i) for batch, i in zip(batches, index, strict=True)]


def _excess(x: Matrix) -> NDArray[np.float64]:
    most: NDArray[np.float64] = x[:, EXCESS].max(axis=1, initial=0.0)
    return most


def _excess_only(count: int) -> Matrix:
    cost = np.zeros((count, NUM_COLS))
    cost[:, EXCESS] = 1.0
    return cost


def _values(objective: Matrix, x: Matrix) -> NDArray[np.float64]:
    value: NDArray[np.float64] = np.einsum("kc,kc->k", objective, x)
    value[_excess(x) > EXCESS_TOLERANCE] = np.inf
    return value


def _scaled(cost: Matrix, penalty: float) -> Matrix:
    """The objective scaled to at most 1 per program, with the price of exceeding a capacity."""
    scaled: Matrix = cost / np.maximum(cost.max(axis=1, keepdims=True, initial=0.0), 1e-300)
    scaled[:, EXCESS] = penalty
    return scaled


def _highs_engine(batches: Sequence[NodePrograms], costs: Sequence[Matrix]) -> list[Matrix]:
    solver = run_highs(make_block(batches, costs))
    x = np.asarray(solver.getSolution().col_value).reshape(-1, NUM_COLS)
    return [part.copy() for part in np.split(x, np.cumsum([len(b.nodes) for b in batches])[:-1])]


def make_block(batches: Sequence[NodePrograms], costs: Sequence[Matrix]) -> highspy.HighsLp:
    """The block-diagonal program of all nodes."""
    pieces, first = [], 0
    for batch in batches:
        node, row, column = np.nonzero(batch.rows)
        counts = np.count_nonzero(batch.rows, axis=2).ravel()
        pieces.append((counts, (first + node) * NUM_COLS + column, batch.rows[node, row, column]))
        first += len(batch.nodes)
    counts = np.concatenate([p[0] for p in pieces])
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = first * NUM_COLS, len(counts)
    model.col_cost_ = np.concatenate(list(costs)).ravel()
    model.col_lower_ = np.concatenate([b.lower for b in batches]).ravel()
    model.col_upper_ = np.concatenate([b.upper for b in batches]).ravel()
    model.row_lower_, model.row_upper_ = np.full(len(counts), -np.inf), np.zeros(len(counts))
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    model.a_matrix_.index_ = np.concatenate([p[1] for p in pieces]).astype(np.int32)
    model.a_matrix_.value_ = np.concatenate([p[2] for p in pieces])
    return model


# Tried in turn: HiGHS now and then gives up on a block with one setting and solves it with the next.
_SETTINGS: tuple[dict[str, str | int | float], ...] = (
    {"presolve": "off"},  # a third faster on blocks this small
    {},
    {"primal_feasibility_tolerance": 1e-9, "dual_feasibility_tolerance": 1e-9},
    {"presolve": "off", "simplex_strategy": 4},
    {"primal_feasibility_tolerance": 1e-7, "dual_feasibility_tolerance": 1e-7},
)


def run_highs(model: highspy.HighsLp) -> highspy.Highs:
    """The solver after it has proven optimality.

    Raises:
        SolverError: it ended otherwise with every setting.
    """
    for settings in _SETTINGS:
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("threads", 1)
        solver.setOptionValue("primal_feasibility_tolerance", FEASIBILITY_TOLERANCE)
        solver.setOptionValue("dual_feasibility_tolerance", FEASIBILITY_TOLERANCE)
        for name, value in settings.items():
            solver.setOptionValue(name, value)
        solver.passModel(model)
        solver.run()
        status = solver.getModelStatus()
        if status == highspy.HighsModelStatus.kOptimal:
            return solver
    raise SolverError(f"the linear relaxation ended as {solver.modelStatusToString(status)}, not as optimal")
