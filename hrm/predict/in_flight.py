"""Sequences in flight during a run, by micro-batch, and the passes they make."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hrm.predict.kv_table import KvTable
from hrm.predict.requests import Request
from hrm.schedule.slice import MicroBatch, PassSlice, assign_gpu, balanced_sizes, interleave
from hrm.spec.policy import Policy

Lengths = NDArray[np.int64]


@dataclass
class Group:
    """The sequences of one micro-batch: prompt tokens, tokens to generate and tokens generated so far, arrays [seq]."""

    prompt: Lengths = field(default_factory=lambda: np.zeros(0, np.int64))
    target: Lengths = field(default_factory=lambda: np.zeros(0, np.int64))
    made: Lengths = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.prompt)

    def join(self, requests: Sequence[Request]) -> None:
        """Adds requests, not yet prefilled."""
        self.prompt = np.append(self.prompt, [r.prompt_len for r in requests])
        self.target = np.append(self.target, [r.gen_len for r in requests])
        self.made = np.append(self.made, np.zeros(len(requests), np.int64))

    def advance(self) -> int:
        """Every sequence has one more token (prefill yields the first); drops and counts the finished."""
        self.made = self.made + 1
        going = self.made < self.target
        self.prompt, self.target, self.made = self.prompt[going], self.target[going], self.made[going]
        return int((~going).sum())

    def decoding(self) -> MicroBatch | None:
        """The sequences that decode in the next pass, with the mean context they attend, their new token included."""
        chosen = self.made > 0
        if not chosen.any():
            return None
        return MicroBatch(int(chosen.sum()), context_len=float((self.prompt + self.made)[chosen].mean()))

    @property
    def new_prompts(self) -> Lengths:
        """Prompts that the next pass prefills."""
        new: Lengths = self.prompt[self.made == 0]
        return new


def next_slice(groups: Sequence[Group], policy: Policy) -> PassSlice:
    """The pass that every sequence in flight takes part in: those prefilled decode, the others are prefilled."""
    decoding = tuple(mb for mb in (group.decoding() for group in groups) if mb is not None)
    prompts = np.concatenate([group.new_prompts for group in groups])
    return PassSlice(interleave(assign_gpu(decoding, policy), prefill_chunks(prompts, policy)))


def prefill_chunks(prompts: Lengths, policy: Policy) -> tuple[MicroBatch, ...]:
    """Prompts one after the other in equal chunks of at most `prefill_chunk_tokens`."""
    if not len(prompts):
        return ()
    tokens = int(prompts.sum())
    mean, square = float(prompts.mean()), float((prompts.astype(float) ** 2).mean())
    sizes = balanced_sizes(tokens, math.ceil(tokens / policy.prefill_chunk_tokens))
    return tuple(
        MicroBatch(prompt_tokens=n, prompts=len(prompts) * n / tokens, prompt_len=mean, prompt_len_sq=square)
        for n in sizes
    )


def future_peak_bytes(groups: Sequence[Group], more: Sequence[Request], kv: KvTable) -> float:
    """Most KV cache that the sequences in flight and `more` will hold at once if nobody else joins, bytes."""
    prompt = np.concatenate([*(g.prompt for g in groups), [r.prompt_len for r in more]]).astype(np.int64)
    target = np.concatenate([*(g.target for g in groups), [r.gen_len for r in more]])
    made = np.concatenate([*(g.made for g in groups), np.zeros(len(more), np.int64)])
    if not len(prompt):
        return 0.0
    remaining = (target - made).astype(np.int64)
    if kv.per_token is None:
        return max(_bytes_after(step, prompt + made, remaining, kv) for step in np.unique(remaining))
    order = np.argsort(-remaining, kind="stable")
    held = np.cumsum((prompt + made)[order]) + remaining[order] * np.arange(1, len(order) + 1)
    last_of_equal = np.append(remaining[order][1:] != remaining[order][:-1], True)
    return float(held[last_of_equal].max()) * kv.per_token


def _bytes_after(steps: int, held: Lengths, remaining: Lengths, kv: KvTable) -> float:
    """KV cache of those that are still there after `steps` more tokens."""
    return float(kv.bytes_by_tokens[(held + steps)[remaining >= steps].astype(np.int64)].sum())
