"""A batch of search nodes: ranges of micro-batch size and batch size, evaluated together."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Nodes:
    """Ranges [mu_lo, mu_hi] of micro-batch sizes and [n_lo, n_hi] of batch sizes (sequences), arrays [nodes].

    A form built for a node is a lower bound, coefficient by coefficient, over every policy in its ranges: time falls
    as batches grow (weights are read less often per sequence), memory grows with them. Where both ranges are single
    values the bound is exact.
    """

    mu_lo: NDArray[np.float64]
    mu_hi: NDArray[np.float64]
    n_lo: NDArray[np.float64]
    n_hi: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.mu_lo)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> "Nodes":
        """The nodes at `index`."""
        return Nodes(self.mu_lo[index], self.mu_hi[index], self.n_lo[index], self.n_hi[index])


def single_nodes(micro_batch_size: NDArray[np.float64], batch_size: NDArray[np.float64]) -> Nodes:
    """Nodes of exactly one policy cell each."""
    return Nodes(micro_batch_size, micro_batch_size, batch_size, batch_size)
