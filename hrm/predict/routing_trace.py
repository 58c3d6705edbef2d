"""Routing traces: which experts a model's routers chose, token by token, as recorded on real prompts."""

import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.errors import WorkloadError
from hrm.spec.model import ModelSpec

REQUIRED = ("experts", "prompt", "step", "num_experts", "model")
OPTIONAL = ("gate_weights",)
# What numpy and zipfile raise for a file that is not, or no longer, an .npz archive of plain arrays.
_UNREADABLE = (
    OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, SyntaxError, TypeError, struct.error,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """The experts that each token was routed to. As a file, an .npz archive of arrays of these names.

    model: name of the model (a string). num_experts: routed experts per layer (one whole number).
    experts: integers [tokens, layers, top_k]; MoE layers only, in the order of the model.
    prompt: integers [tokens], the prompt that a token belongs to.
    step: integers [tokens]; 0 for a prefill token, k for the token of a prompt's k-th decode step (1, 2, 3, ...).
    gate_weights: floats as `experts`, or absent.
    """

    model: str
    num_experts: int
    experts: NDArray[np.integer[Any]]
    prompt: NDArray[np.integer[Any]]
    step: NDArray[np.integer[Any]]
    gate_weights: NDArray[np.floating[Any]] | None = None


def save_routing_trace(trace: RoutingTrace, path: Path) -> None:
    """Writes a trace that `load_routing_trace` reads back unchanged.

    Raises:
        WorkloadError: the file cannot be written.
    """
    arrays = {name: np.asarray(getattr(trace, name)) for name in REQUIRED}
    if trace.gate_weights is not None:
        arrays["gate_weights"] = trace.gate_weights
    try:
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be written ({error.strerror})") from None


def load_routing_trace(path: Path, model: ModelSpec) -> RoutingTrace:
    """The trace in an .npz file, checked against the model it has to be of.

    Raises:
        WorkloadError: unreadable, an array missing or unknown, or as `check_trace`.
    """
    arrays = _read_arrays(path)
    missing = [name for name in REQUIRED if name not in arrays]
    unknown = [name for name in arrays if name not in REQUIRED + OPTIONAL]
    if missing or unknown:
        fault = f"lacks {', '.join(missing)}" if missing else f"holds unknown {', '.join(unknown)}"
        raise WorkloadError(f"{path}: {fault}; a routing trace holds {', '.join(REQUIRED)}, and may hold gate_weights")
    name, count = arrays["model"], arrays["num_experts"]
    if name.shape or name.dtype.kind != "U":
        raise WorkloadError(f"{path}: model must be one string, not {_describe(name)}")
    if count.shape or count.dtype.kind not in "iu":
        raise WorkloadError(f"{path}: num_experts must be one whole number, not {_describe(count)}")
    trace = RoutingTrace(
        str(name), int(count), arrays["experts"], arrays["prompt"], arrays["step"], arrays.get("gate_weights")
    )
    check_trace(trace, model, str(path))
    return trace


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.lib.npyio.NpzFile):
                return {name: np.asarray(archive[name]) for name in archive.files}
    except _UNREADABLE as failure:
        reason = getattr(failure, "strerror", None) or str(failure) or type(failure).__name__
        raise WorkloadError(f"{path}: cannot be read as .npz ({reason}); record the trace again") from None
    raise WorkloadError(f"{path}: holds a single array, not an .npz archive; write it with save_routing_trace")


def check_trace(trace: RoutingTrace, model: ModelSpec, where: str = "routing trace") -> None:
    """Refuses a trace that contradicts itself or the model.

    Raises:
        WorkloadError: empty; a wrong shape or type; of another model; layers, experts or top_k that differ from the
            model's; an expert out of range or twice in one choice; decode steps that are not 1, 2, 3, ... per prompt.
    """
    _check_shapes(trace, where)
    _check_model(trace, model, where)
    _check_experts(trace, where)
    _check_steps(trace, where)


