"""What a validation found, as plain data."""

from pydantic import BaseModel, ConfigDict

from hrm.schedule.slice import PassSlice
from hrm.spec.policy import Policy


class Part(BaseModel):
    """Immutable; a field that is missing or unknown is a fault."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class KindSeconds(Part):
    """All tasks of one kind in a pass; seconds are sums of their lengths."""

    kind: str
    queue: str
    count: int
    predicted: float
    measured: float


class QueueSeconds(Part):
    """Busy seconds of one queue in a pass, and the share of the pass that is."""

    queue: str
    predicted: float
    measured: float
    predicted_utilisation: float
    measured_utilisation: float


class Term(Part):
    """A part of measured - predicted seconds: a task kind, "waiting", or "between passes"."""

    name: str
    seconds: float


class Explanation(Part):
    """Why a measured pass is longer (or shorter) than predicted.

    terms: on the queue that was busiest, adding up to `gap`, largest first. critical: by kind, how much longer the
    critical path is; adds up to the gap without the seconds between passes. wrong: the term that explains most.
    """

    queue: str
    gap: float
    terms: tuple[Term, ...]
    critical: tuple[Term, ...]
    wrong: str
    wrong_seconds: float


class MemoryCheck(Part):
    """Bytes by part, predicted and measured, and their totals.

    On a GPU `measured_total` is the allocator's peak and `reserved` what it holds; without one there is no peak, and
    the totals are sums of the parts that both sides know.
    """

    predicted: dict[str, float]
    measured: dict[str, float]
    predicted_total: float
    measured_total: float
    reserved: float | None = None

    @property
    def error(self) -> float:
        """Predicted over measured, minus 1."""
        return self.predicted_total / self.measured_total - 1 if self.measured_total else 0.0


class RunCheck(Part):
    """One policy at one context: passes of the very slice that was predicted.

    pass_seconds: of all measured passes; measured_seconds: their median. prefill_*: the pass that took in all prompts,
    None where prompts ride along. decoding: sequences that decode in a pass.
    """

    label: str
    schedule: str
    context_len: int
    policy: Policy
    pass_name: str
    slice: PassSlice
    decoding: int
    pass_seconds: tuple[float, ...]
    measured_seconds: float
    predicted_seconds: float
    prefill_measured: float | None
    prefill_predicted: float | None
    kinds: tuple[KindSeconds, ...]
    queues: tuple[QueueSeconds, ...]
    explanation: Explanation
    gpu_memory: MemoryCheck
    cpu_memory: MemoryCheck
    load_seconds: float

    @property
    def error(self) -> float:
        """Predicted over measured seconds of a pass, minus 1."""
        return self.predicted_seconds / self.measured_seconds - 1

    @property
    def measured_tokens_per_s(self) -> float:
        """Decoded tokens per second of these passes."""
        return self.decoding / self.measured_seconds

    @property
    def predicted_tokens_per_s(self) -> float:
        """Decoded tokens per second of these passes."""
        return self.decoding / self.predicted_seconds


class NotRun(Part):
    """A policy, or a whole schedule, that was not run or failed."""

    label: str
    context_len: int | None
    reason: str
    policy: Policy | None = None
    out_of_memory: bool = False


class MachineFacts(Part):
    """Where it ran. gpu_memory_emulated: the GPU has more than the run was allowed."""

    profile: str
    title: str
    device: str
    software: str
    date: str
    gpu_memory_bytes: float
    cpu_memory_bytes: float
    gpu_memory_emulated: bool


class ValidationReport(Part):
    """All of it. skipped: what the profile says does not fit; failed: what did not run though it should."""

    model: str
    num_layers: int
    dtype: str
    gen_len: int
    machine: MachineFacts
    runs: tuple[RunCheck, ...]
    skipped: tuple[NotRun, ...]
    failed: tuple[NotRun, ...]
