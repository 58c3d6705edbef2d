"""Forms balanced micro-batches out of requests of different lengths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hrm.predict.requests import Request


@dataclass(frozen=True)
class Batch:
    """Requests by micro-batch, and those that did not fit."""

    micro_batches: tuple[tuple[Request, ...], ...]
    left_over: tuple[Request, ...]

    @property
    def num_requests(self) -> int:
        """Requests in all micro-batches."""
        return sum(len(mb) for mb in self.micro_batches)


def balanced_batch(
    requests: Sequence[Request],
    num_micro_batches: int,
    micro_batch_size: int,
    cache: float,
    size: Callable[[int], float] = float,
) -> Batch:
    """MoE-Lightning's Algorithm 2 (arXiv 2411.11217): longest prompts first, each to the micro-batch with fewest
    tokens.

    A micro-batch takes at most `micro_batch_size` requests whose KV cache, `size` of their prompt and generated
    tokens (the tokens themselves as the paper counts), adds up to at most `cache`. The paper drops what does not fit;
    here it is left over for the next batch.
    """
    parts: list[list[Request]] = [[] for _ in range(num_micro_batches)]
    tokens, needed = [0] * num_micro_batches, [0.0] * num_micro_batches
    left = []
    for request in sorted(requests, key=lambda r: -r.prompt_len):
        open_parts = [i for i in range(num_micro_batches) if len(parts[i]) < micro_batch_size]
        if not open_parts:
            left.append(request)
            continue
        at = min(open_parts, key=tokens.__getitem__)
        own = size(request.prompt_len + request.gen_len)
        if needed[at] + own > cache * (1 + 1e-12):
            left.append(request)
            continue
        parts[at].append(request)
        tokens[at] += request.prompt_len
        needed[at] += own
    return Batch(tuple(tuple(part) for part in parts if part), tuple(left))
