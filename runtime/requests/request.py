"""What is asked of the engine, and what comes back."""

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy; `seed` makes sampling repeatable whatever shares the batch.

    max_tokens: tokens generated at most. top_p: smallest set of tokens that holds this probability. stop: strings that
    end a completion (not part of its text). ignore_eos: goes on past the end-of-sequence token, to a fixed length.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt as token ids, [S]."""

    request_id: str
    prompt: tuple[int, ...]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request: generated token ids (a closing end-of-sequence token included) and why it ended.

    logits: of every generated token, [generated, V] as nested floats, only where the engine was asked to keep them.
    """

    request: Request
    tokens: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logits: object | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that cannot be run under the policy, and why."""

    request: Request
    reason: str
