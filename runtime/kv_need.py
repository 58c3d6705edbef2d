"""How large the KV cache has to be for some requests under a policy."""

import math
from collections.abc import Sequence

from hrm.errors import HrmError
from hrm.spec.policy import Policy
from runtime.host_memory import available_bytes, reserve_bytes
from runtime.memory.kv_cache import BLOCK, KvPlan, block_bytes, blocks_of
from runtime.model_memory import ModelMemory
from runtime.requests.request import Request

SPREAD = 1.02  # of the need over its mean: lengths that leave and lengths that join differ
FEW = 32  # blocks on the GPU for those that are not full


def kv_plan(memory: ModelMemory, policy: Policy, requests: Sequence[Request], tokens: int | None) -> KvPlan:
    """Blocks in CPU memory and on the GPU for `tokens`, or for the policy's batch of `requests`, as far as there is
    room; requests that are too long for what that gives are the scheduler's to refuse.

    Raises:
        HrmError: CPU memory has no room for a single block.
    """
    in_flight = min(policy.batch_size, max(1, len(requests)))
    resident = round(policy.kv_on_gpu * in_flight)
    longest = max((blocks_of(len(r.prompt) + r.sampling.max_tokens) for r in requests), default=1)
    mean = _mean_tokens(policy, requests, in_flight) if tokens is None else tokens / in_flight
    gpu = max(longest, int(resident * mean / BLOCK) + min(resident, FEW)) if resident else 0
    host = _host_blocks(in_flight - resident, mean) + longest if resident < in_flight else 0
    room = _host_room(memory)
    if host and not room:
        raise HrmError(f"KV cache: {host} blocks of {BLOCK} tokens are needed, and CPU memory has room for none")
    host = min(host, room)
    lock = memory.device.type == "cuda" and policy.host_weights == "page_locked"
    return KvPlan(host, gpu, lock)


def _host_blocks(sequences: int, mean_tokens: float) -> int:
    """With half a block more per sequence for the one that is not full. On the GPU hardly anything is added: its memory
    is full to the brim under a good policy, and a few sequences less are admitted instead.
    """
    return math.ceil(SPREAD * sequences * (mean_tokens + BLOCK / 2) / BLOCK)


def _mean_tokens(policy: Policy, requests: Sequence[Request], in_flight: int) -> float:
    """Tokens a sequence has cached: at its end, or with mixing, over sequences of all ages.

    Requests that are all taken on at once end together.
    """
    if not requests:
        return 1.0
    ends = sum(len(r.prompt) + r.sampling.max_tokens for r in requests) / len(requests)
    made = sum(r.sampling.max_tokens for r in requests) / len(requests)
    return ends - (made / 2 if policy.mixed_prefill and in_flight < len(requests) else 0.0)


def _host_room(memory: ModelMemory) -> int:
    """Blocks that available CPU memory holds."""
    per_block = block_bytes(memory.config) * memory.config.num_layers
    available = available_bytes() + memory.kv.host_bytes
    return max(0, int((available - reserve_bytes(available)) // per_block))
