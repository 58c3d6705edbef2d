"""From timings by rows to what a profile states: a streaming rate, and compute rates that never fall with size."""

from dataclasses import dataclass, replace

from runtime.calibration.results import LinkResult, Spread, Timing

LARGE_COPY = 64 * 2**20  # pages of weights are as large, and they are nearly all of what crosses
_MEMORY_BOUND = 1.15  # a call that takes up to this much longer than its bytes at the best rate is limited by them


@dataclass(frozen=True)
class ComputeStep:
    """From `from_rows` rows on, `rate` in flop/s; `timing` is what the rate was measured in."""

    from_rows: int
    rate: float
    timing: Timing

    @property
    def is_lowered(self) -> bool:
        """Whether larger sizes ran at this lower rate, so that the measured one was not taken."""
        return self.rate < self.timing.flops_per_s.median


def streaming(timings: tuple[Timing, ...]) -> tuple[Timing, Spread]:
    """The timing with the highest bytes/s, by median, and that rate."""
    best = max(timings, key=lambda t: t.bytes_per_s.median)
    return best, best.bytes_per_s


def compute_steps(timings: tuple[Timing, ...]) -> tuple[ComputeStep, ...]:
    """Compute rate by rows, from the sizes that memory does not limit (the largest one where it limits all).

    The first step holds from one row on: below, the streaming rate limits.
    """
    best, rate = streaming(timings)
    beyond = tuple(t for t in timings if t.size > best.size and not _limited_by_memory(t, rate.median))
    return never_falling(beyond or timings[-1:])


def never_falling(timings: tuple[Timing, ...]) -> tuple[ComputeStep, ...]:
    """Compute rate by size, the first step from size 1 on.

    A step's rate is the lowest of its own and all larger sizes, since profiles whose efficiency falls with size are
    refused; a step that would then repeat the rate before it is left out.
    """
    steps: list[ComputeStep] = []
    for timing in reversed(timings):
        rate = timing.flops_per_s.median
        if steps and steps[-1].rate <= rate:
            rate = steps.pop().rate
        steps.append(ComputeStep(timing.size, rate, timing))
    steps.reverse()
    return (replace(steps[0], from_rows=1), *steps[1:])


def _limited_by_memory(timing: Timing, bytes_per_s: float) -> bool:
    return timing.median_seconds <= _MEMORY_BOUND * timing.bytes / bytes_per_s


def fastest_copy(link: LinkResult) -> float:
    """Bytes/s at the size that copies fastest, by median."""
    return streaming(link.timings)[1].median


def sustained_copy(link: LinkResult) -> tuple[Timing, Spread]:
    """The slowest of the copies from 64 MiB up (of all, where none is as large), and its bytes/s."""
    large = tuple(t for t in link.timings if t.size >= LARGE_COPY) or link.timings[-1:]
    slowest = min(large, key=lambda t: t.bytes_per_s.median)
    return slowest, slowest.bytes_per_s
