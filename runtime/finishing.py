"""When a completion ends, and its text."""

from collections.abc import Callable, Sequence

from runtime.requests.request import FinishReason, Sampling

Detokenise = Callable[[Sequence[int]], str]


def finish_reason(
    sampling: Sampling, tokens: Sequence[int], eos: tuple[int, ...], detokenise: Detokenise | None
) -> FinishReason | None:
    """Why a completion of these tokens is over; None while it goes on."""
    if tokens and tokens[-1] in eos and not sampling.ignore_eos:
        return "stop"
    if sampling.stop and detokenise is not None and _stop_at(detokenise(tokens), sampling.stop) is not None:
        return "stop"
    return "length" if len(tokens) >= sampling.max_tokens else None


def text_of(sampling: Sampling, tokens: Sequence[int], eos: tuple[int, ...], detokenise: Detokenise | None) -> str:
    """The text up to the first stop string, without a closing end-of-sequence token; "" without a tokenizer."""
    if detokenise is None:
        return ""
    ended = bool(tokens) and tokens[-1] in eos and not sampling.ignore_eos
    text = detokenise(tokens[:-1] if ended else tokens)
    at = _stop_at(text, sampling.stop)
    return text if at is None else text[:at]


def _stop_at(text: str, stop: tuple[str, ...]) -> int | None:
    places = [at for at in (text.find(s) for s in stop) if at >= 0]
    return min(places, default=None)
