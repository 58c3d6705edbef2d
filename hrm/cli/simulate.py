"""`hrm simulate`: a policy's passes task by task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.cli import options as opt
from hrm.cli.routing_option import ForecastTimeOption, PredictionsOption

if TYPE_CHECKING:
    from hrm.predict.rates import Rates
    from hrm.report.simulation_report import SimulationResult
    from hrm.schedule.build import CacheStats
    from hrm.spec.policy import Policy


def simulate(
    profile: opt.ProfileOption,
    policy: Annotated[Path | None, typer.Option(help="Policy as YAML; default: search and refine.")] = None,
    model: opt.ModelOption = opt.DEFAULT_MODEL,
    workload: opt.WorkloadOption = None,
    prompt_len: opt.PromptLenOption = None,
    prompt_len_max: opt.PromptLenMaxOption = None,
    gen_len: opt.GenLenOption = None,
    padded: opt.PaddedOption = False,
    dtype: opt.DtypeOption = None,
    kv_dtype: opt.KvDtypeOption = None,
    schedule: opt.ScheduleOption = "auto",
    prefill: Annotated[bool, typer.Option("--prefill", help="Show the prefill pass instead of a decode pass.")] = False,
    requests: Annotated[int | None, typer.Option(min=1, help="Also simulate a run of this many requests.")] = None,
    routing: Annotated[
        str | None, typer.Option(help="expert_cache only: uniform, zipf:EXPONENT, or a routing trace (.npz).")
    ] = None,
    predictions: PredictionsOption = None,
    forecast_time: ForecastTimeOption = None,
    trace: Annotated[Path | None, typer.Option(help="Write a Chrome trace (JSON) that Perfetto opens.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a Gantt chart: .png, .svg or .pdf.")] = None,
    graph: Annotated[Path | None, typer.Option(help="Write the task graph as text.")] = None,
    json: opt.JsonOption = False,
) -> None:
    """Simulate a pass of a policy task by task: makespan, utilisation, critical path, and what the roofs promised."""
    from hrm.cli.output import check_figure, check_writable, print_json
    from hrm.cli.routing_option import read_cache_stats
    from hrm.cli.simulate_tables import print_simulation
    from hrm.report.simulation_report import simulation_report
    from hrm.spec.policy_file import load_policy

    check_writable(trace, graph)
    check_figure(plot)
    read = opt.read_workload(workload, prompt_len, prompt_len_max, gen_len, padded)
    rates = opt.read_rates(profile, model, read, dtype, kv_dtype)
    chosen = load_policy(policy) if policy else _best(rates, schedule, prefill)
    cache = read_cache_stats(routing, rates, chosen, predictions, forecast_time)
    result = _simulate(rates, chosen, prefill, requests, cache)
    _write(result, trace, plot, graph)
    if json:
        print_json(simulation_report(result))
    else:
        print_simulation(rates, result)


def _best(rates: Rates, schedule: str, prefill: bool) -> Policy:
    """By simulation; one that prefills on its own where that pass is to be shown."""
    from hrm.search.refine import best_by_simulation

    return best_by_simulation(rates, schedule, mixed_prefill=False if prefill else None).policy


def _simulate(
    rates: Rates, policy: Policy, prefill: bool, requests: int | None, cache: CacheStats | None
) -> SimulationResult:
    from hrm.cli.progress import progress_bar
    from hrm.predict.generation import simulate_generation
    from hrm.predict.requests import workload_requests
    from hrm.predict.simulate import Simulator
    from hrm.report.simulate_policy import simulate_policy

    rates = rates.for_chunk(policy.prefill_chunk_tokens)
    simulator, run = Simulator(rates), None
    if requests is not None:
        with progress_bar("requests finished") as update:
            run = simulate_generation(simulator, policy, workload_requests(rates.workload, requests), cache, update)
    return simulate_policy(simulator, policy, prefill, cache, run)


def _write(result: SimulationResult, trace: Path | None, plot: Path | None, graph: Path | None) -> None:
    import sys

    timeline, written = result.simulation.timeline, [path for path in (trace, plot, graph) if path is not None]
    if trace is not None:
        from hrm.report.chrome_trace import write_chrome_trace

        write_chrome_trace(timeline, trace, f"{result.policy.schedule}, {result.pass_name} pass (simulated)")
    if plot is not None:
        from hrm.plotting.figures import save_figure
        from hrm.plotting.timeline_figures import gantt_figure

        save_figure(gantt_figure(timeline), plot)
    if graph is not None:
        from hrm.schedule.graph_file import write_graph

        write_graph(timeline.graph, graph)
    for path in written:
        print(f"Wrote {path}", file=sys.stderr)
