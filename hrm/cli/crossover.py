"""`hrm crossover`: the batch size from which streaming every expert beats an expert cache."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.cli import options as opt
from hrm.cli.routing_option import ForecastTimeOption, PredictionsOption

if TYPE_CHECKING:
    from hrm.predict.rates import Rates
    from hrm.predict.routing_source import Routing
    from hrm.search.crossover import Crossover


def crossover(
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
    routing: Annotated[
        str, typer.Option(help="How tokens choose experts: uniform, zipf:EXPONENT, or a routing trace (.npz).")
    ] = "uniform",
    predictions: PredictionsOption = None,
    forecast_time: ForecastTimeOption = None,
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "1,2,4,8,16,32,64,128,256",
    gpu_experts: Annotated[
        bool, typer.Option("--gpu-experts", help="Leave out policies that compute experts on the CPU.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a figure: .png, .svg or .pdf.")] = None,
    json: opt.JsonOption = False,
) -> None:
    """Simulate the best streaming policy and the best expert cache of every kind, limited to each batch size.

    Copying only what the tokens choose pays while they choose few experts; a large batch touches nearly all, and
    streaming hides the copies. --schedule says what may stream. Without predictions of a trace, the predictive cache is
    left out; under uniform and Zipf routing it is taken to predict rightly, which is an upper bound.
    """
    from hrm.cli.crossover_tables import print_crossover
    from hrm.cli.output import check_figure, print_json
    from hrm.cli.routing import parse_batches
    from hrm.cli.routing_option import read_routing
    from hrm.report.crossover_report import crossover_report

    check_figure(plot)
    sizes = parse_batches(batches)
    rates = opt.read_rates(
        profile, model, opt.read_workload(workload, prompt_len, prompt_len_max, gen_len, padded), dtype, kv_dtype
    )
    read = read_routing(routing, predictions, rates.model, forecast_time)
    result = _run(rates, read, sizes, schedule, gpu_experts)
    if plot is not None:
        from hrm.plotting.cache_crossover import crossover_figure
        from hrm.plotting.figures import save_figure

        save_figure(crossover_figure(result), plot)
        print(f"Wrote {plot}", file=sys.stderr)
    if json:
        print_json(crossover_report(result))
    else:
        print_crossover(result)


def _run(rates: Rates, routing: Routing, batches: tuple[int, ...], schedule: str, gpu_experts: bool) -> Crossover:
    from hrm.cli.progress import progress_bar
    from hrm.search.crossover import crossover as compare

    with progress_bar("batch sizes compared") as update:
        return compare(rates, routing, batches, schedule, not gpu_experts, update)
