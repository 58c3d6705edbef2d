"""Predicted throughput over a grid of (mu, N): what a policy heatmap shows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrm.predict.rates import Rates
from hrm.search.boxes import cells, concatenate
from hrm.search.branch import solve_boxes
from hrm.search.pool import search_pool
from hrm.search.search import SearchResult

SMALLEST_BATCH = 1 / 200  # of the best
LARGEST_BATCH = 2.5


@dataclass(frozen=True)
class Heatmap:
    """Best throughput over all placements of a schedule in tokens/s [len(batch_sizes), len(micro_batch_sizes)].

    Each cell takes as many micro-batches of its mu as the row's batch size holds; nan where mu exceeds N, -inf where
    nothing fits in memory. `best` is the search's optimum (mu, N, tokens/s), the value of one of the cells.
    """

    title: str
    micro_batch_sizes: NDArray[np.int64]
    batch_sizes: NDArray[np.int64]
    throughput: NDArray[np.float64]
    best: tuple[int, int, float]


def policy_heatmap(result: SearchResult, points: int = 24) -> Heatmap:
    """About `points` x `points` cells around a search's optimum, which lies on the grid.

    N runs from 1/200 to 2.5 times the best batch size, mu from 1 to the best batch size, both geometrically.
    """
    rates, policy = result.rates, result.policy
    n, mu = policy.batch_size, policy.micro_batch_size
    rows = _geometric(max(1.0, n * SMALLEST_BATCH), n, LARGEST_BATCH * n, points)
    columns = _geometric(1.0, mu, float(n), points)
    grid = np.full((len(rows), len(columns)), np.nan)
    i, j = np.nonzero(rows[:, None] >= columns[None, :])
    grid[i, j] = _throughput(rates, result.schedule, columns[j], rows[i] // columns[j])
    title = f"{rates.model.name} on {rates.machine.profile.name}, {rates.workload.name}"
    return Heatmap(title, columns, rows, grid, (mu, n, result.prediction.generation_throughput))


def _geometric(low: float, through: int, high: float, points: int) -> NDArray[np.int64]:
    """Whole numbers in geometric steps from about `low` to about `high`, `through` among them."""
    step = max((high / low) ** (1 / max(points - 1, 1)), 1 + 1e-9)
    below, above = (int(np.floor(np.log(ratio) / np.log(step) + 1e-9)) for ratio in (through / low, high / through))
    exact = through * step ** np.arange(-below, above + 1, dtype=float)
    sizes: NDArray[np.int64] = np.unique(np.maximum(1, exact.round()).astype(np.int64))
    return sizes


def _throughput(
    rates: Rates, schedule: str, mu: NDArray[np.int64], micro_batches: NDArray[np.int64]
) -> NDArray[np.float64]:
    pool = search_pool(rates, schedule)
    parts, owners = [], []
    for p, placement in enumerate(pool):
        most = placement.max_micro_batches or np.inf
        allowed = np.flatnonzero((micro_batches >= placement.min_micro_batches) & (micro_batches <= most))
        parts.append(cells(np.full(len(allowed), p), mu[allowed], micro_batches[allowed]))
        owners.append(allowed)
    seconds = solve_boxes(rates, pool, concatenate(parts)).value
    best = np.full(len(mu), np.inf)
    np.minimum.at(best, np.concatenate(owners), seconds)
    return np.where(np.isfinite(best), 1.0 / best, -np.inf)
