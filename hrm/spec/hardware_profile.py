"""One machine: its peaks, its measured efficiencies, and the questions the cost model asks of them."""

from typing import Self, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from hrm.errors import ProfileError
from hrm.spec.hardware_checks import check_profile
from hrm.spec.hardware_parts import (
    LEVELS,
    LINK_NAMES,
    OP_CLASSES,
    Disk,
    Efficiency,
    Level,
    Link,
    OperatorEfficiency,
    Source,
)
from hrm.spec.hardware_scaling import scaled_profile
from hrm.spec.suggest import unknown_name


class HardwareProfile(BaseModel):
    """A whole machine; `gpu` and the links htod, dtoh are per device, of which there are `device_count`.

    Every answer is in SI units. A number that the profile does not state raises ProfileError, a name that
    does not exist raises UnknownNameError; nothing is defaulted. Efficiencies are the exception, on purpose:
    where none was measured the answer is 1.0, so that the prediction is the roof itself
    (`uncalibrated_parts` lists where).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    sources: dict[str, Source]
    device_count: int
    gpu: Level
    cpu: Level
    disk: Disk | None = None
    links: dict[str, Link]
    efficiency: Efficiency = Efficiency()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        check_profile(self)
        return self

    def level(self, level: str) -> Level:
        """The memory level "gpu" or "cpu"."""
        if level not in LEVELS:
            raise unknown_name("level", level, LEVELS, self.name)
        return self.gpu if level == "gpu" else self.cpu

    def has_peak(self, level: str, dtype: str) -> bool:
        """Whether the profile states a compute peak for `dtype` at `level`."""
        processor = self.level(level).processor
        return processor is not None and dtype in processor.peak_flops

    def peak_flops_per_s(self, level: str, dtype: str) -> float:
        """Dense peak rate of one device in flop/s."""
        processor = self.level(level).processor
        if processor is None or dtype not in processor.peak_flops:
            stated = ", ".join(processor.peak_flops) if processor else "none"
            raise ProfileError(
                f"{self.name}: {level}.processor.peak_flops.{dtype} is not stated (has {stated}); add it"
            )
        return processor.peak_flops[dtype].value

    @overload
    def compute_efficiency(self, level: str, op_class: str, tokens: float) -> float: ...
    @overload
    def compute_efficiency(self, level: str, op_class: str, tokens: NDArray[np.floating]) -> NDArray[np.float64]: ...
    def compute_efficiency(
        self, level: str, op_class: str, tokens: float | NDArray[np.floating]
    ) -> float | NDArray[np.float64]:
        """Share of the compute peak that `op_class` reaches on `tokens` tokens; 1.0, the roof, if unstated.

        With a table the step with the largest from_tokens <= tokens applies (the first below one token, which
        averages over experts can be). `tokens` may be an array; the answer then has its shape. Raises
        ProfileError for negative or NaN tokens.
        """
        stated = self._operator(level, op_class)
        counts = np.asarray(tokens, dtype=np.float64)
        if not bool(np.all(counts >= 0)):
            raise ProfileError(f"{self.name}: efficiency.{level}.{op_class}: tokens must be zero or more, not {tokens}")
        starts, shares = _steps(stated)
        found = shares[np.maximum(np.searchsorted(starts, counts, side="right") - 1, 0)]
        return found if isinstance(tokens, np.ndarray) else float(found)

    def memory_efficiency(self, level: str, op_class: str) -> float:
        """Share of the memory bandwidth that `op_class` reaches: 1.0, the roof, where none is stated."""
        stated = self._operator(level, op_class)
        return stated.memory.value if stated.memory else 1.0

    def link(self, name: str) -> Link:
        """The link `name`: htod, dtoh, disk_read, disk_write or gpu_to_gpu."""
        if name not in LINK_NAMES:
            raise unknown_name("link", name, LINK_NAMES, self.name)
        if name not in self.links:
            raise ProfileError(f"{self.name}: links.{name} is not stated; add it, or choose a policy without it")
        return self.links[name]

    def link_bandwidth(self, name: str) -> float:
        """Peak one-way bandwidth in bytes/s."""
        return self.link(name).bandwidth.value

    def achieved_link_bandwidth(self, name: str) -> float:
        """Peak times the measured efficiency, in bytes/s; the peak itself where none is stated."""
        stated = self.efficiency.links.get(name)
        return self.link_bandwidth(name) * (stated.value if stated else 1.0)

    def link_latency(self, name: str) -> float:
        """Seconds that a very small transfer takes."""
        return self.link(name).latency.value

    def with_scaled(self, resource: str, factor: float) -> "HardwareProfile":
        """A hypothetical copy with one resource `factor` times as large; see hardware_scaling.RESOURCES."""
        return scaled_profile(self, resource, factor)

    @property
    def is_calibrated(self) -> bool:
        """Whether any efficiency is stated, so that a prediction is more than the roof."""
        return bool(self.efficiency.gpu or self.efficiency.cpu or self.efficiency.links)

    @property
    def uncalibrated_parts(self) -> tuple[str, ...]:
        """What predictions take at the roof, unmeasured, e.g. "gpu.attention.memory", "links.htod"."""
        parts = []
        for level in LEVELS:
            for op_class in OP_CLASSES:
                stated = self._operator(level, op_class)
                if stated.compute is None and stated.compute_by_tokens is None:
                    parts.append(f"{level}.{op_class}.compute")
                if stated.memory is None:
                    parts.append(f"{level}.{op_class}.memory")
        return (*parts, *(f"links.{name}" for name in self.links if name not in self.efficiency.links))

    def _operator(self, level: str, op_class: str) -> OperatorEfficiency:
        self.level(level)
        if op_class not in OP_CLASSES:
            raise unknown_name("operator class", op_class, OP_CLASSES, self.name)
        table = self.efficiency.gpu if level == "gpu" else self.efficiency.cpu
        return table.get(op_class, OperatorEfficiency())


def _steps(stated: OperatorEfficiency) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """from_tokens and efficiencies, ascending; a single step where one number, or none, is stated."""
    if stated.compute_by_tokens:
        table = stated.compute_by_tokens
        return np.array([float(s.from_tokens) for s in table]), np.array([s.efficiency.value for s in table])
    return np.array([1.0]), np.array([stated.compute.value if stated.compute else 1.0])
