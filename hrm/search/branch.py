"""Exact search over every integer (mu, N) of every placement: branch and bound on linear relaxations."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hrm.predict.node import Nodes
from hrm.predict.rates import Rates
from hrm.schedule.placement import Placement
from hrm.search.batch_lp import NodeSolutions, solve_nodes
from hrm.search.boxes import Boxes, cells, concatenate, split, tightened
from hrm.search.node_programs import Col
from hrm.search.relaxation import node_programs

BATCH = 160  # boxes split per round: large enough to amortise a solver call
TIE_TOLERANCE = 1e-10  # a box whose bound is within this share of the incumbent cannot matter

CellKey = tuple[int, int, int]
"""(placement index, micro-batch size, number of micro-batches)"""


@dataclass
class SearchState:
    """What is known so far. `values` holds seconds per token of every cell solved exactly."""

    rates: Rates
    placements: tuple[Placement, ...]
    keep: int
    values: dict[CellKey, float] = field(default_factory=dict)
    best: dict[int, tuple[float, CellKey]] = field(default_factory=dict)
    boxes_bounded: int = 0
    lowest_pruned: float = np.inf

    @property
    def relative_gap(self) -> float:
        """How far below the answer the lowest bound of any box that was put aside lies, as a share of it."""
        best = min(value for value, _ in self.best.values())
        return max(0.0, (best - self.lowest_pruned) / best)

    def record(self, boxes: Boxes, value: NDArray[np.float64]) -> None:
        """Takes in exact values of cells."""
        for p, mu, k, seconds in zip(boxes.placement, boxes.mu_lo, boxes.k_lo, value, strict=True):
            key = (int(p), int(mu), int(k))
            self.values[key] = float(seconds)
            if seconds < self.best.get(key[0], (np.inf, key))[0]:
                self.best[key[0]] = (float(seconds), key)

    def threshold(self, placement: NDArray[np.int64]) -> NDArray[np.float64]:
        """Seconds per token that a box must beat to matter: its own placement's best and the `keep`-th best of all."""
        ranked = sorted(value for value, _ in self.best.values())
        overall = ranked[self.keep - 1] if len(ranked) >= self.keep else np.inf
        own = np.array([self.best.get(int(p), (np.inf,))[0] for p in placement])
        limit: NDArray[np.float64] = np.minimum(own, overall) * (1 - TIE_TOLERANCE)
        return limit


def solve_boxes(rates: Rates, placements: tuple[Placement, ...], boxes: Boxes) -> NodeSolutions:
    """Optimum of every box's relaxation, in the order of `boxes`; one solver call."""
    nodes = boxes.nodes()
    groups = [np.flatnonzero(boxes.placement == p) for p in np.unique(boxes.placement)]
    programs = [node_programs(rates, placements[boxes.placement[g[0]]], nodes.take(g)) for g in groups]
    solved = solve_nodes(programs)
    order = np.argsort(np.concatenate(groups)) if groups else np.array([], dtype=int)
    return NodeSolutions(np.concatenate([s.value for s in solved])[order], np.concatenate([s.x for s in solved])[order])


def largest_batches(rates: Rates, placements: tuple[Placement, ...]) -> NDArray[np.int64]:
    """Largest batch size that memory allows under each placement, at mu = 1; 0 where nothing fits."""
    ceiling = float(max(2, _batch_ceiling(rates)))
    one = np.ones(1)
    programs = [node_programs(rates, p, Nodes(one, one, p.min_micro_batches * one, ceiling * one)) for p in placements]
    costs = []
    for program in programs:
        cost = np.zeros_like(program.cost)
        cost[:, Col.T] = 1.0
        costs.append(cost)
    widest = np.array([s.value[0] for s in solve_nodes(programs, costs)])
    return np.where(np.isfinite(widest), np.floor(ceiling / widest * (1 + 1e-9)), 0).astype(np.int64)


def _batch_ceiling(rates: Rates) -> int:
    """A batch size that cannot fit: all memory over what one sequence needs at the least."""
    per_sequence = rates.sizes.hidden_bytes + rates.sizes.kv_bytes_per_sequence(rates.workload.prompt_len)
    machine = rates.machine
    return int((machine.gpu_memory_bytes + machine.cpu_memory_bytes) / per_sequence) + 1


