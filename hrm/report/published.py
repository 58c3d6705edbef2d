"""The published results predicted: every system, machine and generation length, with the errors."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations

from hrm.predict.simulate import Simulator
from hrm.predict.throughput import generation_seconds
from hrm.report.published_machine import published_machine
from hrm.report.published_policy import published_policy, published_workload
from hrm.report.published_rows import PublishedRow, published_data, published_rows
from hrm.search.search import make_rates
from hrm.spec.hardware import load_profile
from hrm.spec.model_config import load_model
from hrm.spec.policy import Policy

CLEARLY = 1.15  # published values closer than this are not ordered


@dataclass(frozen=True)
class PublishedPrediction:
    """One row with the policy it was given and its simulated throughput, tokens/s."""

    row: PublishedRow
    policy: Policy
    prefill_seconds: float
    decode_seconds: float

    @property
    def predicted(self) -> float:
        """Generated tokens per second of prefill and decode."""
        return self.policy.batch_size * self.row.gen_len / (self.prefill_seconds + self.decode_seconds)

    @property
    def error(self) -> float:
        """Predicted over published, less one."""
        return self.predicted / self.row.throughput - 1


def predict_published(
    progress: Callable[[int, int], None] | None = None, fused_kernel: Mapping[str, float] | None = None
) -> tuple[PublishedPrediction, ...]:
    """Simulates every published row with its published policy.

    `fused_kernel` sets the rate of the systems' expert kernel, flop/s by machine, for what-ifs; predictions give none.
    """
    rows, done = published_rows(), []
    for row in rows:
        done.append(_predict(row, (fused_kernel or {}).get(row.setting)))
        if progress is not None:
            progress(len(done), len(rows))
    return tuple(done)


def diagnosis() -> tuple[PublishedPrediction, ...]:
    """The predictions, were the fused kernel on the T4 as fast as its fp32 peak, without tensor cores.

    Not a prediction: this rate was never published, and is looked at because the T4 rows are off. One number, from the
    datasheet, explains them all; Triton 2.2, which the systems used, has tests that expect tensor cores there.
    """
    return predict_published(fused_kernel={"S1": load_profile("t4").peak_flops_per_s("gpu", "fp32")})


def _predict(row: PublishedRow, fused_kernel_flops_per_s: float | None) -> PublishedPrediction:
    policy = published_policy(row)
    profile = published_machine(row.setting, row.system, fused_kernel_flops_per_s)
    model = load_model(published_data()["model"])
    rates = make_rates(profile, model, published_workload(row)).for_chunk(policy.prefill_chunk_tokens)
    return PublishedPrediction(row, policy, *generation_seconds(Simulator(rates), policy))


@dataclass(frozen=True)
class PublishedErrors:
    """How far predictions are off. Ratios; pairs are two systems on one machine, workload and generation length."""

    rows: int
    median_absolute_error: float
    mean_absolute_error: float
    median_error: float
    within_25_percent: int
    ordered_pairs: int
    pairs: int


def published_errors(predictions: tuple[PublishedPrediction, ...]) -> PublishedErrors:
    """Error statistics, and how often the order of two clearly different systems is right."""
    errors = [p.error for p in predictions]
    absolute = [abs(e) for e in errors]
    clear = [
        (a, b)
        for a, b in combinations(predictions, 2)
        if a.row.case == b.row.case
        and max(a.row.throughput, b.row.throughput) > CLEARLY * min(a.row.throughput, b.row.throughput)
    ]
    right = sum((a.predicted > b.predicted) == (a.row.throughput > b.row.throughput) for a, b in clear)
    return PublishedErrors(
        len(errors),
        statistics.median(absolute),
        statistics.mean(absolute),
        statistics.median(errors),
        sum(e <= 0.25 for e in absolute),
        right,
        len(clear),
    )
