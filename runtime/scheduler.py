"""Which requests join before a pass: as many as the policy takes on and the KV cache will hold to their end.

The future use of the cache is known, since every request states how many tokens it may generate: nobody is sent back.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from hrm.spec.policy import Policy
from runtime.memory.kv_cache import BLOCK, BlockPool, blocks_of
from runtime.requests.request import Request
from runtime.sequences import SequenceTable, Slots

SEEDS = 1 << 63


@dataclass(frozen=True)
class Demand:
    """Sequences that hold blocks of one pool: tokens cached and tokens still to come, arrays [sequence]."""

    cached: Slots
    coming: Slots

    def joined(self, prompt: int, max_tokens: int) -> "Demand":
        """With one more, whose last token is never cached."""
        return Demand(np.append(self.cached, 0), np.append(self.coming, prompt + max_tokens - 1))


def peak_blocks(demand: Demand, growth: Slots) -> int:
    """Most blocks held at once if nobody else joins; `growth` are tokens that join in the next pass, [sequence].

    Blocks grow until somebody leaves, so the peak lies just before a sequence ends.
    """
    if not len(demand.cached):
        return 0
    now, left = demand.cached + growth, demand.coming - growth
    peaks = []
    for step in np.unique(left):
        there = left >= step
        peaks.append(int((-(-(now[there] + step) // BLOCK)).sum()))
    return max(peaks)


def pool_demand(table: SequenceTable, on_gpu: bool) -> tuple[Demand, Slots]:
    """Demand of the sequences in one pool, and the tokens that each adds in the next pass."""
    mine = np.flatnonzero(table.active & (table.on_gpu == on_gpu))
    total = table.prompt[mine] + table.target[mine] - 1
    growth = np.where(table.made[mine] > 0, 1, table.prompt[mine] - table.cached[mine])
    cached = table.cached[mine]
    return Demand(cached, total - cached), np.minimum(growth, total - cached)


def admit(table: SequenceTable, waiting: deque[Request], policy: Policy, pools: dict[str, BlockPool]) -> list[int]:
    """Moves requests from `waiting` into free slots; the slots taken.

    Without mixed prefill a batch starts when the one before has ended. With it, per pass at most the share of the batch
    that ends in one, so that ages stay spread, or all that wait once there is room for them (not where experts run over
    the whole batch: hidden states of so many prompts would have to stay on the GPU).
    """
    active = int(table.active.sum())
    if not waiting or (active and not policy.mixed_prefill):
        return []
    free = min(policy.batch_size, len(table)) - active
    most = min(free, len(waiting))
    if policy.mixed_prefill and (len(waiting) > free or policy.ffn_batching == "batch"):
        mean = sum(request.sampling.max_tokens for request in waiting) / len(waiting)
        most = min(most, math.ceil(policy.batch_size / mean))
    return _admit(table, waiting, policy, pools, most)


def _admit(
    table: SequenceTable, waiting: deque[Request], policy: Policy, pools: dict[str, BlockPool], most: int
) -> list[int]:
    slots = iter(np.flatnonzero(~table.active))
    candidates: list[int] = []
    for _ in range(most):
        slot = int(next(slots))
        table.enter(slot, waiting.popleft(), _home(table, policy))
        candidates.append(slot)
    kept = _most_that_fit(table, candidates, pools)
    for slot in reversed(candidates[kept:]):
        request = table.requests[slot]
        assert request is not None
        table.active[slot] = False
        waiting.appendleft(request)
    return candidates[:kept]


def _most_that_fit(table: SequenceTable, candidates: list[int], pools: dict[str, BlockPool]) -> int:
    """How many of the first candidates the pools hold to their end; found by halving, as the need grows with each."""
    fit, too_many = 0, len(candidates) + 1
    number = len(candidates)
    while too_many - fit > 1:
        table.active[candidates] = False
        table.active[candidates[:number]] = True
        if _fits(table, pools):
            fit = number
        else:
            too_many = number
        number = (fit + too_many) // 2
    table.active[candidates] = True
    return fit


def _home(table: SequenceTable, policy: Policy) -> bool:
    """Whether the next sequence's K, V go to the GPU: the pool that is further behind its share."""
    active = int(table.active.sum())
    on_gpu = int((table.active & table.on_gpu).sum())
    return round(policy.kv_on_gpu * (active + 1)) > on_gpu


def _fits(table: SequenceTable, pools: dict[str, BlockPool]) -> bool:
    return all(peak_blocks(*pool_demand(table, name == "gpu")) <= pool.num_blocks for name, pool in pools.items())


def refusal(
    request: Request, policy: Policy, pools: dict[str, BlockPool], max_positions: int, has_text: bool = True
) -> str | None:
    """Why a request can never run under the policy, or None. has_text: generated tokens can be turned into text."""
    prompt, coming = len(request.prompt), request.sampling.max_tokens
    if not prompt:
        return "the prompt is empty"
    if not -SEEDS <= request.sampling.seed < SEEDS:
        return f"its seed {request.sampling.seed} has more than 64 bits"
    if request.sampling.stop and not has_text:
        return "it has stop strings, which need a tokenizer to be found"
    if coming < 1:
        return f"max_tokens is {coming}; ask for at least one"
    if prompt + coming > max_positions:
        return f"{prompt} prompt tokens and {coming} to generate exceed the model's {max_positions} positions"
    homes = [pools[name] for name, share in (("gpu", policy.kv_on_gpu), ("host", 1 - policy.kv_on_gpu)) if share > 0]
    # a share too small for one of the sequences in flight has no pool, and is nobody's home
    room = min((pool.num_blocks for pool in homes if pool.num_blocks), default=0)
    need = blocks_of(prompt + coming - 1)
    if need > room:
        return (
            f"{prompt + coming} tokens need {need} KV blocks of {BLOCK} tokens, the policy leaves {room}; shorten it "
            "or choose a policy with a smaller batch"
        )
    return None
