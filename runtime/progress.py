"""How far a run is."""

from collections import deque
from dataclasses import dataclass, field

RECENT = 16  # passes that tokens_per_s looks back on


@dataclass(frozen=True, slots=True)
class PassRecord:
    """One pass: seconds until the next could begin, sequences that decoded, prompt tokens, requests that finished."""

    seconds: float
    decoding: int
    prompt_tokens: int
    tokens: int
    finished: int


@dataclass
class EngineProgress:
    """Counts of a run."""

    generated_tokens: int = 0
    finished: int = 0
    active: int = 0
    waiting: int = 0
    passes: int = 0
    seconds: float = 0.0
    recent: deque[PassRecord] = field(default_factory=lambda: deque(maxlen=RECENT))

    def add(self, record: PassRecord) -> None:
        """One more pass."""
        self.generated_tokens += record.tokens
        self.finished += record.finished
        self.passes += 1
        self.seconds += record.seconds
        self.recent.append(record)

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second over the latest passes; 0 before the first."""
        seconds = sum(record.seconds for record in self.recent)
        return sum(record.tokens for record in self.recent) / seconds if seconds > 0 else 0.0
