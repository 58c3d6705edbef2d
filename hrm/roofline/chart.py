"""What a roofline chart shows, as data: roofs, operators at every memory level, and lines that mark a choice."""

from dataclasses import dataclass

from hrm.errors import RooflineError
from hrm.roofline.roofs import HierarchicalRoofline, check_below_roof


@dataclass(frozen=True)
class Roof:
    """A compute roof (flop/s, flat) or a memory or link roof (bytes/s, a slope) of one level.

    `level`: "gpu", "cpu", "htod", "disk" or "gpu_to_gpu". `achieved` is the measured value where the profile states an
    efficiency, else None.
    """

    label: str
    level: str
    is_compute: bool
    peak: float
    achieved: float | None = None

    @property
    def value(self) -> float:
        """The measured value where there is one, else the datasheet peak."""
        return self.peak if self.achieved is None else self.achieved

    def at(self, intensity: float) -> float:
        """Flop/s that the roof allows at `intensity` flops/byte."""
        return self.value if self.is_compute else self.value * intensity


@dataclass(frozen=True)
class LevelPoint:
    """One operator at one memory level: its flops per byte moved there."""

    level: str
    intensity: float


@dataclass(frozen=True)
class OperatorPoint:
    """An operator at every memory level it touches, at the rate it runs in the pass.

    `share` is the share of the pass in which its own processor works on it; `levels` start with the processor's memory.
    `binding` names the lowest roof above it and `gap` how many times higher that roof is. `op_class` ("linear",
    "expert_ffn", "attention") selected the measured roofs.
    """

    label: str
    processor: str
    flops_per_s: float
    levels: tuple[LevelPoint, ...]
    share: float
    binding: str
    gap: float
    op_class: str

    @property
    def attainable_flops_per_s(self) -> float:
        """The lowest roof above it: min over its processor and the levels its data comes from."""
        return self.flops_per_s * self.gap


@dataclass(frozen=True)
class Mark:
    """A named point of a chart: a turning point, or where a horizontal line starts."""

    label: str
    intensity: float
    flops_per_s: float


@dataclass(frozen=True)
class Choice:
    """A vertical line at an intensity of data in CPU memory, with what both ways to compute on it attain in flop/s.

    `streamed`: over the link to the GPU; `in_place`: on the CPU, 0 where nothing computes.
    """

    label: str
    intensity: float
    streamed_flops_per_s: float
    in_place_flops_per_s: float

    @property
    def flops_per_s(self) -> float:
        """The better of the two."""
        return max(self.streamed_flops_per_s, self.in_place_flops_per_s)


@dataclass(frozen=True)
class Chart:
    """Everything one roofline chart shows. Turning points lie on the measured roofs where the profile states them."""

    title: str
    roofs: tuple[Roof, ...]
    hierarchy: HierarchicalRoofline | None = None
    operators: tuple[OperatorPoint, ...] = ()
    lines: tuple[Choice, ...] = ()
    kernel: Mark | None = None  # the near level's performance at one micro-batch size
    p1: Mark | None = None
    p2: Mark | None = None
    balance: Mark | None = None


@dataclass(frozen=True)
class TrajectoryStep:
    """An operator at one (N, mu): flops per byte over the link and in GPU memory, and the rate it attains."""

    batch_size: int
    micro_batch_size: int
    far_intensity: float
    near_intensity: float
    flops_per_s: float


@dataclass(frozen=True)
class Trajectory:
    """An operator's path under the roofs as N and mu grow."""

    title: str
    roofs: tuple[Roof, ...]
    steps: tuple[TrajectoryStep, ...]


def place_operator(
    label: str,
    processor: str,
    flops_per_s: float,
    levels: dict[str, float],
    share: float,
    roofs: tuple[Roof, ...],
    op_class: str,
) -> OperatorPoint:
    """The point of an operator with its binding roof named; `levels` maps level name to flops per byte.

    `roofs` are those of its operator class.

    Raises:
        RooflineError: the point lies above a roof, or its processor has none in the chart.
    """
    limits = {r.label: r.value for r in roofs if r.is_compute and r.level == processor}
    limits |= {r.label: r.at(levels[r.level]) for r in roofs if not r.is_compute and r.level in levels}
    if not limits:
        raise RooflineError(f"{label}: the chart has no roof for {processor}")
    binding = min(limits, key=lambda name: limits[name])
    check_below_roof(f"{label} under {binding}", flops_per_s, limits[binding])
    points = tuple(LevelPoint(level, intensity) for level, intensity in levels.items())
    return OperatorPoint(label, processor, flops_per_s, points, share, binding, limits[binding] / flops_per_s, op_class)
