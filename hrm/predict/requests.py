"""Requests of a run: when they arrive, how long their prompts are, how much they generate."""

from dataclasses import dataclass

from hrm.errors import WorkloadError
from hrm.schedule.slice import balanced_sizes
from hrm.spec.workload import Workload


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt: tokens it occupies, tokens generated for it, and seconds after the start at which it arrives."""

    prompt_len: int
    gen_len: int
    arrival_seconds: float = 0.0


def workload_requests(workload: Workload, count: int) -> tuple[Request, ...]:
    """`count` requests of a workload, all there from the start.

    Where single lengths are known they are repeated in turn; else all prompts are as long as the average, rounded so
    that the mean is kept. Padded prompts are as long as the longest.

    Raises:
        WorkloadError: fewer than one request.
    """
    if count < 1:
        raise WorkloadError(f"requests: {count} is not a number of requests; give at least 1")
    if workload.padded:
        lengths = (workload.prompt_len_max,) * count
    elif workload.prompt_lens:
        lengths = tuple(workload.prompt_lens[i % len(workload.prompt_lens)] for i in range(count))
    else:
        lengths = balanced_sizes(round(count * workload.prompt_len_avg), count)
    return tuple(Request(length, workload.gen_len) for length in lengths)
