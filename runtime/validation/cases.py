"""Which policies a validation runs: the best of every schedule, and smaller batches of each."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from hrm.errors import HrmError, PolicyError
from hrm.predict.closed_form import predict
from hrm.predict.rates import Rates
from hrm.schedule.registry import AUTO, placement_of, schedule_names
from hrm.search.refine import best_by_simulation
from hrm.search.sensitivity import scaled_rates
from hrm.spec.policy import Policy
from hrm.spec.policy_file import load_policy
from runtime.validation.options import ValidateOptions
from runtime.validation.report import NotRun

RatesAt = Mapping[int, Rates]  # by context, the longest first
SEARCHED_SHARE = 0.98  # of both memories: the best policy fills one, and other contexts need a little more of the other


@dataclass(frozen=True)
class Case:
    """A policy to run with sequences of `context_len` tokens."""

    label: str
    policy: Policy
    context_len: int


@dataclass(frozen=True)
class Plan:
    """What is run, and what is left out with the reason."""

    cases: tuple[Case, ...]
    skipped: tuple[NotRun, ...]


def make_plan(options: ValidateOptions, rates: RatesAt, update: Callable[[int, int], None]) -> Plan:
    """Policies of the files that are named, else the best by simulation of each schedule with smaller ones.

    One search per schedule, at the longest context; its policies are run at the others too.

    Raises:
        HrmError: a policy file that cannot be read.
    """
    skipped: list[NotRun] = []
    if options.policies:
        named = [(path.stem, load_policy(path)) for path in options.policies]
    else:
        named = list(_searched(options, with_memory(next(iter(rates.values())), SEARCHED_SHARE), skipped, update))
    cases = list(_distinct(named, options.context_lens))
    kept = [case for case in cases if _fits(case, rates[case.context_len], skipped)]
    return Plan(tuple(kept), tuple(skipped))


def with_memory(rates: Rates, factor: float) -> Rates:
    """The same on a machine with `factor` times the memory."""
    return scaled_rates(scaled_rates(rates, "gpu_memory", factor), "cpu_memory", factor)


def _searched(
    options: ValidateOptions, rates: Rates, skipped: list[NotRun], update: Callable[[int, int], None]
) -> Iterator[tuple[str, Policy]]:
    names = options.schedules or schedule_names()
    asked = [(name, mixed) for name in names for mixed in ((False, True) if name == AUTO else (False,))]
    for done, (name, mixed) in enumerate(asked, 1):
        label = f"{name} mixed" if mixed else name
        try:
            best = best_by_simulation(rates, name, mixed_prefill=mixed).policy
        except HrmError as error:
            skipped.append(NotRun(label=label, context_len=None, reason=str(error)))
            continue
        finally:
            update(done, len(asked))
        yield from ((label, policy) for policy in _sizes_of(best, options))


def _sizes_of(best: Policy, options: ValidateOptions) -> Iterator[Policy]:
    """The policy with the batches that are asked for; its own, a half and a quarter where none is."""
    if options.batches:
        yield from (cut_batch(best, size) for size in options.batches)
        return
    yield best
    yield halved(best)
    if not options.quick:
        yield quartered(best)


def halved(policy: Policy) -> Policy:
    """Half the batch, in micro-batches of half the size."""
    return policy.resized(policy.num_micro_batches, max(1, policy.micro_batch_size // 2))


def quartered(policy: Policy) -> Policy:
    """A quarter of the batch: half as many micro-batches of half the size, where the schedule runs so few."""
    n, mu = policy.num_micro_batches, policy.micro_batch_size
    if n // 2 < placement_of(policy).min_micro_batches:
        return policy.resized(n, max(1, mu // 4))
    return policy.resized(n // 2, max(1, mu // 2))


def cut_batch(policy: Policy, batch_size: int) -> Policy:
    """At most so many sequences, in as many micro-batches as before where there are enough sequences."""
    size = min(batch_size, policy.batch_size)
    n = min(policy.num_micro_batches, size)
    return policy.resized(n, size // n)


def _distinct(named: Iterable[tuple[str, Policy]], contexts: tuple[int, ...]) -> Iterator[Case]:
    """Every policy once, at all contexts, one after the other: they share the weights in memory."""
    seen: set[str] = set()
    for name, policy in named:
        key = policy.model_dump_json()
        if key in seen:
            continue
        seen.add(key)
        label = f"{name}, {policy.num_micro_batches} x {policy.micro_batch_size}"
        yield from (Case(label, policy, context) for context in contexts)


def _fits(case: Case, rates: Rates, skipped: list[NotRun]) -> bool:
    try:
        predict(rates, case.policy)
    except PolicyError as error:
        skipped.append(NotRun(label=case.label, context_len=case.context_len, reason=str(error), policy=case.policy))
        return False
    return True
