"""What one pass carries: micro-batches of decoding sequences and of prompt tokens."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from hrm.errors import WorkloadError
from hrm.spec.policy import Policy
from hrm.spec.workload import Workload


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Tokens that go through attention together: decoding sequences, or prompt tokens.

    sequences: decoding sequences, one token each, of which `gpu_sequences` are attended on the GPU; they attend
        `context_len` cached tokens on average.
    prompt_tokens: tokens of `prompts` prompts (a part of one counts as a fraction) whose mean and mean square length
        are `prompt_len` and `prompt_len_sq`.
    """

    sequences: int = 0
    gpu_sequences: int = 0
    context_len: float = 0.0
    prompt_tokens: int = 0
    prompts: float = 0.0
    prompt_len: float = 0.0
    prompt_len_sq: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens that go through every weight."""
        return self.sequences + self.prompt_tokens

    @property
    def is_prefill(self) -> bool:
        """Whether it carries prompt tokens (then it decodes none)."""
        return self.prompt_tokens > 0


@dataclass(frozen=True)
class PassSlice:
    """The micro-batches of one pass, in the order they run.

    Raises:
        WorkloadError: no micro-batch, an empty one, or one that both decodes and prefills.
    """

    micro_batches: tuple[MicroBatch, ...]

    def __post_init__(self) -> None:
        if not self.micro_batches:
            raise WorkloadError("pass: holds no micro-batch; give it at least one")
        for i, mb in enumerate(self.micro_batches):
            if mb.tokens < 1 or (mb.sequences and mb.prompt_tokens):
                raise WorkloadError(
                    f"pass: micro-batch {i} has {mb.sequences} decoding sequences and {mb.prompt_tokens} prompt "
                    "tokens; it needs either the one or the other"
                )
            if not 0 <= mb.gpu_sequences <= mb.sequences:
                raise WorkloadError(f"pass: micro-batch {i} attends {mb.gpu_sequences} of {mb.sequences} on the GPU")

    @cached_property
    def decodes(self) -> bool:
        """Whether any sequence decodes in this pass."""
        return any(mb.sequences for mb in self.micro_batches)

    @cached_property
    def tokens(self) -> int:
        """Tokens that go through every weight."""
        return sum(mb.tokens for mb in self.micro_batches)


def decode_slice(policy: Policy, context_len: float, sequences: int | None = None) -> PassSlice:
    """A decode pass of the whole batch (or of `sequences`) at one mean context, in micro-batches of mu."""
    total = policy.batch_size if sequences is None else sequences
    sizes = balanced_sizes(total, math.ceil(total / policy.micro_batch_size))
    return PassSlice(assign_gpu(tuple(MicroBatch(sequences=n, context_len=context_len) for n in sizes), policy))


def balanced_sizes(total: int, parts: int) -> tuple[int, ...]:
    """`total` in `parts` whole numbers that differ by at most one."""
    borders = [total * i // parts for i in range(parts + 1)]
    return tuple(b - a for a, b in pairwise(borders))


def assign_gpu(micro_batches: tuple[MicroBatch, ...], policy: Policy) -> tuple[MicroBatch, ...]:
    """Gives every micro-batch its whole number of sequences attended on the GPU; the total is A_g N, rounded."""
    share, seen, assigned = policy.attention_on_gpu, 0, []
    for mb in micro_batches:
        before, seen = round(share * seen), seen + mb.sequences
        assigned.append(replace(mb, gpu_sequences=round(share * seen) - before))
    return tuple(assigned)


def prefill_micro_batches(policy: Policy, workload: Workload, prompts: float) -> tuple[MicroBatch, ...]:
    """The prompts of `prompts` requests of the workload in equal chunks of at most `prefill_chunk_tokens`."""
    tokens = max(1, round(prompts * workload.prompt_len))
    sizes = balanced_sizes(tokens, math.ceil(tokens / policy.prefill_chunk_tokens))
    return tuple(
        MicroBatch(
            prompt_tokens=n,
            prompts=prompts * n / tokens,
            prompt_len=workload.prompt_len,
            prompt_len_sq=workload.prompt_len_sq,
        )
        for n in sizes
    )


def prefill_slice(policy: Policy, workload: Workload) -> PassSlice:
    """A pass that prefills the whole batch."""
    return PassSlice(prefill_micro_batches(policy, workload, policy.batch_size))


def mixed_slice(policy: Policy, workload: Workload) -> PassSlice:
    """A steady mixed pass: 1 / gen_len of the batch is replaced by requests whose prompts ride along.

    Prefill chunks are spread evenly among the decoding micro-batches, so that the CPU finds work while they run.
    """
    entering = policy.batch_size / workload.gen_len
    decoding = policy.batch_size - round(entering)
    prefill = prefill_micro_batches(policy, workload, entering)
    if decoding == 0:
        return PassSlice(prefill)
    decode = decode_slice(policy, workload.mean_context_len, decoding).micro_batches
    return PassSlice(interleave(decode, prefill))


def interleave(first: tuple[MicroBatch, ...], second: tuple[MicroBatch, ...]) -> tuple[MicroBatch, ...]:
    """Both lists in one, each in its order and spread evenly over the whole."""
    placed = [((i + 1) / (len(first) + 1), 0, mb) for i, mb in enumerate(first)]
    placed += [((i + 1) / (len(second) + 1), 1, mb) for i, mb in enumerate(second)]
    return tuple(mb for _, _, mb in sorted(placed, key=lambda entry: entry[:2]))