def _check_shapes(trace: RoutingTrace, where: str) -> None:
    experts, weights = trace.experts, trace.gate_weights
    if experts.ndim != 3 or experts.dtype.kind not in "iu":
        raise WorkloadError(f"{where}: experts must be integers [tokens, layers, top_k], not {_describe(experts)}")
    tokens = len(experts)
    if not tokens:
        raise WorkloadError(f"{where}: holds no token; record at least one prompt")
    for name, array in (("prompt", trace.prompt), ("step", trace.step)):
        if array.shape != (tokens,) or array.dtype.kind not in "iu":
            raise WorkloadError(f"{where}: {name} must be {tokens} integers, one per token, not {_describe(array)}")
    if weights is None:
        return
    if weights.shape != experts.shape or weights.dtype.kind != "f":
        raise WorkloadError(f"{where}: gate_weights must be floats {experts.shape}, not {_describe(weights)}")
    if not np.isfinite(weights).all():
        raise WorkloadError(f"{where}: gate_weights hold a number that is not finite; record the trace again")


def _describe(array: NDArray[Any]) -> str:
    return f"{array.dtype} {array.shape}"


def _check_model(trace: RoutingTrace, model: ModelSpec, where: str) -> None:
    if trace.model != model.name:
        raise WorkloadError(f"{where}: recorded of model {trace.model[:80]!r}, not {model.name}; use a trace of that")
    kinds = {(layer.ffn.num_experts, layer.ffn.top_k) for layer in model.layers if layer.ffn.is_moe}
    if len(kinds) != 1:
        raise WorkloadError(f"{where}: {model.name} has {len(kinds)} kinds of MoE layers; a trace needs exactly one")
    (num_experts, top_k), (_, layers, chosen) = kinds.pop(), trace.experts.shape
    if layers != model.num_moe_layers:
        raise WorkloadError(
            f"{where}: covers {layers} layers, {model.name} has {model.num_moe_layers} MoE layers (of "
            f"{model.num_layers}); record every MoE layer and no other"
        )
    for name, found, wanted in (("num_experts", trace.num_experts, num_experts), ("top_k", chosen, top_k)):
        if found != wanted:
            raise WorkloadError(f"{where}: {name} is {found}, {model.name} has {wanted}; record with that model")


def _check_experts(trace: RoutingTrace, where: str) -> None:
    experts, top_k = trace.experts, trace.experts.shape[2]
    wrong = (experts < 0) | (experts >= trace.num_experts)
    if wrong.any():
        token, layer, place = np.argwhere(wrong)[0]
        raise WorkloadError(
            f"{where}: token {token}, MoE layer {layer}: expert {experts[token, layer, place]} is outside 0 .. "
            f"{trace.num_experts - 1}; record the trace again"
        )
    for a in range(top_k - 1):
        twice = experts[:, :, a, None] == experts[:, :, a + 1 :]
        if twice.any():
            token, layer, _ = np.argwhere(twice)[0]
            raise WorkloadError(
                f"{where}: token {token}, MoE layer {layer}: expert {experts[token, layer, a]} chosen twice; top_k "
                "experts are distinct"
            )


def _check_steps(trace: RoutingTrace, where: str) -> None:
    """Steps of a prompt's decode tokens, sorted, have to count from 1 without gap or repetition."""
    if (trace.step < 0).any():
        raise WorkloadError(
            f"{where}: token {np.argmax(trace.step < 0)}: negative step; 0 is prefill, 1 the first step"
        )
    prompt, step = trace.prompt[trace.step > 0], trace.step[trace.step > 0]
    order = np.lexsort((step, prompt))
    prompt, step, place = prompt[order], step[order], np.arange(len(order))
    begins = np.diff(prompt, prepend=prompt[:1] - 1) != 0
    wanted = place - np.maximum.accumulate(np.where(begins, place, 0)) + 1
    wrong = np.flatnonzero(step != wanted)
    if len(wrong):
        i = wrong[0]
        raise WorkloadError(
            f"{where}: prompt {prompt[i]}: decode step {step[i]} where {wanted[i]} is expected; steps count "
            "1, 2, 3, ... with one token each"
        )
