"""Predicted routing paths of a trace's tokens, as a file that fits this trace and no other."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.errors import WorkloadError
from hrm.predict.npz_file import describe, read_arrays, write_arrays
from hrm.predict.routing_trace import RoutingTrace

Probabilities = NDArray[np.floating[Any]]
ARRAYS = ("probabilities", "model", "trace")


def save_predictions(probabilities: Probabilities, trace: RoutingTrace, path: Path) -> None:
    """Writes the probability of every expert to be chosen, [tokens, layers, E], row by row those of the trace.

    Stored as float16. A row may use its prompt up to its own token, and nothing behind it; no check can see that.

    Raises:
        WorkloadError: another shape, a probability outside [0, 1], or a file that cannot be written.
    """
    _check(probabilities, trace, str(path))
    arrays = {"probabilities": probabilities.astype(np.float16), "model": np.array(trace.model)}
    write_arrays(path, arrays | {"trace": np.array(trace_checksum(trace))})


def load_predictions(path: Path, trace: RoutingTrace) -> NDArray[np.float16]:
    """The probabilities, float16 [tokens, layers, E].

    Raises:
        WorkloadError: unreadable, of another trace or model, another shape, or a probability outside [0, 1].
    """
    arrays = read_arrays(path, "write the predictions again")
    if set(arrays) != set(ARRAYS):
        raise WorkloadError(f"{path}: holds {', '.join(arrays) or 'nothing'}; predictions hold {', '.join(ARRAYS)}")
    if str(arrays["model"]) != trace.model:
        found = str(arrays["model"])[:80]
        raise WorkloadError(f"{path}: predictions for model {found!r}, the trace is of {trace.model}; predict it anew")
    if str(arrays["trace"]) != trace_checksum(trace):
        raise WorkloadError(f"{path}: predictions for another trace of {trace.model}; predict this one anew")
    found_probabilities: NDArray[np.float16] = arrays["probabilities"]
    _check(found_probabilities, trace, str(path))
    return found_probabilities


def trace_checksum(trace: RoutingTrace) -> str:
    """Tells a trace's experts from all others', whatever integers they are stored as."""
    experts = np.ascontiguousarray(trace.experts, dtype="<i4")
    return hashlib.sha256(repr(experts.shape).encode() + experts.tobytes()).hexdigest()


def _check(probabilities: NDArray[Any], trace: RoutingTrace, where: str) -> None:
    wanted = (*trace.experts.shape[:2], trace.num_experts)
    if probabilities.shape != wanted or probabilities.dtype.kind != "f":
        raise WorkloadError(f"{where}: probabilities must be floats {wanted}, not {describe(probabilities)}")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():  # false for nan, too
        raise WorkloadError(f"{where}: a probability lies outside [0, 1]; write the predictions again")
