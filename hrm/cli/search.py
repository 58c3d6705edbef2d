"""`hrm search`: the provably best policy, what binds it, and what to upgrade."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.cli import options as opt
from hrm.cli.routing_option import ForecastTimeOption, PredictionsOption
from hrm.errors import WorkloadError

if TYPE_CHECKING:
    from hrm.predict.rates import Rates
    from hrm.predict.routing_source import Routing
    from hrm.search.crossover import Crossover
    from hrm.search.refine import Refined
    from hrm.search.search import SearchResult, Verification


def search(
    profile: opt.ProfileOption,
    model: opt.ModelOption = opt.DEFAULT_MODEL,
    workload: opt.WorkloadOption = None,
    prompt_len: opt.PromptLenOption = None,
    prompt_len_max: opt.PromptLenMaxOption = None,
    gen_len: opt.GenLenOption = None,
    padded: opt.PaddedOption = False,
    dtype: opt.DtypeOption = None,
    kv_dtype: opt.KvDtypeOption = None,
    schedule: opt.ScheduleOption = "auto",
    top: Annotated[int, typer.Option(min=1, max=50, help="Best policies of this many placements.")] = 3,
    output: Annotated[Path | None, typer.Option(help="Write the best policy as YAML.")] = None,
    refine: Annotated[
        int, typer.Option(min=0, max=50, help="Simulate this many of the best policies and rank them again; 0: none.")
    ] = 0,
    routing: Annotated[
        str | None,
        typer.Option(help="Also compare expert caches with streaming: uniform, zipf:EXPONENT, or a trace (.npz)."),
    ] = None,
    predictions: PredictionsOption = None,
    forecast_time: ForecastTimeOption = None,
    verify: Annotated[bool, typer.Option("--verify", help="Also enumerate every cell, and compare (slow).")] = False,
    json: opt.JsonOption = False,
) -> None:
    """Find the policy with the highest predicted generation throughput that fits in memory, proven optimal.

    The optimum is that of the roofs; --refine simulates the best of them, and saves the one that simulates fastest.
    --routing simulates expert caches of every kind and size beside the best policy that streams, and saves the fastest.

    Without --model and --workload: mixtral-8x7b, and MT-Bench (prompts of 77 tokens on average, 418 at most, 128
    generated).
    """
    from hrm.cli.output import print_json
    from hrm.cli.search_tables import print_search
    from hrm.report.search_report import search_report
    from hrm.search.search import search_policy
    from hrm.search.sensitivity import sensitivity
    from hrm.spec.policy_file import save_policy

    rates = opt.read_rates(
        profile, model, opt.read_workload(workload, prompt_len, prompt_len_max, gen_len, padded), dtype, kv_dtype
    )
    read = _read_routing(routing, predictions, forecast_time, rates)
    result = search_policy(rates, schedule, max(top, refine))
    refined = _refine(result, refine) if refine else ()
    choice = _compare(result, read) if read is not None else None
    if output is not None:
        best = refined[0].policy if refined else result.policy
        save_policy((choice.points[-1].winner if choice else None) or best, output)
        print(f"Wrote {output}", file=sys.stderr)
    verification = _verify(result) if verify else None
    rows = sensitivity(result)
    if json:
        print_json(search_report(result, rows, verification, refined, choice))
    else:
        print_search(result, rows, verification, refined, choice)
    if verification is not None and not verification.agrees:
        raise typer.Exit(code=1)


def _read_routing(
    option: str | None, predictions: Path | None, forecast_time: str | None, rates: Rates
) -> Routing | None:
    from hrm.cli.routing_option import read_routing

    if option is None and predictions is not None:
        raise WorkloadError("--predictions are of a routing trace; give that to --routing")
    if option is None and forecast_time is not None:
        raise WorkloadError("--forecast-time is of a predictive cache; give --routing, which compares caches")
    return None if option is None else read_routing(option, predictions, rates.model, forecast_time)


def _compare(result: SearchResult, routing: Routing) -> Crossover:
    from hrm.cli.progress import progress_bar
    from hrm.search.choose_cache import cache_or_streaming

    with progress_bar("batch sizes of caches simulated") as update:
        return cache_or_streaming(result.rates, routing, result.schedule, update)


def _refine(result: SearchResult, count: int) -> tuple[Refined, ...]:
    from dataclasses import replace

    from hrm.cli.progress import progress_bar
    from hrm.search.refine import refine

    with progress_bar("policies simulated") as update:
        return refine(replace(result, candidates=result.candidates[:count]), update)


def _verify(result: SearchResult) -> Verification:
    from hrm.cli.progress import progress_bar
    from hrm.search.search import verify

    with progress_bar("enumerating every policy cell") as update:
        return verify(result, update)
