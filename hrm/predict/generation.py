"""A whole run: requests in, batches formed, pass after pass until the last one has its tokens."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hrm.errors import WorkloadError
from hrm.predict.batching import balanced_batch
from hrm.predict.closed_form import predict
from hrm.predict.in_flight import Group, future_peak_bytes, next_slice
from hrm.predict.kv_table import KvTable, kv_table
from hrm.predict.requests import Request
from hrm.predict.simulate import Simulator
from hrm.schedule.build import CacheStats, page_plan
from hrm.schedule.slice import PassSlice
from hrm.spec.policy import Policy


@dataclass(frozen=True, slots=True)
class PassRecord:
    """One pass of a run: when it began, seconds it took, what it carried, how many requests it finished."""

    start: float
    seconds: float
    decoding: int
    prompt_tokens: int
    finished: int

    @property
    def name(self) -> str:
        """prefill, decode or mixed."""
        if not self.prompt_tokens:
            return "decode"
        return "mixed" if self.decoding else "prefill"


@dataclass(frozen=True)
class GenerationRun:
    """A simulated run. `fill_seconds` bring the first pages before the first pass."""

    passes: tuple[PassRecord, ...]
    num_requests: int
    generated_tokens: int
    fill_seconds: float

    @property
    def total_seconds(self) -> float:
        """From the start to the last token, waiting for arrivals included."""
        return self.passes[-1].start + self.passes[-1].seconds

    @property
    def generation_throughput(self) -> float:
        """Generated tokens per second of the whole run."""
        return self.generated_tokens / self.total_seconds

    def seconds_in(self, name: str) -> float:
        """Seconds in passes of one name."""
        return math.fsum(p.seconds for p in self.passes if p.name == name)


def simulate_generation(
    simulator: Simulator,
    policy: Policy,
    requests: Sequence[Request],
    cache: CacheStats | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GenerationRun:
    """Runs all requests under a policy, in the order in which they arrive.

    Without mixed prefill, whole batches are formed (Algorithm 2), prefilled and decoded to their end; requests that
    finish early leave, and the next batch starts after the last. With it, requests join as others leave: per pass at
    most the share of the batch that finishes in one, so that ages stay spread, or all that wait once they fit (not
    where experts run over the whole batch: the hidden states of so many prompts would have to stay on the GPU).

    Raises:
        PolicyError: the policy does not fit the machine.
        WorkloadError: no request, or one that exceeds the KV cache on its own.
    """
    if not requests:
        raise WorkloadError("run: no requests; give at least one")
    capacity = cache_capacity_bytes(simulator, policy)
    waiting = deque(sorted(requests, key=lambda r: r.arrival_seconds))
    longest = max(r.prompt_len + r.gen_len for r in waiting)
    _check_longest(longest, simulator, capacity / policy.num_micro_batches)
    kv = kv_table(simulator.rates.sizes, longest)
    groups = [Group() for _ in range(policy.num_micro_batches)]
    now, fill, records, total = 0.0, 0.0, list[PassRecord](), len(waiting)
    while waiting or any(len(g) for g in groups):
        if not any(len(g) for g in groups):
            now = max(now, waiting[0].arrival_seconds)
        _admit(groups, waiting, policy, capacity, now, kv)
        work = next_slice(groups, policy)
        routed = cache if work.decodes else None
        if not records:
            fill = _fill_seconds(simulator, policy, work, routed)
            now += fill
        seconds = simulator.pass_seconds(policy, work, routed)
        prompt_tokens = sum(mb.prompt_tokens for mb in work.micro_batches)
        decoding = sum(mb.sequences for mb in work.micro_batches)
        finished = sum(group.advance() for group in groups)
        records.append(PassRecord(now, seconds, decoding, prompt_tokens, finished))
        now += seconds
        if progress is not None:
            progress(total - len(waiting) - sum(len(g) for g in groups), total)
    return GenerationRun(tuple(records), total, sum(r.gen_len for r in requests), fill)


def _check_longest(tokens: int, simulator: Simulator, capacity: float) -> None:
    needed = simulator.rates.sizes.kv_bytes_per_sequence(tokens)
    if needed > capacity:
        raise WorkloadError(
            f"run: a request of {tokens} tokens, prompt and generated, takes {needed / 2**30:,.3f} GiB of KV cache "
            f"where a micro-batch has {capacity / 2**30:,.3f} GiB; shorten it or choose fewer micro-batches"
        )


def cache_capacity_bytes(simulator: Simulator, policy: Policy) -> float:
    """Bytes of KV cache (one copy of each token's) that fit beside all else, GPU and CPU in the policy's proportion.

    Raises:
        PolicyError: the policy does not fit.
    """
    prediction, fits = predict(simulator.rates, policy), []
    for memory, share, copies in (
        (prediction.gpu_memory, policy.kv_on_gpu, simulator.rates.kv_replication),
        (prediction.cpu_memory, 1 - policy.kv_on_gpu, 1.0),
    ):
        if share > 0:
            room = memory.parts["kv_cache"] + max(0.0, memory.usable_bytes - memory.total_bytes)
            fits.append(room / (share * copies))
    return min(fits)


def _fill_seconds(simulator: Simulator, policy: Policy, work: PassSlice, cache: CacheStats | None) -> float:
    """Seconds to bring the pages that the first pass expects in place."""
    rates = simulator.rates
    plan = page_plan(rates.sizes, work, policy, cache)
    layers = math.fsum(plan.share(page) for page in range(plan.ahead))
    return layers * rates.sizes.expert_layer_bytes / rates.machine.link_bytes_per_s("htod")


def _admit(
    groups: list[Group], waiting: deque[Request], policy: Policy, capacity: float, now: float, kv: KvTable
) -> None:
    """Moves requests that have arrived into micro-batches, as many as the policy takes on before the next pass."""
    if policy.mixed_prefill:
        _join(groups, waiting, policy, capacity, now, kv)
    elif not any(len(g) for g in groups):
        arrived = [waiting.popleft() for _ in range(_num_arrived(waiting, now, policy.batch_size))]
        batch = balanced_batch(arrived, len(groups), policy.micro_batch_size, capacity / len(groups), kv)
        for group, members in zip(groups, batch.micro_batches, strict=False):
            group.join(members)
        waiting.extendleft(reversed(batch.left_over))


def _num_arrived(waiting: deque[Request], now: float, most: int) -> int:
    count = 0
    while count < min(most, len(waiting)) and waiting[count].arrival_seconds <= now:
        count += 1
    return count


def _join(
    groups: list[Group], waiting: deque[Request], policy: Policy, capacity: float, now: float, kv: KvTable
) -> None:
    """Requests join the micro-batches with fewest sequences while slots and KV cache last."""
    active = sum(len(g) for g in groups)
    mean_gen = sum(r.gen_len for r in waiting) / len(waiting) if waiting else 1.0
    free, steady = policy.batch_size - active, math.ceil(policy.batch_size / mean_gen)
    at_once = len(waiting) <= free and policy.ffn_batching == "micro_batch"
    most = free if at_once else min(free, steady)
    count = _num_arrived(waiting, now, most)
    candidates = [waiting[i] for i in range(count)]
    while count and future_peak_bytes(groups, candidates[:count], kv) > capacity:
        count -= max(1, count // 8)
    for _ in range(count):
        smallest = min(groups, key=len)
        smallest.join([waiting.popleft()])
