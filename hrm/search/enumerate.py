"""Solves every cell that memory allows, without any bound: the slow check of the exact search."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrm.predict.rates import Rates
from hrm.schedule.placement import Placement
from hrm.search.boxes import Boxes, cells
from hrm.search.branch import CellKey, largest_batches
from hrm.search.certify import solve_by_basis
from hrm.search.relaxation import node_programs

CHUNK = 1024


@dataclass(frozen=True)
class Enumeration:
    """The best cell of all, and how many there were. `seconds_per_token` is inf where nothing fits."""

    seconds_per_token: float
    key: CellKey | None
    num_cells: int


def all_cells(placements: tuple[Placement, ...], caps: NDArray[np.int64]) -> Iterator[Boxes]:
    """Every (placement, mu, k) with mu * k within the placement's largest batch, in chunks."""
    for p, cap in enumerate(caps):
        if cap < 1:
            continue
        mu = np.arange(1, cap + 1)
        counts = _micro_batch_counts(placements[p], int(cap))
        every_mu = np.repeat(mu, counts)
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        every_k = np.arange(len(every_mu)) - starts + placements[p].min_micro_batches
        for start in range(0, len(every_mu), CHUNK):
            part = slice(start, start + CHUNK)
            yield cells(np.full(len(every_mu[part]), p), every_mu[part], every_k[part])


def count_cells(placements: tuple[Placement, ...], caps: NDArray[np.int64]) -> int:
    """Number of cells that `all_cells` yields."""
    return sum(int(_micro_batch_counts(placements[p], int(cap)).sum()) for p, cap in enumerate(caps) if cap > 0)


def _micro_batch_counts(placement: Placement, cap: int) -> NDArray[np.int64]:
    """For mu = 1 .. cap: how many numbers of micro-batches keep the batch within cap."""
    most = cap // np.arange(1, cap + 1)
    if placement.max_micro_batches is not None:
        most = np.minimum(most, placement.max_micro_batches)
    return np.maximum(0, most - placement.min_micro_batches + 1)


def enumerate_all(
    rates: Rates, placements: tuple[Placement, ...], progress: Callable[[int, int], None] | None = None
) -> Enumeration:
    """Solves the linear program of every cell; `progress(done, total)` is called after each chunk."""
    caps = largest_batches(rates, placements)
    total, done = count_cells(placements, caps), 0
    best, key = np.inf, None
    for chunk in all_cells(placements, caps):
        programs = node_programs(rates, placements[int(chunk.placement[0])], chunk.nodes())
        value = solve_by_basis(programs).value
        i = int(np.argmin(value))
        if value[i] < best:
            best, key = float(value[i]), (int(chunk.placement[i]), int(chunk.mu_lo[i]), int(chunk.k_lo[i]))
        done += len(chunk)
        if progress:
            progress(done, total)
    return Enumeration(best, key, done)
