"""Which policy `hrm run` runs, and how fast it should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hrm.errors import HrmError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from hrm.predict.rates import Rates
    from hrm.predict.requests import Request as Asked
    from hrm.spec.model import ModelSpec
    from hrm.spec.policy import Policy
    from runtime.cli.run_options import RunOptions
    from runtime.requests.request import Request


@dataclass(frozen=True)
class ChosenPolicy:
    """A policy, and the tokens/s that its simulation promises for the run; None with the reason where it has none."""

    policy: Policy
    predicted_tokens_per_s: float | None
    unpredicted: str = ""


def choose_policy(
    options: RunOptions, earlier: Mapping[str, Any] | None, spec: ModelSpec, requests: Sequence[Request]
) -> ChosenPolicy:
    """The policy of --policy, of the run that is continued (`earlier`, its fields), or the best that a search finds.

    Searched and predicted for the prompts at hand, and their mean of tokens to generate.

    Raises:
        HrmError: an unreadable policy or profile, nothing to search with, or nothing that fits.
    """
    from runtime.cli.run_search import search_for

    rates = _rates(options, spec, requests)
    policy = _stated(options, earlier)
    if policy is None:
        if rates is None:
            raise HrmError(_no_policy(requests))
        policy = search_for(rates, options.schedule, _asked(requests))
    if rates is None:
        return ChosenPolicy(policy, None, "needs --profile" if requests else "nothing to run")
    try:
        return ChosenPolicy(policy, _predict(rates, policy, requests))
    except HrmError as error:  # by the profile it cannot run; whether it does is the engine's to say
        return ChosenPolicy(policy, None, str(error))


def _no_policy(requests: Sequence[Request]) -> str:
    if not requests:
        return "there is nothing to search a policy for: every request is refused; give --policy to write down why"
    return "there is no policy: give --policy FILE, or --profile for a search of the best one"


def _stated(options: RunOptions, earlier: Mapping[str, Any] | None) -> Policy | None:
    from hrm.spec.policy import Policy
    from hrm.spec.policy_file import load_policy

    if options.policy is not None:
        return load_policy(options.policy)
    return None if earlier is None else Policy.model_validate(dict(earlier))


def _rates(options: RunOptions, spec: ModelSpec, requests: Sequence[Request]) -> Rates | None:
    """The cost model; None without a profile, or with nothing to run."""
    from hrm.search.search import make_rates
    from hrm.spec.hardware import load_profile
    from hrm.spec.workload import workload_from_lengths
    from runtime.profile_limits import capped

    if options.profile is None or not requests:
        return None
    profile = capped(load_profile(options.profile), options.gpu_memory)
    lengths = [len(request.prompt) for request in requests]
    mean = round(sum(request.sampling.max_tokens for request in requests) / len(requests))
    workload = workload_from_lengths(lengths, max(1, mean), False, "input", "requests")
    return make_rates(profile, spec, workload)


def _predict(rates: Rates, policy: Policy, requests: Sequence[Request]) -> float:
    """Generated tokens per second of the simulated run of these requests, each to its full length."""
    from hrm.cli.progress import progress_bar
    from hrm.predict.generation import simulate_generation
    from hrm.predict.simulate import Simulator

    simulator = Simulator(rates.for_chunk(policy.prefill_chunk_tokens))
    with progress_bar("requests simulated") as update:
        return simulate_generation(simulator, policy, _asked(requests), None, update).generation_throughput


def _asked(requests: Sequence[Request]) -> list[Asked]:
    """Their lengths, for the simulator."""
    from hrm.predict.requests import Request as Asked

    return [Asked(len(request.prompt), request.sampling.max_tokens) for request in requests]
