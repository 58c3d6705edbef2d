"""Routing traces as files, checked when they are read."""

from pathlib import Path

import numpy as np

from hrm.errors import WorkloadError
from hrm.predict.npz_file import describe, read_arrays, write_arrays
from hrm.predict.routing_checks import check_trace
from hrm.predict.routing_trace import RoutingTrace
from hrm.spec.model import ModelSpec

REQUIRED = ("experts", "prompt", "step", "num_experts", "model")
OPTIONAL = ("gate_weights", "tokens")


def save_routing_trace(trace: RoutingTrace, path: Path) -> None:
    """Writes a trace that `load_routing_trace` reads back, its experts as the smallest integers that hold them.

    Raises:
        WorkloadError: the file cannot be written.
    """
    arrays = {name: np.asarray(getattr(trace, name)) for name in REQUIRED}
    arrays |= {name: getattr(trace, name) for name in OPTIONAL if getattr(trace, name) is not None}
    largest = int(trace.experts.max(initial=0))
    if trace.experts.min(initial=0) >= 0:
        arrays["experts"] = trace.experts.astype(np.min_scalar_type(largest))
    write_arrays(path, arrays)


def load_routing_trace(path: Path, model: ModelSpec | None) -> RoutingTrace:
    """The trace in an .npz file, checked against the model it has to be of; None: against itself only.

    Raises:
        WorkloadError: unreadable, an array missing or unknown, or as `check_trace`.
    """
    arrays = read_arrays(path, "record the trace again, or write it with save_routing_trace")
    missing = [name for name in REQUIRED if name not in arrays]
    unknown = [name for name in arrays if name not in REQUIRED + OPTIONAL]
    if missing or unknown:
        fault = f"lacks {', '.join(missing)}" if missing else f"holds unknown {', '.join(unknown)}"
        raise WorkloadError(
            f"{path}: {fault}; a routing trace holds {', '.join(REQUIRED)}, and may hold {', '.join(OPTIONAL)}"
        )
    name, count = arrays["model"], arrays["num_experts"]
    if name.shape or name.dtype.kind != "U":
        raise WorkloadError(f"{path}: model must be one string, not {describe(name)}")
    if count.shape or count.dtype.kind not in "iu":
        raise WorkloadError(f"{path}: num_experts must be one whole number, not {describe(count)}")
    trace = RoutingTrace(
        str(name), int(count), arrays["experts"], arrays["prompt"], arrays["step"], arrays.get("gate_weights"),
        arrays.get("tokens"),
    )  # fmt: skip
    check_trace(trace, model, str(path))
    return trace
