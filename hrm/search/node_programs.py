"""Linear programs of nodes as data: their variables, and arrays of rows, costs and bounds.

Charnes-Cooper form: every variable is multiplied by t = N_hi / N, which makes the program linear in t too, so that one
program covers a whole range of batch sizes. At a single batch size t = 1 and the program is the policy's own.
"""

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from hrm.predict.node import Nodes
from hrm.schedule.placement import Placement

MAX_PASSES = 2


class Col(IntEnum):
    """Variables of a node, each times t = N_hi / N unless it is a share of sequences (A_g, r_c, F_g itself)."""

    UNIT = 0  # fixed at 1: carries constants, so that every row is homogeneous
    T = 1
    ATTENTION = 2
    KV = 3
    WEIGHTS = 4
    EXPERTS = 5  # F_g * t
    EXPERT_SHARE = 6  # F_g
    DENSE = 7
    DISK = 8
    POOL = 9
    PASS = 10  # seconds of the first kind of pass; the second follows
    GPU_EXCESS = 12  # memory beyond capacity: 0 in a feasible node
    CPU_EXCESS = 13
    DISK_EXCESS = 14


NUM_COLS = len(Col) + MAX_PASSES - 1
EXCESS = (Col.GPU_EXCESS, Col.CPU_EXCESS, Col.DISK_EXCESS)


@dataclass(frozen=True)
class NodePrograms:
    """min cost @ x subject to rows @ x <= 0 and lower <= x <= upper, one program per node.

    Shapes: rows [nodes, num_rows, NUM_COLS], cost, lower, upper [nodes, NUM_COLS]. Minimum: seconds per token.
    `time_scale` [nodes, MAX_PASSES] and `pool_scale` turn the PASS and POOL variables back into seconds and bytes.
    """

    placement: Placement
    nodes: Nodes
    row_names: tuple[str, ...]
    rows: NDArray[np.float64]
    cost: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    time_scale: NDArray[np.float64]
    pool_scale: float

    def take(self, index: NDArray[np.intp]) -> "NodePrograms":
        """The programs at `index`."""
        return replace(
            self,
            nodes=self.nodes.take(index),
            **{name: getattr(self, name)[index] for name in ("rows", "cost", "lower", "upper", "time_scale")},
        )

    def with_excess_at_most(self, limit: float) -> "NodePrograms":
        """The same programs with capacities that may be exceeded by no more than `limit` (of the capacity)."""
        upper = self.upper.copy()
        upper[:, EXCESS] = limit
        return replace(self, upper=upper)
