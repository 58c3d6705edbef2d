"""Simulated throughput of a policy: one batch's generation, or the steady state where prefill is mixed in."""

from collections.abc import Callable
from dataclasses import dataclass

from hrm.predict.closed_form import predict
from hrm.predict.simulate import Simulator
from hrm.schedule.build import CacheStats
from hrm.schedule.slice import decode_slice, mixed_slice, prefill_slice
from hrm.spec.policy import Policy

TOLERANCE = 1e-3  # relative error of a pass's seconds below which contexts between two are interpolated


@dataclass(frozen=True)
class SimulatedThroughput:
    """Seconds of one batch's generation: its prefill pass and its decode passes, or `gen_len` mixed passes.

    `closed_form` is the throughput that the roofs promise for the same policy, in tokens/s.
    """

    batch_size: int
    gen_len: int
    prefill_seconds: float
    decode_seconds: float
    closed_form: float

    @property
    def total_seconds(self) -> float:
        """Of one batch."""
        return self.prefill_seconds + self.decode_seconds

    @property
    def generation_throughput(self) -> float:
        """Generated tokens per second of prefill and decode."""
        return self.batch_size * self.gen_len / self.total_seconds

    @property
    def share_of_roof(self) -> float:
        """Simulated over promised throughput."""
        return self.generation_throughput / self.closed_form


def simulate_throughput(simulator: Simulator, policy: Policy, cache: CacheStats | None = None) -> SimulatedThroughput:
    """Simulates the passes of one batch, the context growing from pass to pass.

    All requests are of the workload's mean length; `simulate_generation` takes single ones. Decode passes are simulated
    at enough contexts that the others lie on straight lines between them, within 0.1 %.

    Raises:
        PolicyError: the policy does not fit the machine.
    """
    workload = simulator.rates.workload
    promised = predict(simulator.rates, policy).generation_throughput
    prefill, decode = generation_seconds(simulator, policy, cache)
    return SimulatedThroughput(policy.batch_size, workload.gen_len, prefill, decode, promised)


def generation_seconds(simulator: Simulator, policy: Policy, cache: CacheStats | None = None) -> tuple[float, float]:
    """Seconds of the prefill pass and of all other passes of one batch; whether the policy fits is not asked."""
    workload = simulator.rates.workload
    steps = workload.gen_len
    if policy.mixed_prefill:
        return 0.0, steps * simulator.pass_seconds(policy, mixed_slice(policy, workload), cache)
    prefill = simulator.pass_seconds(policy, prefill_slice(policy, workload))

    def decode(step: int) -> float:
        return simulator.pass_seconds(policy, decode_slice(policy, workload.prompt_len + step), cache)

    return prefill, _sum_over_steps(decode, 1, steps - 1) if steps > 1 else 0.0


def _sum_over_steps(seconds: Callable[[int], float], first: int, last: int) -> float:
    """Sum of seconds(first) .. seconds(last), by halving intervals until their middle lies on the straight line."""
    begin, end = seconds(first), seconds(last) if last > first else 0.0
    return begin + end + _sum_between(seconds, first, begin, last, end)


def _sum_between(seconds: Callable[[int], float], a: int, at_a: float, b: int, at_b: float) -> float:
    """Sum over the steps strictly between a and b."""
    if b - a < 2:
        return 0.0
    middle = (a + b) // 2
    value = seconds(middle)
    line = at_a + (at_b - at_a) * (middle - a) / (b - a)
    if abs(value - line) <= TOLERANCE * value:
        return value + _line_sum(a, at_a, middle, value) + _line_sum(middle, value, b, at_b)
    return value + _sum_between(seconds, a, at_a, middle, value) + _sum_between(seconds, middle, value, b, at_b)


def _line_sum(a: int, at_a: float, b: int, at_b: float) -> float:
    """Sum over the steps strictly between a and b of the line through both ends."""
    return max(0, b - a - 1) * (at_a + at_b) / 2
