"""A search result as plain data, for JSON and for tables."""

from dataclasses import asdict
from typing import Any

from hrm.predict.prediction import MemoryPrediction, Prediction
from hrm.report.crossover_report import point_report
from hrm.search.crossover import Crossover
from hrm.search.refine import Refined
from hrm.search.search import Candidate, SearchResult, Verification
from hrm.search.sensitivity import Sensitivity


def search_report(
    result: SearchResult,
    rows: tuple[Sensitivity, ...],
    verification: Verification | None = None,
    refined: tuple[Refined, ...] = (),
    choice: Crossover | None = None,
) -> dict[str, Any]:
    """The whole result: inputs, policy, prediction, solver, runner-ups, sensitivity; verify, refined and the
    comparison of expert caches with streaming when they ran.
    """
    report: dict[str, Any] = {
        "inputs": inputs_report(result),
        **candidate_report(result.best),
        "solver": {
            "status": result.solver.status,
            "seconds": result.solver.seconds,
            "relative_gap": result.solver.relative_gap,
            "boxes_bounded": result.solver.boxes_bounded,
            "cells_solved": result.solver.cells_solved,
            "milp_cells": result.solver.milp_cells,
        },
        "runner_ups": [candidate_report(c) for c in result.candidates[1:]],
        "sensitivity": [
            {
                "resource": row.resource,
                "factor": row.factor,
                "generation_throughput": row.generation_throughput,
                "relative_gain": row.relative_gain,
            }
            for row in rows
        ],
    }
    if verification is not None:
        report["verify"] = {
            "agrees": verification.agrees,
            "enumerated_cells": verification.enumerated_cells,
            "relative_difference": verification.relative_difference,
        }
    if choice is not None:
        report["expert_caches"] = point_report(choice.points[-1])
    if refined:
        report["refined"] = [refined_report(entry) for entry in refined]
    return report


def refined_report(entry: Refined) -> dict[str, Any]:
    """A policy's simulation beside its closed form, tokens/s, and its pass's seconds by what they go to."""
    return {
        "policy": entry.policy.model_dump(),
        "generation_throughput": entry.simulated.generation_throughput,
        "closed_form_throughput": entry.simulated.closed_form,
        "prefill_seconds": entry.simulated.prefill_seconds,
        "decode_seconds": entry.simulated.decode_seconds,
        "gap": asdict(entry.gap),
    }


def inputs_report(result: SearchResult) -> dict[str, Any]:
    """What was asked: names, lengths, storage formats, and what the profile leaves at its roof."""
    rates, workload = result.rates, result.rates.workload
    precision = rates.machine.precision
    return {
        "profile": rates.machine.profile.name,
        "model": rates.model.name,
        "schedule": result.schedule,
        "workload": {
            "name": workload.name,
            "prompt_len_avg": workload.prompt_len_avg,
            "prompt_len_max": workload.prompt_len_max,
            "gen_len": workload.gen_len,
            "padded": workload.padded,
        },
        "precision": {
            "weights": precision.weights,
            "expert_weights": precision.expert_weights,
            "kv_cache": precision.kv_cache,
            "activations": precision.activations,
        },
        "not_calibrated": list(rates.machine.profile.uncalibrated_parts),
    }


def candidate_report(candidate: Candidate) -> dict[str, Any]:
    """Policy and prediction of one candidate."""
    return {"policy": candidate.policy.model_dump(), "prediction": prediction_report(candidate.prediction)}


def prediction_report(prediction: Prediction) -> dict[str, Any]:
    """Throughputs in tokens/s, times in seconds, memory in bytes by part, shares of time per resource."""
    return {
        "generation_throughput": prediction.generation_throughput,
        "decode_throughput": prediction.decode_throughput,
        "prefill_seconds": prediction.prefill_seconds,
        "decode_seconds": prediction.decode_seconds,
        "bottleneck": prediction.bottleneck,
        "utilisation": prediction.utilisation,
        "gpu_memory_bytes": prediction.gpu_memory.total_bytes,
        "cpu_memory_bytes": prediction.cpu_memory.total_bytes,
        "disk_bytes": prediction.disk.total_bytes,
        "gpu_memory": _memory(prediction.gpu_memory),
        "cpu_memory": _memory(prediction.cpu_memory),
        "passes": [
            {"name": p.name, "count": p.count, "seconds": p.seconds, "binding": list(p.binding)}
            for p in prediction.passes
        ],
        "binding_memory": list(binding_memory(prediction)),
    }


def _memory(memory: MemoryPrediction) -> dict[str, Any]:
    return {"usable_bytes": memory.usable_bytes, "parts": memory.parts}


def binding_memory(prediction: Prediction) -> tuple[str, ...]:
    """Memories that are full: one more sequence or one more resident expert would not fit."""
    memories = {"gpu_memory": prediction.gpu_memory, "cpu_memory": prediction.cpu_memory}
    return tuple(name for name, m in memories.items() if m.total_bytes > m.usable_bytes * (1 - FULL))


FULL = 2e-3  # within 0.2 % of usable: less than one more sequence or expert
