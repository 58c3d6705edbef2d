"""Stop strings found in the tail of a completion are those of the whole text, for tokenizers of every kind."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from runtime.finishing import finish_reason, text_of
from runtime.requests.request import FinishReason, Sampling

PIECES = ["a", "b", "ab", " b", " ", "", "", "ba\n", "bbbbbbbbbbbb", "a" * 20, "\n\n", "é", "語", "🙂", " a語"]
BYTES = [bytes([b]) for b in "é語🙂".encode()]
EOS = 99
Simple = Callable[[Sequence[int]], str]


def pieces(tokens: Sequence[int]) -> str:
    """Tokens are texts, some of them empty; the first space is left out."""
    return "".join(PIECES[t % len(PIECES)] for t in tokens).removeprefix(" ")


def byte_pieces(tokens: Sequence[int]) -> str:
    """Tokens are bytes, of whole characters or of parts of them."""
    vocabulary = [p.encode() for p in PIECES] + BYTES * 2
    return b"".join(vocabulary[t % len(vocabulary)] for t in tokens).decode(errors="replace")


def byte_fallback(tokens: Sequence[int]) -> str:
    """Runs of bytes between texts become text where the whole run is valid, else one replacement per byte."""
    found, run = "", b""
    for token in [*tokens, 0]:
        kind = token % (len(PIECES) + 2 * len(BYTES))
        if kind >= len(PIECES):
            run += BYTES[(kind - len(PIECES)) % len(BYTES)]
            continue
        try:
            found += run.decode()
        except UnicodeDecodeError:
            found += "\ufffd" * len(run)
        found, run = found + PIECES[kind], b""
    return found[: len(found) - len(PIECES[0])].removeprefix(" ")


def slow_reason(sampling: Sampling, tokens: Sequence[int], detokenise: Simple) -> FinishReason | None:
    """As `finish_reason`, looking through the whole text every time."""
    if tokens[-1] == EOS and not sampling.ignore_eos:
        return "stop"
    if any(s in detokenise(tokens) for s in sampling.stop):
        return "stop"
    return "length" if len(tokens) >= sampling.max_tokens else None


def run(reason: Callable[[Sequence[int]], FinishReason | None], tokens: list[int]) -> tuple[int, FinishReason | None]:
    """Tokens made until there is a reason to end, and the reason."""
    for made in range(1, len(tokens) + 1):
        found = reason(tokens[:made])
        if found is not None:
            return made, found
    return len(tokens), None


def random_tokens(random: np.random.Generator) -> list[int]:
    """A few tokens often and the others seldom; sometimes most of them say nothing."""
    weights = random.dirichlet(np.full(100, random.choice([0.02, 0.05, 0.3])))
    silent = [i for i in range(100) if i in range(5, 7)]
    weights[silent] += random.choice([0.0, 0.0, 0.5, 5.0])
    return [int(t) for t in random.choice(100, random.integers(1, 250), p=weights / weights.sum())]


def random_stops(random: np.random.Generator, text: str) -> tuple[str, ...]:
    """Parts of the text, mostly far into it and not there before."""
    found = []
    for _ in range(random.integers(1, 4)):
        at, length = random.integers(0, len(text) + 1), random.integers(1, 40)
        if 0 <= text.find(text[at : at + length]) >= at - random.integers(0, 2) * at:
            found.append(text[at : at + length])
    return tuple(s for s in found if s) or ("nowhere",)


@pytest.mark.parametrize("detokenise", [pieces, byte_pieces, byte_fallback])
def test_the_tail_ends_a_completion_as_the_whole_text_does(detokenise: Simple) -> None:
    late = 0
    for seed in range(600):
        random = np.random.default_rng(seed)
        tokens = random_tokens(random)
        stop = random_stops(random, detokenise(tokens))
        sampling = Sampling(int(random.integers(1, 300)), stop=stop, ignore_eos=bool(random.integers(2)))
        made, reason = run(lambda t, s=sampling: finish_reason(s, t, (EOS,), detokenise), tokens)
        assert (made, reason) == run(lambda t, s=sampling: slow_reason(s, t, detokenise), tokens), seed
        text = text_of(sampling, tokens[:made], (EOS,), detokenise)
        assert not any(s in text for s in stop)
        late += reason == "stop" and made > 60
    assert late > 50


@pytest.mark.parametrize("detokenise", [byte_pieces, byte_fallback])
@pytest.mark.parametrize("length", [1, 12, 30])
def test_a_stop_string_written_in_single_bytes(detokenise: Simple, length: int) -> None:
    """Three tokens to a character, behind as many that say nothing."""
    first = len(PIECES)
    spelled = [first + BYTES.index(bytes([b])) for b in "語".encode()] * length
    tokens = [0] * 50 + [5] * 80 + spelled + [1] * 5
    assert detokenise(tokens) == "a" * 50 + "語" * length + "b" * 5
    sampling = Sampling(300, stop=("語" * length,))
    assert run(lambda t: finish_reason(sampling, t, (EOS,), detokenise), tokens) == (130 + len(spelled), "stop")


def test_long_completions_cost_no_more_per_token() -> None:
    read = 0

    def counting(tokens: Sequence[int]) -> str:
        nonlocal read
        read += len(tokens)
        return "".join(chr(97 + t % 26) for t in tokens)

    sampling = Sampling(5000, stop=("nowhere", "never" * 4))
    tokens = list(np.random.default_rng(0).integers(0, 26, 4000))
    for made in range(1, 4001):
        assert finish_reason(sampling, tokens[:made], (), counting) is None
    assert read < 100 * 4000


def test_a_view_of_memory_does_for_tokens() -> None:
    """The engine need not make a list of all tokens in every pass."""
    row = memoryview(np.arange(1, 200, dtype=np.int32))

    def spell(tokens: Sequence[int]) -> str:
        return "".join(chr(0x4E00 + t) for t in tokens)

    sampling = Sampling(300, stop=(chr(0x4E00 + 150) + chr(0x4E00 + 151),))
    assert next(n for n in range(1, 160) if finish_reason(sampling, row[:n], (), spell)) == 151
