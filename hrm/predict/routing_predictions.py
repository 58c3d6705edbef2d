"""Predicted routing paths of a trace's tokens, as a file that fits this trace and no other."""

import hashlib
from pathlib import Path

import numpy as np

from hrm.errors import WorkloadError
from hrm.predict.npz_file import read_arrays, write_arrays
from hrm.predict.path_predictions import PathPredictions
from hrm.predict.routing_trace import RoutingTrace

ARRAYS = ("probabilities", "model", "trace")
FOLLOWING = "following"  # may be there, too


def save_predictions(predictions: PathPredictions, trace: RoutingTrace, path: Path) -> None:
    """Writes the probabilities of every expert to be chosen, row by row of the trace's tokens.

    Stored as float16. A row may use its prompt up to its own token, and nothing behind it; no check can see that.

    Raises:
        WorkloadError: another shape, a probability outside [0, 1], or a file that cannot be written.
    """
    predictions.check(_shape(trace), str(path))
    arrays = {"probabilities": predictions.now.astype(np.float16), "model": np.array(trace.model)}
    if predictions.following is not None:
        arrays[FOLLOWING] = predictions.following.astype(np.float16)
    write_arrays(path, arrays | {"trace": np.array(trace_checksum(trace))})


def load_predictions(path: Path, trace: RoutingTrace) -> PathPredictions:
    """The predictions, float16 [tokens, layers, E].

    Raises:
        WorkloadError: unreadable, of another trace or model, another shape, or a probability outside [0, 1].
    """
    arrays = read_arrays(path, "write the predictions again")
    if set(arrays) - {FOLLOWING} != set(ARRAYS):
        raise WorkloadError(f"{path}: holds {', '.join(arrays) or 'nothing'}; predictions hold {', '.join(ARRAYS)}")
    if str(arrays["model"]) != trace.model:
        found = str(arrays["model"])[:80]
        raise WorkloadError(f"{path}: predictions for model {found!r}, the trace is of {trace.model}; predict it anew")
    if str(arrays["trace"]) != trace_checksum(trace):
        raise WorkloadError(f"{path}: predictions for another trace of {trace.model}; predict this one anew")
    predictions = PathPredictions(arrays["probabilities"], arrays.get(FOLLOWING))
    predictions.check(_shape(trace), str(path))
    return predictions


def trace_checksum(trace: RoutingTrace) -> str:
    """Tells a trace's experts from all others', whatever integers they are stored as."""
    experts = np.ascontiguousarray(trace.experts, dtype="<i4")
    return hashlib.sha256(repr(experts.shape).encode() + experts.tobytes()).hexdigest()


def _shape(trace: RoutingTrace) -> tuple[int, ...]:
    return (*trace.experts.shape[:2], trace.num_experts)