def root_boxes(placements: tuple[Placement, ...], caps: NDArray[np.int64]) -> Boxes:
    """One box per placement that fits, holding all its (mu, k)."""
    index = np.flatnonzero(caps > 0)
    cap, one = caps[index], np.ones(len(index), dtype=np.int64)
    fewest = np.array([placements[i].min_micro_batches for i in index], dtype=np.int64)
    most = np.array([placements[i].max_micro_batches or c for i, c in zip(index, cap, strict=True)], dtype=np.int64)
    return tightened(Boxes(index.astype(np.int64), one, cap, fewest, most, cap))


def branch_and_bound(
    rates: Rates, placements: tuple[Placement, ...], keep: int = 1, batch_limit: int | None = None
) -> SearchState:
    """Proves the best cell of the `keep` best placements, of a batch size up to `batch_limit` where that is given.

    On return every (placement, mu, k) that memory allows either was solved exactly or lies in a box whose lower bound
    on seconds per token is not below the incumbent's.
    """
    state = SearchState(rates, placements, keep)
    caps = largest_batches(rates, placements)
    if batch_limit is not None:
        caps = np.minimum(caps, batch_limit)
    if not caps.any():
        return state
    boxes = root_boxes(placements, caps)
    bound = np.zeros(len(boxes))
    while len(boxes):
        order = np.argsort(bound, kind="stable")[:BATCH]
        rest = np.ones(len(boxes), dtype=bool)
        rest[order] = False
        boxes, bound = _round(state, boxes.take(order), boxes.take(rest), bound[rest])
    return state


def _round(
    state: SearchState, chosen: Boxes, others: Boxes, other_bounds: NDArray[np.float64]
) -> tuple[Boxes, NDArray[np.float64]]:
    children = split(chosen.take(~chosen.is_cell))
    parts = [children, chosen.take(chosen.is_cell)] if chosen.is_cell.any() else [children]
    todo = concatenate(parts)
    solved = solve_boxes(state.rates, state.placements, todo)
    state.boxes_bounded += len(todo)
    leaf = todo.is_cell
    state.record(todo.take(leaf), solved.value[leaf])
    inner, inner_bound = todo.take(~leaf), solved.value[~leaf]
    _try_cells(state, inner, solved.x[~leaf], inner_bound)
    boxes, bounds = concatenate([others, inner]), np.concatenate([other_bounds, inner_bound])
    open_ = bounds < state.threshold(boxes.placement)
    state.lowest_pruned = min(state.lowest_pruned, bounds[~open_].min(initial=np.inf))
    return boxes.take(open_), bounds[open_]


def _try_cells(state: SearchState, boxes: Boxes, x: NDArray[np.float64], bound: NDArray[np.float64]) -> None:
    """Solves one cell inside each promising box, near its relaxed optimum, for a good incumbent early."""
    promising = np.flatnonzero(bound < state.threshold(boxes.placement))
    promising = promising[np.argsort(bound[promising])][: BATCH // 2]
    if not len(promising):
        return
    picked, target = boxes.take(promising), boxes.nodes().n_hi[promising] / x[promising, Col.T]
    mu = np.sqrt(picked.mu_lo.astype(float) * picked.mu_hi).astype(np.int64)
    k = np.clip((target / mu).astype(np.int64), picked.k_lo, picked.k_hi)
    mu = np.clip((target / k).astype(np.int64), picked.mu_lo, picked.mu_hi)
    fits = mu * k <= picked.cap
    trial = cells(picked.placement[fits], mu[fits], k[fits])
    fresh = [
        i for i, key in enumerate(zip(trial.placement, trial.mu_lo, trial.k_lo, strict=True))
        if tuple(map(int, key)) not in state.values
    ]  # fmt: skip
    if fresh:
        trial = trial.take(np.array(fresh))
        state.record(trial, solve_boxes(state.rates, state.placements, trial).value)
