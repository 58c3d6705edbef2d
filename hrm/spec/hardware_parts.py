"""What a hardware profile is made of: numbers with their provenance, processors, memory levels, links."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["datasheet", "measured", "fitted"]

LEVELS = ("gpu", "cpu")
OP_CLASSES = ("linear", "expert_ffn", "attention")
LINK_NAMES = ("htod", "dtoh", "disk_read", "disk_write", "gpu_to_gpu")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Part):
    """Where numbers come from: a datasheet revision, a publication, or a measurement, and of when it is."""

    title: str
    date: str
    url: str | None = None


class Number(_Part):
    """One quantity: `value` in SI units (ratios in 0..1), `text` as written, and where it comes from.

    `source` is a key of the profile's `sources`; `date` is that source's date.
    """

    value: float
    text: str
    kind: Kind
    source: str
    date: str
    note: str | None = None

    def scaled(self, factor: float) -> "Number":
        """A hypothetical copy, `factor` times as large, whose text says so."""
        return self.model_copy(update={"value": self.value * factor, "text": f"{self.text} x {factor:g}"})


class PeakFlops(Number):
    """Dense peak rate of one dtype, in flop/s; `accumulate` is the dtype of the sums, where it matters."""

    accumulate: str | None = None


class Processor(_Part):
    """What computes at a memory level: dense peaks by dtype (flop/s) and, for CPUs, the physical cores."""

    name: str
    peak_flops: dict[str, PeakFlops]
    cores: int | None = None


class Level(_Part):
    """A memory level with the processor that computes there; capacities in bytes, bandwidth in bytes/s.

    `memory_usable` is what a program can allocate of `memory_capacity`: after ECC, the driver and its context
    on a GPU, after the operating system on a CPU. `task_overhead` is the least time in seconds that a task takes on
    this processor however small: launching its kernels, waking its threads; None where nobody measured it. For an
    expert cache: `graph_overhead` is the same of a GPU task whose launches are one graph; `gate_overhead`, of the CPU,
    what the host takes to decide, layer by layer, which of the chosen experts are copied and which computed where.
    """

    processor: Processor | None
    memory_capacity: Number
    memory_usable: Number
    memory_bandwidth: Number
    task_overhead: Number | None = None
    graph_overhead: Number | None = None
    gate_overhead: Number | None = None


class Disk(_Part):
    """The disk tier, in bytes. Nothing computes there; its bandwidths are the links disk_read, disk_write."""

    memory_capacity: Number
    memory_usable: Number


class Link(_Part):
    """A one-way connection: peak bandwidth in bytes/s, and the seconds that a very small transfer takes."""

    technology: str
    bandwidth: Number
    latency: Number


class TokenStep(_Part):
    """From `from_tokens` tokens on, this share of the compute peak is reached (until the next step)."""

    from_tokens: int
    efficiency: Number


class OperatorEfficiency(_Part):
    """Shares (0..1] of the level's peaks that one class of operators reaches; None where not measured."""

    compute: Number | None = None
    compute_by_tokens: tuple[TokenStep, ...] | None = None
    memory: Number | None = None


class Efficiency(_Part):
    """Measured shares of the peaks, kept apart from them: by operator class per level, and by link name."""

    gpu: dict[str, OperatorEfficiency] = {}
    cpu: dict[str, OperatorEfficiency] = {}
    links: dict[str, Number] = {}
