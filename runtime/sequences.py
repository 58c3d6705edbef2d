"""Sequences in flight, as arrays over slots: what changes every pass is changed for all at once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.memory.kv_cache import BLOCK, BlockPool, Blocks, blocks_of
from runtime.requests.request import Request

Slots = NDArray[np.int64]


@dataclass
class SequenceTable:
    """Arrays [slot]. cached: tokens whose K, V are in the cache; last: the latest token, not yet in it; made: tokens
    generated; target: tokens to generate at most; on_gpu: whether the K, V lie in the GPU's pool; sits_out: not in the
    next pass.
    table: [slot, blocks]; generated: [slot, tokens].
    """

    requests: list[Request | None]
    active: NDArray[np.bool_]
    on_gpu: NDArray[np.bool_]
    sits_out: NDArray[np.bool_]
    cached: Slots
    last: Slots
    made: Slots
    target: Slots
    prompt: Slots
    seed: Slots
    temperature: NDArray[np.float64]
    top_p: NDArray[np.float64]
    table: NDArray[np.int32]
    generated: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.active)

    @property
    def in_flight(self) -> Slots:
        """Slots that take part in the next pass."""
        return np.flatnonzero(self.active & ~self.sits_out)

    @property
    def decoding(self) -> Slots:
        """Slots that take part and whose prompt is in the cache."""
        return np.flatnonzero(self.active & ~self.sits_out & (self.made > 0))

    @property
    def waiting(self) -> Slots:
        """Slots that sit the next pass out; their latest tokens are known."""
        return np.flatnonzero(self.active & self.sits_out)

    @property
    def entering(self) -> Slots:
        """Slots whose prompt comes next."""
        return np.flatnonzero(self.active & (self.made == 0))

    def enter(self, slot: int, request: Request, on_gpu: bool) -> None:
        """Takes a request into a free slot."""
        self.requests[slot], sampling = request, request.sampling
        self.active[slot], self.on_gpu[slot], self.sits_out[slot] = True, on_gpu, False
        self.cached[slot] = self.made[slot] = 0
        self.prompt[slot], self.target[slot] = len(request.prompt), sampling.max_tokens
        self.seed[slot], self.temperature[slot], self.top_p[slot] = sampling.seed, sampling.temperature, sampling.top_p

    def append(self, slots: Slots, tokens: Slots) -> None:
        """One more generated token each."""
        self.generated[slots, self.made[slots]] = tokens
        self.last[slots] = tokens
        self.made[slots] += 1

    def leave(self, slot: int, pools: dict[str, BlockPool]) -> Request:
        """Frees a slot and its blocks."""
        request = self.requests[slot]
        assert request is not None
        count = blocks_of(int(self.cached[slot]))
        pools["gpu" if self.on_gpu[slot] else "host"].release(self.table[slot, :count])
        self.active[slot], self.requests[slot] = False, None
        return request

    def reserve(self, slots: Slots, tokens: Slots, pools: dict[str, BlockPool]) -> None:
        """Gives `slots` the blocks for `tokens` more tokens each, and counts these as cached."""
        before = -(-self.cached[slots] // BLOCK)
        after = -(-(self.cached[slots] + tokens) // BLOCK)
        for name, mine in (("gpu", self.on_gpu[slots]), ("host", ~self.on_gpu[slots])):
            need = (after - before) * mine
            blocks = pools[name].allocate(int(need.sum()))
            _hand_out(self.table, slots, before, need, blocks)
        self.cached[slots] += tokens


def _hand_out(table: NDArray[np.int32], slots: Slots, first: Slots, need: Slots, blocks: Blocks) -> None:
    """Writes `need[i]` of `blocks` to row slots[i] from column first[i] on."""
    rows = np.repeat(slots, need)
    offsets = np.arange(len(blocks)) - np.repeat(np.cumsum(need) - need, need)
    table[rows, np.repeat(first, need) + offsets] = blocks


def make_table(num_slots: int, max_tokens: int, max_generated: int) -> SequenceTable:
    """An empty table for sequences of at most `max_tokens`, `max_generated` of them generated."""
    cached, last, made, target, prompt, seed = (np.zeros(num_slots, np.int64) for _ in range(6))
    return SequenceTable(
        requests=[None] * num_slots,
        active=np.zeros(num_slots, np.bool_),
        on_gpu=np.zeros(num_slots, np.bool_),
        sits_out=np.zeros(num_slots, np.bool_),
        cached=cached,
        last=last,
        made=made,
        target=target,
        prompt=prompt,
        seed=seed,
        temperature=np.zeros(num_slots),
        top_p=np.ones(num_slots),
        table=np.zeros((num_slots, blocks_of(max_tokens)), np.int32),
        generated=np.zeros((num_slots, max_generated), np.int32),
    )
