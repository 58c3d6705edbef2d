"""A simulated policy as plain data, for JSON and for tables."""

from dataclasses import asdict, dataclass
from typing import Any

from hrm.predict.gap import Gap
from hrm.predict.generation import GenerationRun
from hrm.predict.memory_over_time import MemoryOverTime
from hrm.predict.simulate import PassSimulation
from hrm.predict.throughput import SimulatedThroughput
from hrm.spec.policy import Policy


@dataclass(frozen=True)
class SimulationResult:
    """One pass of a policy in full, a batch's generation, and where asked for a run of many requests.

    forecast_seconds: what predicting takes before the pass.
    """

    policy: Policy
    pass_name: str
    simulation: PassSimulation
    gap: Gap
    batch: SimulatedThroughput
    memory: MemoryOverTime
    run: GenerationRun | None = None
    forecast_seconds: float = 0.0


def simulation_report(result: SimulationResult) -> dict[str, Any]:
    """Seconds, bytes and tokens/s; `makespan_seconds` and what follows it are those of the pass named by `pass`."""
    timeline = result.simulation.timeline
    report: dict[str, Any] = {
        "schedule": result.policy.schedule,
        "pass": result.pass_name,
        "makespan_seconds": timeline.makespan,
        "forecast_seconds": result.forecast_seconds,
        "lower_bound_seconds": result.simulation.lower_bound_seconds,
        "binding": result.simulation.binding,
        "utilisation": {str(r): share for r, share in timeline.utilisation.items()},
        "critical_path": timeline.critical_seconds,
        "gap": asdict(result.gap),
        "generation_throughput": result.batch.generation_throughput,
        "closed_form_throughput": result.batch.closed_form,
        "prefill_seconds": result.batch.prefill_seconds,
        "decode_seconds": result.batch.decode_seconds,
        "peak_gpu_memory_bytes": result.memory.peak_bytes,
        "usable_gpu_memory_bytes": result.memory.usable_bytes,
        "tasks": len(timeline.graph.tasks),
        "policy": result.policy.model_dump(),
    }
    if result.run is not None:
        report["run"] = run_report(result.run)
    return report


def run_report(run: GenerationRun) -> dict[str, Any]:
    """A whole run: its throughput and where its time went."""
    return {
        "requests": run.num_requests,
        "generated_tokens": run.generated_tokens,
        "total_seconds": run.total_seconds,
        "generation_throughput": run.generation_throughput,
        "passes": len(run.passes),
        "fill_seconds": run.fill_seconds,
        **{f"{name}_seconds": run.seconds_in(name) for name in ("prefill", "decode", "mixed")},
    }
