"""What a calibration measured, as plain data; needs no PyTorch."""

from dataclasses import dataclass
from statistics import median

BUSY = 0.5  # processes running besides


@dataclass(frozen=True)
class Spread:
    """One quantity measured several times, in SI units."""

    median: float
    lowest: float
    highest: float
    repeats: int


def spread(values: tuple[float, ...]) -> Spread:
    """Median and range of one or more values."""
    return Spread(median(values), min(values), max(values), len(values))


@dataclass(frozen=True)
class Timing:
    """Seconds of each repeat of one piece of work.

    `size` is what the series varies: bytes of a copy, rows of a matmul, tokens of a context or prompt.
    """

    size: int
    seconds: tuple[float, ...]
    bytes: float = 0.0
    flops: float = 0.0

    @property
    def median_seconds(self) -> float:
        """Median of the repeats."""
        return median(self.seconds)

    @property
    def bytes_per_s(self) -> Spread:
        """Memory or link traffic per second."""
        return spread(tuple(self.bytes / s for s in self.seconds))

    @property
    def flops_per_s(self) -> Spread:
        """Arithmetic per second."""
        return spread(tuple(self.flops / s for s in self.seconds))


@dataclass(frozen=True)
class LinkResult:
    """Copies in one direction by size, and seconds of a copy of 1 KiB with its synchronisation."""

    timings: tuple[Timing, ...]
    latency: Spread


@dataclass(frozen=True)
class ContentionResult:
    """CPU decode attention and host-to-device copies at the same time, bytes/s each."""

    attention: Spread
    copies: Spread

    @property
    def together(self) -> float:
        """Bytes/s of both, medians."""
        return self.attention.median + self.copies.median


@dataclass(frozen=True)
class OverheadResult:
    """Least seconds of a task on the GPU (without one, on the CPU in its place) and of a task on the CPU's queue; of a
    GPU task that is a graph, and of an expert cache's decision, None where there are none.
    """

    gpu: Spread
    cpu: Spread
    graph: Spread | None = None
    gate: Spread | None = None


@dataclass(frozen=True)
class DiskResult:
    """Reads and writes of a file past the page cache; sizes and latencies in bytes and seconds."""

    directory: str
    method: str
    total_bytes: int
    free_bytes: int
    read: Timing
    write: Timing
    read_latency: Spread
    write_latency: Spread


@dataclass(frozen=True)
class MachineFacts:
    """What the machine says of itself, and what of it a program may use. Memory in bytes.

    `gpu_limit`, `cpu_limit`: the usable memory was stated by the user, not found. `link`: "PCIe 5.0 x16" and the like
    where the driver reports it. `load`: processes that ran in the minute before, on average.
    """

    has_gpu: bool
    gpu_name: str
    cpu_name: str
    threads: int
    gpu_capacity: int
    gpu_usable: int
    gpu_limit: bool
    cpu_capacity: int
    cpu_usable: int
    cpu_limit: bool
    link: str | None
    software: str
    date: str
    load: float

    @property
    def is_busy(self) -> bool:
        """Whether other work was running."""
        return self.load >= BUSY


@dataclass(frozen=True)
class Calibration:
    """Everything measured on one machine, for one dtype and the shapes of one model.

    Matmuls are by dtype, then rows; experts by rows of one expert; decode attention by context (the runtime's over
    paged KV, and SDPA over contiguous KV); prefill attention by prompt length. Without a GPU the fields of the GPU hold
    what the CPU did in its place. `disk` and `overhead` are None where they were not measured.
    """

    machine: MachineFacts
    dtype: str
    model: str
    quick: bool
    htod: LinkResult
    dtoh: LinkResult
    both_ways: Spread
    cpu_read: Timing
    cpu_read_one_thread: Timing
    gpu_copy: Timing
    gpu_linear: dict[str, tuple[Timing, ...]]
    cpu_linear: dict[str, tuple[Timing, ...]]
    gpu_experts: tuple[Timing, ...]
    cpu_experts: tuple[Timing, ...]
    gpu_decode: tuple[Timing, ...]
    gpu_decode_contiguous: tuple[Timing, ...]
    gpu_prefill: tuple[Timing, ...]
    cpu_decode: tuple[Timing, ...]
    contention: ContentionResult
    disk: DiskResult | None
    expert_method: str
    attention_method: str
    overhead: OverheadResult | None = None
