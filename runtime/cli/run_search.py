"""The search of `hrm run`: the best policy for the requests there are."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from hrm.cli.progress import progress_bar
from hrm.errors import HrmError, InfeasibleError, PolicyError
from hrm.predict.generation import simulate_generation
from hrm.predict.rates import Rates
from hrm.predict.requests import Request
from hrm.predict.simulate import Simulator
from hrm.predict.throughput import simulate_throughput
from hrm.search.polish import polished, with_margin
from hrm.search.refine import MOST_KINDS, refine
from hrm.search.search import search_policy
from hrm.spec.policy import Policy

REFINED = 4  # policies of the search that are simulated, with mixed prefill and without
MICRO_BATCHES = (1, 2, 4, 8)  # tried for a batch cut to the number of requests
ENDLESS = 16  # batches of requests beyond which how they begin and end is a small part of the run
Update = Callable[[int, int], None]


def search_for(rates: Rates, schedule: str, requests: Sequence[Request]) -> Policy:
    """The policy that simulates best for these requests among the best of a search.

    A search takes requests to be without end. A run of few batches fills up and drains for much of its time, most of
    all where prompts join a few per pass; so there the whole run is simulated, mixed prefill and separate prefill
    compared, each batch no larger than the requests.

    Raises:
        InfeasibleError: nothing fits. UnknownNameError: an unknown schedule. HrmError: nothing for so few requests.
    """
    result = search_policy(rates, schedule, MOST_KINDS)
    best = result.candidates[:REFINED]
    with progress_bar("policies simulated") as update:
        if all(ENDLESS * candidate.policy.batch_size <= len(requests) for candidate in best):
            return refine(replace(result, candidates=best), update)[0].policy
        mixed, apart = ([c.policy for c in result.candidates if c.policy.mixed_prefill is m] for m in (True, False))
        found = _best_run(rates, [*mixed[:REFINED], *apart[:REFINED]], requests, update)
    if found is None:  # cut so far down, none of them fits: some take two micro-batches at the least
        return _smallest(rates, schedule, len(requests))
    return found


def _smallest(rates: Rates, schedule: str, num_requests: int) -> Policy:
    """The best policy of batches no larger than that.

    Raises:
        HrmError: the schedule has none.
    """
    try:
        return search_policy(rates, schedule, batch_limit=num_requests).candidates[0].policy
    except InfeasibleError:
        raise HrmError(
            f"schedule {schedule} has no policy for as few requests as {num_requests} here; use --schedule auto"
        ) from None


def _best_run(rates: Rates, policies: Sequence[Policy], requests: Sequence[Request], update: Update) -> Policy | None:
    """By simulation of the run; of each policy, the number of micro-batches that simulates best for one batch. None
    where no policy fits.
    """
    speed: dict[Policy, float] = {}
    for i, policy in enumerate(policies):
        cut = _best_batch(rates, cut_policies(policy, len(requests)))
        if cut is not None and cut not in speed:
            with suppress(HrmError):  # a request that its micro-batches have no room for
                speed[cut] = _run_speed(rates, cut, requests)
        update(i + 1, len(policies))
    if not speed:
        return None
    fastest = max(speed, key=lambda policy: speed[policy])
    careful = with_margin(rates)
    return polished(rates, fastest, lambda policy: _run_speed(careful, policy, requests))


def _run_speed(rates: Rates, policy: Policy, requests: Sequence[Request]) -> float:
    """Tokens/s of the whole run, simulated."""
    simulator = Simulator(rates.for_chunk(policy.prefill_chunk_tokens))
    return simulate_generation(simulator, policy, requests).generation_throughput


def _best_batch(rates: Rates, policies: Iterator[Policy]) -> Policy | None:
    """By simulation of one batch; None where none fits."""
    speed: dict[Policy, float] = {}
    for policy in policies:
        simulator = Simulator(rates.for_chunk(policy.prefill_chunk_tokens))
        try:
            speed[policy] = simulate_throughput(simulator, policy).generation_throughput
        except PolicyError:
            continue
    return max(speed, key=lambda policy: speed[policy]) if speed else None


def cut_policies(policy: Policy, num_requests: int) -> Iterator[Policy]:
    """The policy itself where there are as many requests; else with a batch of so many, rounded up to whole
    micro-batches where it has room. Each also in 1 to 8 micro-batches.
    """
    limit = min(policy.batch_size, num_requests)
    if policy.batch_size <= num_requests:
        yield policy
    for n in MICRO_BATCHES:
        mu = -(-limit // n) if -(-limit // n) * n <= policy.batch_size else limit // n
        if n <= limit and mu >= 1:
            yield policy.resized(n, mu)
