"""When a completion ends, and its text."""

from collections.abc import Callable, Sequence

import numpy as np

from runtime.requests.request import FinishReason, Sampling
from runtime.sequences import SequenceTable, Slots

Detokenise = Callable[[Sequence[int]], str]

REPLACEMENT = "\ufffd"  # stands for bytes that are no whole character
NEWEST = 8  # tokens whose text the latest one may still change: a character can be spread over several
FIRST_CHARACTERS = 8  # of a tail's text, which may differ from the whole's: a character cut in two, a space left out


def finish_reason(
    sampling: Sampling, tokens: Sequence[int], eos: tuple[int, ...], detokenise: Detokenise | None
) -> FinishReason | None:
    """Why a completion of these tokens is over; None while it goes on. To be asked after every token.

    A stop string may lie anywhere in a completion that has all its tokens; before that it is looked for where the
    latest token can have completed it.
    """
    if tokens and tokens[-1] in eos and not sampling.ignore_eos:
        return "stop"
    full = len(tokens) >= sampling.max_tokens
    if sampling.stop and detokenise is not None and _is_stopped(sampling.stop, tokens, detokenise, full):
        return "stop"
    return "length" if full else None


def may_end(table: SequenceTable, slots: Slots, eos: tuple[int, ...]) -> list[int]:
    """Of slots that have just got a token: those at their last one, at an end of sequence, or with strings that end
    them.
    """
    ended = table.made[slots] >= table.target[slots]
    ended |= np.isin(table.last[slots], eos)
    stops = [bool(r is not None and r.sampling.stop) for r in (table.requests[s] for s in slots.tolist())]
    found: list[int] = slots[ended | np.array(stops, np.bool_)].tolist()
    return found


def text_of(sampling: Sampling, tokens: Sequence[int], eos: tuple[int, ...], detokenise: Detokenise | None) -> str:
    """The text up to the first stop string, without a closing end-of-sequence token; "" without a tokenizer."""
    if detokenise is None:
        return ""
    ended = bool(tokens) and tokens[-1] in eos and not sampling.ignore_eos
    text = detokenise(tokens[:-1] if ended else tokens)
    at = _stop_at(text, sampling.stop)
    return text if at is None else text[:at]


def _is_stopped(stop: tuple[str, ...], tokens: Sequence[int], detokenise: Detokenise, full: bool) -> bool:
    """Whether the whole text holds a stop string; detokenised only if its tail does, or nothing more will come."""
    if not full and _stop_at(_tail(tokens, detokenise, max(map(len, stop))), stop) is None:
        return False
    return _stop_at(detokenise(tokens), stop) is not None


def _tail(tokens: Sequence[int], detokenise: Detokenise, characters: int) -> str:
    """Text of the last tokens: what the newest of them say, and at least `characters` before that as in the whole text.

    Most tokens are a character or more. Where they are not (special tokens, bytes of characters), more are taken.
    """
    needed = characters + FIRST_CHARACTERS
    count = needed + NEWEST
    while count < len(tokens):
        settled = detokenise(tokens[-count:-NEWEST])
        if len(settled) - settled.count(REPLACEMENT) >= needed:
            return detokenise(tokens[-count:])
        count *= 2
    return detokenise(tokens)


def _stop_at(text: str, stop: tuple[str, ...]) -> int | None:
    places = [at for at in (text.find(s) for s in stop) if at >= 0]
    return min(places, default=None)
