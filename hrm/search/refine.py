"""Ranks the best policies of a search again, by simulation instead of by roofs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hrm.errors import PolicyError
from hrm.predict.gap import Gap, explain_gap
from hrm.predict.prediction import predict
from hrm.predict.rates import Rates
from hrm.predict.simulate import Simulator
from hrm.predict.throughput import SimulatedThroughput, simulate_throughput
from hrm.schedule.build import build_graph
from hrm.schedule.slice import PassSlice, decode_slice, mixed_slice, prefill_slice
from hrm.search.search import Candidate, SearchResult
from hrm.spec.policy import Policy

FINEST = 128  # micro-batches beyond which a pipeline's fill is a small part of it anyway
FINER = (1, 2, 4)  # times as many micro-batches: smaller ones fill the pipeline sooner, and cost more weight reads


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
    """Simulates every candidate of a search, each with 1, 2 and 4 times its micro-batches; best simulated first.

    The closed form ranks by roofs alone; of two policies equally good there, one may leave bubbles that the other
    does not.
    """
    rates = result.rates
    variants = [v for c in result.candidates for v in _finer(rates, c)]
    simulators: dict[int, Simulator] = {}
    done: dict[Policy, tuple[Candidate, SimulatedThroughput]] = {}
    for i, variant in enumerate(variants):
        chunk = variant.policy.prefill_chunk_tokens
        simulator = simulators.setdefault(chunk, Simulator(rates.for_chunk(chunk)))
        done[variant.policy] = (variant, simulate_throughput(simulator, variant.policy))
        if progress is not None:
            progress(i + 1, len(variants))
    best = _best_of_each(list(done.values()))
    ranked = sorted(best, key=lambda entry: -entry[1].generation_throughput)
    return tuple(Refined(c, s, explain_policy(rates, c.policy)) for c, s in ranked)


def explain_policy(rates: Rates, policy: Policy) -> Gap:
    """Why the pass in which a policy spends most of its time takes longer than its bound."""
    return explain_gap(rates, build_graph(rates.sizes, typical_slice(rates, policy), policy))


def typical_slice(rates: Rates, policy: Policy) -> PassSlice:
    """A mixed pass, a decode pass at the mean context, or where nothing is decoded a prefill pass."""
    if policy.mixed_prefill:
        return mixed_slice(policy, rates.workload)
    if rates.workload.gen_len == 1:
        return prefill_slice(policy, rates.workload)
    return decode_slice(policy, rates.workload.mean_context_len)


def _finer(rates: Rates, candidate: Candidate) -> Iterator[Candidate]:
    """The policy itself and those with smaller micro-batches that fit too."""
    policy = candidate.policy
    yield candidate
    for factor in FINER[1:]:
        n = policy.num_micro_batches * factor
        mu = policy.batch_size // n
        if mu < 1 or policy.num_micro_batches == 1 or n > FINEST:
            return
        changes = {"batch_size": mu * n, "micro_batch_size": mu, "ffn_batch_size": mu}
        if policy.ffn_batching == "batch":
            changes["ffn_batch_size"] = mu * n
        smaller = Policy.model_validate(policy.model_dump() | changes)
        try:
            yield Candidate(smaller, predict(rates, smaller))
        except PolicyError:
            continue


def _best_of_each(
    simulated: list[tuple[Candidate, SimulatedThroughput]],
) -> list[tuple[Candidate, SimulatedThroughput]]:
    """For every kind of candidate its best variant."""
    best: dict[tuple[object, ...], tuple[Candidate, SimulatedThroughput]] = {}
    for entry in simulated:
        kind = _kind(entry[0].policy)
        if kind not in best or entry[1].generation_throughput > best[kind][1].generation_throughput:
            best[kind] = entry
    return list(best.values())


def _kind(policy: Policy) -> tuple[object, ...]:
    """What variants of one policy have in common: all but its batch sizes."""
    return tuple(v for k, v in policy.model_dump().items() if not k.endswith("batch_size"))
