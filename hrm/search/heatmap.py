"""Predicted throughput over a grid of (mu, N): what a policy heatmap shows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrm.predict.rates import Rates
from hrm.schedule.registry import placements
from hrm.search.boxes import cells, concatenate
from hrm.search.branch import solve_boxes
from hrm.search.search import SearchResult


@dataclass(frozen=True)
class Heatmap:
    """Best throughput over all placements of a schedule in tokens/s [len(batch_sizes), len(micro_batch_sizes)].

    Each cell takes the whole number of micro-batches whose batch is nearest to the row's batch size; nan where mu
    exceeds N, -inf where nothing fits in memory.
    """

    title: str
    micro_batch_sizes: NDArray[np.int64]
    batch_sizes: NDArray[np.int64]
    throughput: NDArray[np.float64]
    best: tuple[int, int, float]


def policy_heatmap(result: SearchResult, points: int = 24) -> Heatmap:
    """The cells around a search's optimum, geometrically spaced from 1 to twice the best batch size."""
    rates, best = result.rates, result.policy
    top = 2 * best.batch_size
    sizes = np.unique(np.geomspace(1, top, points).round().astype(np.int64))
    grid = np.full((len(sizes), len(sizes)), np.nan)
    rows, columns = np.nonzero(sizes[:, None] >= sizes[None, :])
    mu = sizes[columns]
    micro_batches = np.maximum(1, np.round(sizes[rows] / mu)).astype(np.int64)
    grid[rows, columns] = _throughput(rates, result.schedule, mu, micro_batches)
    title = f"{rates.model.name} on {rates.machine.profile.name}: tokens/s"
    return Heatmap(
        title, sizes, sizes, grid, (best.micro_batch_size, best.batch_size, result.prediction.generation_throughput)
    )


def _throughput(
    rates: Rates, schedule: str, mu: NDArray[np.int64], micro_batches: NDArray[np.int64]
) -> NDArray[np.float64]:
    pool = placements(schedule)
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
