"""Prompts of a routing trace as sequences, windows over long ones, splits by prompt and by domain."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.errors import WorkloadError
from hrm.predict.decode_passes import rows_behind
from hrm.predict.routing_trace import RoutingTrace
from hrm.spec.text_file import read_text, unique_keys


@dataclass(frozen=True)
class Span:
    """Tokens begin .. end of a sequence; rows from `first` on are predicted, those before it are context only."""

    begin: int
    first: int
    end: int


def window_spans(length: int, window: int) -> list[Span]:
    """Spans of at most `window` tokens that predict every row of a sequence once.

    A longer sequence is covered by windows half a window apart: rows past the first window see between half a
    window and a whole one of what is before them.
    """
    if length <= window:
        return [Span(0, 0, length)]
    stride = window // 2
    begins = range(0, length - window + stride, stride)
    ends = [min(begin + window, length) for begin in begins]
    return [Span(b, 0 if i == 0 else ends[i - 1], ends[i]) for i, b in enumerate(begins)]


def prompt_rows(trace: RoutingTrace) -> list[NDArray[np.int64]]:
    """Rows of each prompt in order of position (`check_trace`), prompts in order of their numbers."""
    order = np.argsort(trace.prompt, kind="stable")
    return np.split(order.astype(np.int64), np.flatnonzero(np.diff(trace.prompt[order])) + 1)


def select_rows(trace: RoutingTrace, rows: NDArray[Any]) -> RoutingTrace:
    """The trace of these rows only."""
    arrays = ("experts", "prompt", "step", "gate_weights", "tokens")
    held = {name: getattr(trace, name) for name in arrays}
    return replace(trace, **{name: array[rows] for name, array in held.items() if array is not None})


def split_prompts(trace: RoutingTrace, share: float, seed: int) -> tuple[RoutingTrace, RoutingTrace]:
    """(the rest, a random `share` of the prompts, at least one), split by prompt.

    Raises:
        WorkloadError: fewer than two prompts.
    """
    prompts = np.unique(trace.prompt)
    if len(prompts) < 2:
        raise WorkloadError("routing trace: holds one prompt; record at least two, so that one can be held out")
    count = min(max(round(share * len(prompts)), 1), len(prompts) - 1)
    held_out = np.random.default_rng(seed).permutation(prompts)[:count]
    inside = np.isin(trace.prompt, held_out)
    return select_rows(trace, ~inside), select_rows(trace, inside)


def followed_rows(trace: RoutingTrace) -> tuple[RoutingTrace, NDArray[np.intp]]:
    """The rows that have one of their prompt behind them, with its experts in the place of their own; and which rows
    those are.
    """
    behind = rows_behind(trace)
    rows = np.flatnonzero(behind >= 0)
    return replace(select_rows(trace, rows), experts=trace.experts[behind[rows]]), rows


def load_labels(path: Path) -> dict[int, str]:
    """Prompt number -> domain, of a JSON object such as {"0": "python", "1": "man"}, or of one whose list
    domain_of_prompt holds the domains in the order of the prompts.

    Raises:
        WorkloadError: unreadable, or of another form.
    """
    try:
        raw = json.loads(read_text(path, WorkloadError), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as failure:
        raise WorkloadError(f"{path}: is not valid JSON ({str(failure)[:200]})") from None
    listed = raw.get("domain_of_prompt") if isinstance(raw, dict) else None
    pairs = list(enumerate(listed)) if isinstance(listed, list) else list(raw.items()) if isinstance(raw, dict) else []
    if not pairs or not all(str(prompt).isdecimal() and isinstance(domain, str) for prompt, domain in pairs):
        raise WorkloadError(f'{path}: must be a JSON object of prompt number -> domain, such as {{"0": "python"}}')
    return {int(prompt): domain for prompt, domain in pairs}


def select_domain(
    trace: RoutingTrace, labels: Mapping[int, str], domain: str, inside: bool, where: str = "routing trace"
) -> RoutingTrace:
    """Prompts of one domain, or with inside=False of all others.

    Raises:
        WorkloadError: an unknown domain, a prompt without label, or no prompt left.
    """
    known = sorted(set(labels.values()))
    if domain not in known:
        raise WorkloadError(f"{where}: no prompt is labelled {domain[:80]!r}; known domains: {', '.join(known)}")
    prompts, place = np.unique(trace.prompt, return_inverse=True)
    missing = [int(p) for p in prompts if int(p) not in labels]
    if missing:
        raise WorkloadError(f"{where}: prompt {missing[0]} has no label; give the labels recorded with this trace")
    wanted = np.array([(labels[int(p)] == domain) == inside for p in prompts])[place]
    if not wanted.any():
        raise WorkloadError(f"{where}: no prompt {'of' if inside else 'outside'} domain {domain!r}")
    return select_rows(trace, wanted)


def batches_by_length(lengths: Sequence[int], batch_tokens: int, order: Iterable[int]) -> list[list[int]]:
    """Indices in batches of similar length and at most `batch_tokens` tokens with padding (at least one sequence each).

    Among equal lengths, `order` decides.
    """
    batches: list[list[int]] = []
    for i in sorted(order, key=lambda i: lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
