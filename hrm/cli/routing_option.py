"""`--routing` and `--predictions`: how tokens choose experts, as cache statistics of a policy's decode pass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.errors import WorkloadError

if TYPE_CHECKING:
    from hrm.predict.rates import Rates
    from hrm.predict.routing_source import Routing
    from hrm.schedule.build import CacheStats
    from hrm.spec.model import ModelSpec
    from hrm.spec.policy import Policy

FORMS = "uniform, zipf:EXPONENT (zipf:1.1), or a routing trace (.npz)"

PredictionsOption = Annotated[
    Path | None, typer.Option(help="Predictions of the trace in --routing (hrm predictor evaluate).")
]
ForecastTimeOption = Annotated[
    str | None,
    typer.Option(help='What predicting takes before a pass, as "5 ms" (see hrm predictor evaluate). Default: 0.'),
]


def read_routing(option: str, predictions: Path | None, model: ModelSpec, forecast_time: str | None = None) -> Routing:
    """What the options state.

    Raises:
        WorkloadError: an unknown form, a bad exponent, trace or predictions, or predictions without a trace.
        UnitError: a time that is none.
    """
    from dataclasses import replace

    from hrm.spec.units import parse_quantity

    seconds = 0.0 if forecast_time is None else parse_quantity(forecast_time, "seconds", "--forecast-time")
    return replace(_read(option, predictions, model), forecast_seconds=seconds)


def _read(option: str, predictions: Path | None, model: ModelSpec) -> Routing:
    from hrm.predict.routing_predictions import load_predictions
    from hrm.predict.routing_source import Routing
    from hrm.predict.routing_trace_file import load_routing_trace

    if option.endswith(".npz"):
        trace = load_routing_trace(Path(option), model)
        return Routing(trace=trace, predictions=None if predictions is None else load_predictions(predictions, trace))
    if predictions is not None:
        raise WorkloadError(f"--predictions are of a routing trace; give that to --routing, not {option[:80]!r}")
    if option == "uniform":
        return Routing()
    if option.startswith("zipf:"):
        return Routing(exponent=_exponent(option))
    raise WorkloadError(f"--routing: unknown form {option[:80]!r}; give {FORMS}")


def read_cache_stats(
    option: str | None,
    rates: Rates,
    policy: Policy,
    predictions: Path | None = None,
    forecast_time: str | None = None,
) -> CacheStats | None:
    """The statistics that the options ask for, of `batch_size` tokens and the policy's cache; None without --routing.

    Raises:
        WorkloadError: as `read_routing` and `routed_cache_stats`; a schedule without demand-fetched experts;
            predictions that the policy's cache does not use.
        PolicyError: an expert cache too small for a token's experts.
    """
    from hrm.predict.routing_source import routed_cache_stats
    from hrm.schedule.registry import placement_of

    if predictions is not None and (option is None or policy.expert_cache != "predictive"):
        raise WorkloadError("--predictions: need --routing with their trace, and a policy with expert_cache predictive")
    if forecast_time is not None and (option is None or policy.expert_cache != "predictive"):
        raise WorkloadError("--forecast-time: needs --routing, and a policy with expert_cache predictive")
    if option is None:
        return None
    if placement_of(policy).overlap != "on_demand":
        raise WorkloadError(
            f"--routing: schedule {policy.schedule} fetches experts before routing; leave it out, or use expert_cache"
        )
    return routed_cache_stats(read_routing(option, predictions, rates.model, forecast_time), rates.sizes, policy)


def _exponent(option: str) -> float:
    try:
        return float(option.removeprefix("zipf:"))
    except ValueError:
        raise WorkloadError(f"--routing: {option[:80]!r} has no number as its exponent; give {FORMS}") from None
