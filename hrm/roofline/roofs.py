"""The Hierarchical Roofline Model: roofs, turning points and balance point of one operator between two levels.

Source: MoE-Lightning, arXiv 2411.11217, section 3.2, Eq. 4-11. Level i is where the operator runs, level j where its
data lies. All functions are pure arithmetic in SI units (flop/s, B/s, flops/byte).
"""

from dataclasses import dataclass

import numpy as np

from hrm.errors import RooflineError
from hrm.roofline.operator import Quantity

ABOVE_ROOF_TOLERANCE = 1e-9


@dataclass(frozen=True)
class LevelRoof:
    """One memory level with its processor: the compute roof (Eq. 4) and the memory roof (Eq. 5)."""

    name: str
    peak_flops_per_s: float
    bytes_per_s: float

    @property
    def ridge_point(self) -> float:
        """Flops/byte from which the compute roof binds."""
        return self.peak_flops_per_s / self.bytes_per_s

    def attainable(self, intensity: Quantity) -> Quantity:
        """min(P_peak, B_peak * I) in flop/s, Eq. 4-5."""
        return np.minimum(self.peak_flops_per_s, self.bytes_per_s * intensity)


@dataclass(frozen=True)
class HierarchicalRoofline:
    """Two levels and the link from `far` (data) to `near` (compute).

    `far.peak_flops_per_s` is 0 where the far level has no processor (a disk).
    """

    near: LevelRoof
    far: LevelRoof
    link_bytes_per_s: float

    def attainable(self, near_intensity: Quantity, far_intensity: Quantity) -> Quantity:
        """min(P_i, B_i * I_i, B_ji * I_j) in flop/s, Eq. 6-8: run at the near level, data streamed from far.

        `near_intensity` counts bytes moved at the near level, `far_intensity` bytes moved over the link.
        """
        return np.minimum(self.near.attainable(near_intensity), self.link_bytes_per_s * far_intensity)

    @property
    def turning_point_p1(self) -> float:
        """P1 (Eq. 9), flops per far byte: below it, computing at the far level is as fast as streaming to near.

        Where the far memory roof lies under the link's (a slow far memory), they never cross at the compute roof and
        P1 is where the link roof meets the far level's attainable roof: 0 when streaming is always faster.
        """
        if self.far.bytes_per_s <= self.link_bytes_per_s:
            return 0.0
        return self.far.peak_flops_per_s / self.link_bytes_per_s

    def turning_point_p2(self, near_intensity: float) -> float:
        """P2 (Eq. 10), flops per far byte: above it, the near level's own roof binds and the link waits."""
        return float(self.near.attainable(near_intensity)) / self.link_bytes_per_s

    def balance_far_intensity(self, near_intensity: float) -> float:
        """Balance point (Eq. 11), B_i * I_i = B_ji * I_j: the far intensity where link and near memory take equal time.

        Leaves out the near compute roof, as the paper does; P2 includes it.
        """
        return self.near.bytes_per_s * near_intensity / self.link_bytes_per_s

    def best_level(self, near_intensity: float, far_intensity: float, far_own_intensity: float) -> str:
        """Name of the level on which the operator attains more: near over the link, or far in place."""
        streamed = float(self.attainable(near_intensity, far_intensity))
        in_place = float(self.far.attainable(far_own_intensity)) if self.far.peak_flops_per_s else 0.0
        return self.near.name if streamed > in_place else self.far.name


def check_below_roof(label: str, achieved_flops_per_s: float, roof_flops_per_s: float) -> None:
    """Refuses a point above its roof.

    Raises:
        RooflineError: the achieved rate exceeds the roof: a wrong unit, flop count or peak.
    """
    if achieved_flops_per_s > roof_flops_per_s * (1 + ABOVE_ROOF_TOLERANCE):
        raise RooflineError(
            f"{label}: achieved {achieved_flops_per_s / 1e9:.4g} GFLOP/s lies above its roof of "
            f"{roof_flops_per_s / 1e9:.4g} GFLOP/s; check the units, the flop count and the peak"
        )
