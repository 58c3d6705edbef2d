"""Lengths of prompts and of what is generated, for runs of a few passes at a given context."""

import math
from dataclasses import dataclass

import numpy as np

from hrm.spec.policy import Policy
from hrm.spec.workload import Workload, make_workload
from runtime.requests.request import Request, Sampling

WARM_UP = 1  # passes after the prefill that are not measured: libraries choose kernels, caches fill


@dataclass(frozen=True)
class RunShape:
    """Requests of one run, all of the same lengths.

    first_measured: the pass, from 0, that is the first of `passes` measured ones.
    """

    requests: int
    prompt_len: int
    max_tokens: int
    first_measured: int
    passes: int

    @property
    def workload(self) -> Workload:
        """What the cost model is asked about."""
        return make_workload(self.max_tokens, self.prompt_len, name="validation", where="validation")


def search_workload(context_len: int, gen_len: int) -> Workload:
    """What policies are searched for: `context_len` on average while decoding."""
    return make_workload(gen_len, prompt_len(context_len, gen_len), name="validation", where="validation")


def prompt_len(context_len: int, gen_len: int) -> int:
    """Tokens of a prompt after which the mean context is `context_len`."""
    return context_len - gen_len // 2


def run_shape(policy: Policy, context_len: int, gen_len: int, passes: int) -> RunShape:
    """A prefill of the whole batch and a few decode passes; with mixing, enough requests for a steady state.

    Mixed: in every pass the same number of requests enter, and as many leave once the batch is full.
    """
    prompt = prompt_len(context_len, gen_len)
    if not policy.mixed_prefill:
        first = 1 + WARM_UP
        return RunShape(policy.batch_size, prompt, first + passes, first, passes)
    entering = math.ceil(policy.batch_size / gen_len)
    tokens = math.ceil(policy.batch_size / entering)
    return RunShape(policy.batch_size + passes * entering, prompt, tokens, tokens, passes)


def random_prompts(shape: RunShape, vocab_size: int) -> list[Request]:
    """Requests of random tokens that go on to their last."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, (shape.requests, shape.prompt_len)).tolist()
    sampling = Sampling(shape.max_tokens, ignore_eos=True)
    return [Request(str(i), tuple(prompt), sampling) for i, prompt in enumerate(tokens)]
