"""Ranks the best policies of a search again, by simulation instead of by roofs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hrm.errors import PolicyError
from hrm.predict.closed_form import predict
from hrm.predict.gap import Gap, explain_gap
from hrm.predict.rates import Rates
from hrm.predict.simulate import Simulator
from hrm.predict.throughput import SimulatedThroughput, simulate_throughput
from hrm.schedule.placement import Placement
from hrm.schedule.registry import placement_of
from hrm.schedule.slice import PassSlice, decode_slice, mixed_slice, prefill_slice
from hrm.search.search import Candidate, SearchResult, search_policy
from hrm.spec.policy import Policy

MOST_KINDS = 16  # placements whose best policies are considered
PROMISE_SLACK = 1.05  # a pass of one micro-batch has fewer copies, each with a latency, than the closed form counts
FINEST = 128  # micro-batches beyond which a pipeline's fill is a small part of it anyway
FINER = (2, 4)  # times as many micro-batches: smaller ones fill the pipeline sooner, and cost more weight reads
COARSER = (2, 4)  # times fewer: each task has its overhead, however small
Simulated = tuple[Candidate, SimulatedThroughput]


@dataclass(frozen=True)
class Refined:
    """A policy with its closed form, its simulation, and why the two differ in its longest kind of pass."""

    candidate: Candidate
    simulated: SimulatedThroughput
    gap: Gap

    @property
    def policy(self) -> Policy:
        """The policy."""
        return self.candidate.policy


def refine(result: SearchResult, progress: Callable[[int, int], None] | None = None) -> tuple[Refined, ...]:
    """Simulates every candidate of a search, each also with other numbers of micro-batches; best simulated first.

    Tried are 2 and 4 times as many, and where the profile states a `task_overhead` of the GPU also 1/2 and 1/4 of them:
    see `_finer` and `_coarser` for what is left out. The closed form ranks by roofs alone; of two policies equally good
    there, one may leave bubbles that the other does not.
    """
    simulated = []
    for i, candidate in enumerate(result.candidates):
        simulated.append(_best_variant(result.rates, candidate))
        if progress is not None:
            progress(i + 1, len(result.candidates))
    return tuple(_explained(result.rates, entry) for entry in sorted(simulated, key=_throughput, reverse=True))


def best_by_simulation(
    rates: Rates,
    schedule: str,
    mixed_prefill: bool | None = None,
    batch_limit: int | None = None,
    pool: tuple[Placement, ...] | None = None,
) -> Refined:
    """The best simulated policy among the best of every placement of a schedule.

    Goes through them by what their roofs promise and leaves out what promises less than has been simulated. On-demand
    fetching is always simulated: its closed form takes copies and compute in turn, where they overlap within a layer.
    `mixed_prefill` asks for policies that mix prefill into decode passes, or that do not; None for either.
    `batch_limit`, `pool`: as in `search_policy`.

    Raises:
        InfeasibleError: nothing fits. UnknownNameError: an unknown schedule.
        PolicyError: no policy found mixes prefill as asked.
    """
    best: Simulated | None = None
    for candidate in search_policy(rates, schedule, MOST_KINDS, batch_limit, pool).candidates:
        if mixed_prefill not in (None, candidate.policy.mixed_prefill):
            continue
        promised = candidate.prediction.generation_throughput * PROMISE_SLACK
        on_demand = placement_of(candidate.policy).overlap == "on_demand"
        if best is not None and promised < _throughput(best) and not on_demand:
            continue
        variant = _best_variant(rates, candidate)
        best = variant if best is None else max(best, variant, key=_throughput)
    if best is None:
        asked = "mixes" if mixed_prefill else "does not mix"
        raise PolicyError(f"schedule {schedule}: no policy found {asked} prefill into its decode passes")
    return _explained(rates, best)


def _best_variant(rates: Rates, candidate: Candidate) -> Simulated:
    simulator = Simulator(rates.for_chunk(candidate.policy.prefill_chunk_tokens))
    variants = [(v, simulate_throughput(simulator, v.policy)) for v in _variants(rates, candidate)]
    return max(variants, key=_throughput)


def _throughput(simulated: Simulated) -> float:
    return simulated[1].generation_throughput


def _explained(rates: Rates, simulated: Simulated) -> Refined:
    candidate, throughput = simulated
    return Refined(candidate, throughput, explain_policy(rates, candidate.policy))


def explain_policy(rates: Rates, policy: Policy) -> Gap:
    """Why the pass in which a policy spends most of its time takes longer than its bound."""
    return explain_gap(rates, Simulator(rates).simulate(policy, typical_slice(rates, policy)).timeline)


def typical_slice(rates: Rates, policy: Policy) -> PassSlice:
    """A mixed pass, a decode pass at the mean context, or where nothing is decoded a prefill pass."""
    if policy.mixed_prefill:
        return mixed_slice(policy, rates.workload)
    if rates.workload.gen_len == 1:
        return prefill_slice(policy, rates.workload)
    return decode_slice(policy, rates.workload.mean_context_len)


def _variants(rates: Rates, candidate: Candidate) -> Iterator[Candidate]:
    """The policy itself, then those with other numbers of micro-batches that fit too."""
    yield candidate
    for n in (*_finer(candidate.policy), *_coarser(rates, candidate.policy)):
        changed = _with_micro_batches(candidate.policy, n)
        try:
            yield Candidate(changed, predict(rates, changed))
        except PolicyError:
            continue


def _finer(policy: Policy) -> Iterator[int]:
    """2 and 4 times the micro-batches, up to FINEST and the batch; none for a policy of a single micro-batch."""
    for factor in FINER:
        n = policy.num_micro_batches * factor
        if n > policy.batch_size or policy.num_micro_batches == 1 or n > FINEST:
            return
        yield n


def _coarser(rates: Rates, policy: Policy) -> Iterator[int]:
    """1/2 and 1/4 of the micro-batches, no fewer than the schedule runs; none without a stated `task_overhead`."""
    if rates.machine.task_overhead("gpu"):
        for factor in COARSER:
            n = policy.num_micro_batches // factor
            if n >= placement_of(policy).min_micro_batches:
                yield n


def _with_micro_batches(policy: Policy, n: int) -> Policy:
    """The policy with `n` equal micro-batches; of the batch, what does not fill them is left out."""
    return policy.resized(n, policy.batch_size // n)
