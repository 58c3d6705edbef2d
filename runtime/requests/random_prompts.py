"""Requests of random token ids, for models with random weights: only their lengths mean something."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hrm.errors import RequestError
from hrm.spec.workload_file import BYTES_PER_TOKEN, load_workload
from runtime.requests.entry import Entry
from runtime.requests.input_file import read_lines
from runtime.requests.json_fields import JsonFields, parse_object
from runtime.requests.request import Sampling
from runtime.requests.sampling_fields import derived_seed

DEFAULT_LENGTHS = "mtbench-questions"  # the shipped workload with every single length


def default_lengths() -> tuple[int, ...]:
    """Prompt lengths of the shipped MT-Bench questions, in tokens."""
    return load_workload(DEFAULT_LENGTHS).prompt_lens


def read_prompt_lengths(path: Path) -> tuple[int, ...]:
    """Tokens of every prompt in a JSONL of texts, taken as bytes / 4: "prompt", or the first of "turns".

    Raises:
        RequestError: names file and line.
    """
    lines = read_lines(path)
    return tuple(_length(parse_object(raw, f"{path}:{i}")) for i, raw in enumerate(lines, 1))


def _length(fields: JsonFields) -> int:
    text, turns = fields.text("prompt"), fields.texts("turns")
    if text is None and not turns:
        raise RequestError(f'{fields.where}: needs "prompt" (text) or "turns" (a list of texts)')
    first = text if text is not None else (turns or ("",))[0]
    return max(1, round(len(first.encode()) / BYTES_PER_TOKEN))


def random_requests(
    lengths: Sequence[int], count: int | None, vocab_size: int, sampling: Sampling
) -> tuple[Entry, ...]:
    """`count` requests whose lengths are those given, in turn; one each without a count.

    Token ids are uniform over the vocabulary, drawn from sampling.seed.
    """
    return tuple(
        _random_request(i, lengths[i % len(lengths)], vocab_size, sampling)
        for i in range(len(lengths) if count is None else count)
    )


def _random_request(index: int, length: int, vocab_size: int, sampling: Sampling) -> Entry:
    name = f"request-{index + 1}"
    own = replace(sampling, seed=derived_seed(sampling.seed, name))
    tokens = tuple(random.Random(f"{sampling.seed}:{index}").choices(range(vocab_size), k=length))
    return Entry(name, name, "plain", tokens, own)
