"""The search of `hrm run`: the best policy for as many requests as there are."""

from collections.abc import Callable, Iterator, Sequence

from hrm.cli.progress import progress_bar
from hrm.errors import HrmError, PolicyError
from hrm.predict.rates import Rates
from hrm.predict.simulate import Simulator
from hrm.predict.throughput import simulate_throughput
from hrm.search.refine import refine
from hrm.search.search import search_policy
from hrm.spec.policy import Policy

REFINED = 4  # policies of the search that are simulated
MICRO_BATCHES = (1, 2, 4, 8)  # tried for a batch cut to the number of requests


def search_for(rates: Rates, schedule: str, num_requests: int) -> Policy:
    """The policy that simulates best among the best of a search.

    A search takes requests to be without end. Where a batch is larger than all requests, each of its policies is
    cut to their number, in 1 to 8 micro-batches, and what simulates best then is taken.

    Raises:
        InfeasibleError: nothing fits. UnknownNameError: an unknown schedule.
    """
    result = search_policy(rates, schedule, REFINED)
    found = [candidate.policy for candidate in result.candidates]
    with progress_bar("policies simulated") as update:
        if all(policy.batch_size <= num_requests for policy in found):
            return refine(result, update)[0].policy
        cut = [variant for policy in found for variant in cut_policies(policy, num_requests)]
        return _best(rates, cut, update)


def cut_policies(policy: Policy, num_requests: int) -> Iterator[Policy]:
    """The policy with a batch of at most so many requests, rounded up to whole micro-batches where it has room."""
    limit = min(policy.batch_size, num_requests)
    for n in MICRO_BATCHES:
        mu = -(-limit // n) if -(-limit // n) * n <= policy.batch_size else limit // n
        if n <= limit and mu >= 1:
            yield policy.resized(n, mu)


def _best(rates: Rates, policies: Sequence[Policy], update: Callable[[int, int], None]) -> Policy:
    """By simulation of one batch.

    Raises:
        HrmError: none fits.
    """
    speed: dict[int, float] = {}
    for i, policy in enumerate(policies):
        simulator = Simulator(rates.for_chunk(policy.prefill_chunk_tokens))
        try:
            speed[i] = simulate_throughput(simulator, policy).generation_throughput
        except PolicyError:
            continue
        finally:
            update(i + 1, len(policies))
    if not speed:
        raise HrmError("no policy of the search fits with as few requests; give --policy FILE")
    return policies[max(speed, key=lambda i: speed[i])]
