"""What the closed form predicts for one policy: times, memory, what binds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PassPrediction:
    """One kind of pass: how often it runs, seconds of one, busy seconds per resource, and the rows that bind it."""

    name: str
    count: float
    seconds: float
    busy_seconds: dict[str, float]
    binding: tuple[str, ...]


@dataclass(frozen=True)
class MemoryPrediction:
    """Peak bytes of one memory by named part, and what is usable of it."""

    parts: dict[str, float]
    usable_bytes: float

    @property
    def total_bytes(self) -> float:
        """Sum of the parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Prediction:
    """Closed-form result: throughputs in generated tokens per second, times of one batch's generation in seconds.

    With mixed prefill, prefill rides in the decode passes: `prefill_seconds` is 0 and `decode_seconds` is all of it.
    """

    batch_size: int
    gen_len: int
    passes: tuple[PassPrediction, ...]
    gpu_memory: MemoryPrediction
    cpu_memory: MemoryPrediction
    disk: MemoryPrediction

    @property
    def total_seconds(self) -> float:
        """Prefill and decode of one batch."""
        return sum(p.count * p.seconds for p in self.passes)

    @property
    def prefill_seconds(self) -> float:
        """Seconds in passes that only prefill."""
        return sum(p.count * p.seconds for p in self.passes if p.name == "prefill")

    @property
    def decode_seconds(self) -> float:
        """Seconds in passes that decode."""
        return self.total_seconds - self.prefill_seconds

    @property
    def generation_throughput(self) -> float:
        """Generated tokens per second of prefill and decode."""
        return self.batch_size * self.gen_len / self.total_seconds

    @property
    def decode_throughput(self) -> float:
        """Tokens generated in decode passes per second of those passes; 0 when only the first token is asked for."""
        decoded = self.batch_size * (self.gen_len - 1)
        return decoded / self.decode_seconds if self.gen_len > 1 else 0.0

    @property
    def utilisation(self) -> dict[str, float]:
        """Share of the total time that each resource is busy."""
        names = self.passes[0].busy_seconds
        busy = {r: sum(p.count * p.busy_seconds[r] for p in self.passes) for r in names}
        return {r: seconds / self.total_seconds for r, seconds in busy.items()}

    @property
    def bottleneck(self) -> str:
        """What binds the passes that take the most time."""
        longest = max(self.passes, key=lambda p: p.count * p.seconds)
        return longest.binding[0]
