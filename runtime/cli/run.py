"""`hrm run`: requests in, tokens out, under a policy; continued after a kill."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.cli import options as opt
from runtime.cli import expert_options as experts

if TYPE_CHECKING:
    from hrm.spec.policy import Policy
    from runtime.cli.run_loop import Engine
    from runtime.cli.run_options import RunOptions
    from runtime.cli.run_report import RunSummary
    from runtime.cli.run_source import RunSource
    from runtime.experts.recorder import RoutingRecorder


def run(
    model: Annotated[Path | None, typer.Option("--model", "-m", help="Checkpoint directory, as on the hub.")] = None,
    synthetic: Annotated[
        str | None, typer.Option(help="Random weights instead: a shipped model's name, or a config.json.")
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Only the first layers of --synthetic.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy as YAML; default: search with --profile.")] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="Machine to search and predict with: YAML, or shipped name.")
    ] = None,
    schedule: opt.ScheduleOption = "auto",
    input: Annotated[
        Path | None,
        typer.Option(help="Requests, JSON lines: OpenAI batch file, or prompt / prompt_tokens with options."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Results, a line each; FILE.meta beside it.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="--synthetic: JSON lines of texts, whose lengths are bytes / 4 tokens.")
    ] = None,
    num_requests: Annotated[
        int | None, typer.Option(min=1, help="--synthetic: requests, lengths in turn. Default: one per length.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that wrote --output.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results in --output.")] = False,
    gen_len: Annotated[int, typer.Option(min=1, help="max_tokens of requests that state none.")] = 128,
    temperature: Annotated[float, typer.Option(help="Of requests that state none; 0: greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Of requests that state none.")] = 1.0,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Requests without a seed draw theirs from this and their id.")
    ] = 0,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on to max_tokens.")] = False,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; default: cuda where there is one.")] = None,
    gpu_memory: Annotated[str | None, typer.Option(help="Use no more GPU memory than this, such as 16GiB.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; default: the checkpoint's.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Write the last pass as a Chrome trace (JSON).")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the last pass as a Gantt chart: .png, .svg, .pdf.")] = None,
    trace_routing: experts.TraceRoutingOption = None,
    predictor: experts.PredictorOption = None,
    token_scheduler: experts.TokenSchedulerOption = False,
    json: opt.JsonOption = False,
) -> None:
    """Run a model under a policy: every finished request is a line of --output at once, and --resume continues.

    Without --input, --synthetic runs random token ids with the lengths of the MT-Bench questions. A chat needs the
    checkpoint's chat template; without one only a single user message is taken, as it stands.
    """
    from hrm.spec.units import parse_quantity
    from runtime.cli.run_options import RunOptions

    limit = None if gpu_memory is None else parse_quantity(gpu_memory, "bytes", "--gpu-memory")
    options = RunOptions(
        model, synthetic, layers, policy, profile, schedule, input, output, prompts, num_requests, resume, overwrite,
        gen_len, temperature, top_p, seed, ignore_eos, device, limit, dtype, trace, plot, trace_routing,
        predictor, token_scheduler,
    )  # fmt: skip
    _run(options, json)


def _run(options: RunOptions, json: bool) -> None:
    """Everything that can be wrong is looked for before anything that takes long."""
    from hrm.cli.output import check_figure, check_writable, print_json
    from runtime.cli.requirements import require_runtime
    from runtime.cli.run_job import run_job
    from runtime.cli.run_report import print_run, run_report
    from runtime.cli.run_routing import recorded_routing
    from runtime.cli.run_source import read_entries

    options.check()
    check_writable(options.output, options.trace, options.trace_routing)
    check_figure(options.plot)
    entries = read_entries(options)
    require_runtime()
    with recorded_routing(options.trace_routing) as recorder:
        plain = recorder is None and options.predictor is None
        make = _engine if plain else partial(_engine, recorder=recorder, options=options)
        summary = run_job(options, entries, lambda source, policy, on: make(source, policy, on, options.gpu_memory))
    _write_timeline(summary, options.trace, options.plot)
    if json:
        print_json(run_report(summary))
    else:
        print_run(summary)


def _engine(
    source: RunSource,
    policy: Policy,
    device: str,
    gpu_memory: float | None,
    recorder: RoutingRecorder | None = None,
    options: RunOptions | None = None,
) -> Engine:
    """The one place where a model meets its policy."""
    from hrm.cli.progress import progress_bar
    from runtime.cli.run_experts import expert_options
    from runtime.engine import Engine

    if recorder is not None:
        recorder.numbers = {entry.request_id: place for place, entry in enumerate(source.entries)}
    told = expert_options(options, source.weights.spec, policy, device) if options is not None else {}
    with progress_bar("layers loaded") as update:
        return Engine(
            source.weights,
            policy,
            device,
            gpu_memory,
            detokenise=source.detokenise,
            tokenise=source.tokenise,
            progress=update,
            recorder=recorder,
            **told,
        )


def _write_timeline(summary: RunSummary, trace: Path | None, plot: Path | None) -> None:
    wanted = [path for path in (trace, plot) if path is not None]
    timeline = summary.timeline
    if timeline is None:
        for path in wanted:
            print(f"{path} is not written: no pass was run", file=sys.stderr)
        return
    if trace is not None:
        from hrm.report.chrome_trace import write_chrome_trace

        write_chrome_trace(timeline, trace, f"{summary.policy.schedule}, last pass of {summary.model_name} (measured)")
    if plot is not None:
        from hrm.plotting.figures import save_figure
        from hrm.plotting.timeline_figures import gantt_figure

        save_figure(gantt_figure(timeline), plot)
    for path in wanted:
        print(f"Wrote {path}", file=sys.stderr)
