"""The tables of `hrm simulate`."""

from hrm.cli.output import print_table, print_text
from hrm.predict.generation import GenerationRun
from hrm.predict.rates import Rates
from hrm.predict.timeline import Timeline
from hrm.report.explain import describe_gap, describe_policy
from hrm.report.simulation_report import SimulationResult
from hrm.schedule.task import Resource
from hrm.spec.units import format_bytes, format_seconds


def print_simulation(rates: Rates, result: SimulationResult) -> None:
    """One policy's simulation, for people."""
    batch, policy, memory = result.batch, result.policy, result.memory
    rows = [
        ("generation throughput", f"{batch.generation_throughput:,.1f} tokens/s"),
        ("promised by the roofs", f"{batch.closed_form:,.1f} tokens/s ({batch.share_of_roof:.1%} reached)"),
        ("prefill + decode", f"{_seconds(batch.prefill_seconds)} + {_seconds(batch.decode_seconds)} per batch"),
        ("batch N = n x mu", f"{policy.batch_size:,} = {policy.num_micro_batches} x {policy.micro_batch_size}"),
        ("peak GPU memory", f"{format_bytes(memory.peak_bytes)} of {format_bytes(memory.usable_bytes)}"),
    ]
    print_table(f"{policy.schedule}: {rates.model.name} on {rates.machine.profile.title}", ("", ""), rows)
    print_text(describe_policy(policy)[0].upper() + describe_policy(policy)[1:] + "\n")
    _print_pass(result)
    print_text(describe_gap(result.gap))
    if result.run is not None:
        _print_run(result.run)
        if result.run.num_requests < policy.batch_size:
            print_text(f"Fewer requests than the {policy.batch_size:,} that the policy keeps in flight.")


def _seconds(value: float) -> str:
    return format_seconds(value) if value else "0 s"


def _print_pass(result: SimulationResult) -> None:
    timeline, graph = result.simulation.timeline, result.simulation.timeline.graph
    title = f"One {result.pass_name} pass: {format_seconds(timeline.makespan)}, {len(graph.tasks):,} tasks"
    if result.forecast_seconds:
        title += f", after {format_seconds(result.forecast_seconds)} of predicting"
    busy, shares = timeline.busy_seconds, timeline.utilisation
    rows = [
        (str(r), f"{len(queue):,}", format_seconds(busy[r]), f"{shares[r]:.1%}", _longest_bubble(timeline, r))
        for r, queue in graph.queues.items()
    ]
    print_table(title, ("queue", "tasks", "busy", "utilisation", "longest bubble"), rows)
    path = [(kind, format_seconds(s), f"{s / timeline.makespan:.1%}") for kind, s in timeline.critical_seconds.items()]
    print_table("Critical path", ("task kind", "seconds", "of the pass"), path[:8])


def _longest_bubble(timeline: Timeline, resource: Resource) -> str:
    return format_seconds(max((b.seconds for b in timeline.bubbles(resource)), default=0.0))


def _print_run(run: GenerationRun) -> None:
    rows = [
        ("generation throughput", f"{run.generation_throughput:,.1f} tokens/s"),
        ("total", format_seconds(run.total_seconds)),
        ("passes", f"{len(run.passes):,}"),
        *((f"in {name} passes", format_seconds(run.seconds_in(name)))
          for name in ("prefill", "decode", "mixed") if run.seconds_in(name)),
    ]  # fmt: skip
    print_table(f"\nA run of {run.num_requests:,} requests", ("", ""), rows)
