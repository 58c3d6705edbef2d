"""Opens what `hrm run` runs: the model, and the requests in its token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.requests.entry import Entry
from runtime.requests.request import Refusal, Request, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.checkpoint.source import WeightSource
    from runtime.cli.run_options import RunOptions
    from runtime.requests.chat_template import ChatTemplate
    from runtime.requests.tokenise import Tokenizer

SYNTHETIC_SEED = 0  # of random weights


@dataclass(frozen=True)
class RunSource:
    """A model with what is asked of it. `entries` and `requests` go together, one by one, in the order of the input.

    model_hash tells the model's weights and tokenizer from others. tokenise, detokenise: None without a tokenizer.
    """

    weights: WeightSource
    model_hash: str
    entries: tuple[Entry, ...]
    requests: tuple[Request | Refusal, ...]
    tokenise: Callable[[str], Sequence[int]] | None
    detokenise: Callable[[Sequence[int]], str] | None


def default_sampling(options: RunOptions) -> Sampling:
    """What lines get that do not say otherwise."""
    return Sampling(options.gen_len, options.temperature, options.top_p, options.seed, (), options.ignore_eos)


def read_entries(options: RunOptions) -> tuple[Entry, ...] | None:
    """The requests of --input; None without it. Needs no model, so that a fault is told at once.

    Raises:
        RequestError: see `read_input`.
    """
    from runtime.requests.input_file import read_input

    return None if options.input is None else read_input(options.input, default_sampling(options))


def open_source(options: RunOptions, entries: tuple[Entry, ...] | None) -> RunSource:
    """The model, and its requests in token ids; of random ids where there are no entries.

    Raises:
        CheckpointError, ModelConfigError, UnknownNameError: a model that cannot be opened.
        RequestError: text for a model without tokenizer.
    """
    from runtime.requests.tokenise import tokenise

    weights, model_hash = _open_weights(options)
    vocab_size = weights.config.vocab_size
    entries = _random_entries(options, vocab_size) if entries is None else entries
    tokenizer = _tokenizer(options, entries)
    requests = tokenise(entries, tokenizer, _template(options), vocab_size)
    tokenise_text, detokenise = (tokenizer.encode, tokenizer.decode) if tokenizer else (None, None)
    return RunSource(weights, model_hash, entries, requests, tokenise_text, detokenise)


def _open_weights(options: RunOptions) -> tuple[WeightSource, str]:
    from runtime.checkpoint.checkpoint import Checkpoint
    from runtime.checkpoint.synthetic import synthetic_checkpoint
    from runtime.dtypes import torch_dtype
    from runtime.requests.checkpoint_hash import hash_checkpoint, hash_synthetic

    dtype = None if options.dtype is None else torch_dtype(options.dtype)
    if options.model is not None:
        return Checkpoint.open(options.model, dtype), hash_checkpoint(options.model)
    assert options.synthetic is not None  # check() has seen to it
    checkpoint = synthetic_checkpoint(options.synthetic, options.layers, SYNTHETIC_SEED, dtype)
    return checkpoint, hash_synthetic(checkpoint.raw, SYNTHETIC_SEED)


def _random_entries(options: RunOptions, vocab_size: int) -> tuple[Entry, ...]:
    from runtime.requests.random_prompts import default_lengths, random_requests, read_prompt_lengths

    lengths = default_lengths() if options.prompts is None else read_prompt_lengths(options.prompts)
    return random_requests(lengths, options.num_requests, vocab_size, default_sampling(options))


def _tokenizer(options: RunOptions, entries: tuple[Entry, ...]) -> Tokenizer | None:
    """The checkpoint's, where it has one; required where there is text."""
    from runtime.checkpoint.tokenizer import load_tokenizer
    from runtime.requests.tokenise import needs_tokenizer

    if options.model is None or not (needs_tokenizer(entries) or (options.model / "tokenizer.json").is_file()):
        return None
    return load_tokenizer(options.model)


def _template(options: RunOptions) -> ChatTemplate | None:
    from runtime.requests.chat_template import load_chat_template

    return None if options.model is None else load_chat_template(options.model)
