"""What a routing trace must not contradict: itself, and the model it is of."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.errors import WorkloadError
from hrm.predict.npz_file import describe
from hrm.predict.routing_trace import RoutingTrace
from hrm.spec.model import ModelSpec

MOST_EXPERTS = 1 << 16  # per layer; more is a damaged file, not a model


def check_trace(trace: RoutingTrace, model: ModelSpec | None, where: str = "routing trace") -> None:
    """Refuses a trace that contradicts itself or the model; None: itself only.

    Raises:
        WorkloadError: empty; a wrong shape or type; of another model; layers, experts or top_k that differ from the
            model's; an expert out of range or twice in one choice; decode steps that are not 1, 2, 3, ... per prompt;
            with token ids, rows of a prompt that are not in order.
    """
    _check_shapes(trace, where)
    if model is not None:
        _check_model(trace, model, where)
    _check_experts(trace, where)
    _check_steps(trace, where)
    if trace.tokens is not None:
        _check_tokens(trace, trace.tokens, where)


def moe_kind(model: ModelSpec, where: str) -> tuple[int, int]:
    """(num_experts, top_k) of a model's MoE layers.

    Raises:
        WorkloadError: none, or layers that differ: a trace cannot hold those.
    """
    kinds = {(layer.ffn.num_experts, layer.ffn.top_k) for layer in model.layers if layer.ffn.is_moe}
    if len(kinds) != 1:
        raise WorkloadError(f"{where}: {model.name} has {len(kinds)} kinds of MoE layers; a trace needs exactly one")
    return kinds.pop()


def _check_shapes(trace: RoutingTrace, where: str) -> None:
    experts, weights = trace.experts, trace.gate_weights
    if experts.ndim != 3 or experts.dtype.kind not in "iu":
        raise WorkloadError(f"{where}: experts must be integers [tokens, layers, top_k], not {describe(experts)}")
    tokens, layers, top_k = experts.shape
    if not tokens:
        raise WorkloadError(f"{where}: holds no token; record at least one prompt")
    if not (layers and 1 <= top_k <= trace.num_experts <= MOST_EXPERTS):
        raise WorkloadError(
            f"{where}: {layers} layers with {top_k} of {trace.num_experts} experts chosen; a trace has at least one "
            f"layer and choice, and at most {MOST_EXPERTS:,} experts"
        )
    for name, array in (("prompt", trace.prompt), ("step", trace.step), ("tokens", trace.tokens)):
        if array is not None and (array.shape != (tokens,) or array.dtype.kind not in "iu"):
            raise WorkloadError(f"{where}: {name} must be {tokens} integers, one per token, not {describe(array)}")
    if weights is None:
        return
    if weights.shape != experts.shape or weights.dtype.kind != "f":
        raise WorkloadError(f"{where}: gate_weights must be floats {experts.shape}, not {describe(weights)}")
    if not np.isfinite(weights).all():
        raise WorkloadError(f"{where}: gate_weights hold a number that is not finite; record the trace again")


def _check_model(trace: RoutingTrace, model: ModelSpec, where: str) -> None:
    if trace.model != model.name:
        raise WorkloadError(f"{where}: recorded of model {trace.model[:80]!r}, not {model.name}; use a trace of that")
    (num_experts, top_k), (_, layers, chosen) = moe_kind(model, where), trace.experts.shape
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


def _check_tokens(trace: RoutingTrace, tokens: NDArray[np.integer[Any]], where: str) -> None:
    """What reads token ids reads a prompt from its first token on, so the rows of one have to be in order."""
    if (tokens < 0).any():
        row = int(np.argmax(tokens < 0))
        raise WorkloadError(f"{where}: token {row}: negative id {tokens[row]}; record the trace again")
    order = np.argsort(trace.prompt, kind="stable")
    prompt, step = trace.prompt[order], trace.step[order].astype(np.int64)
    back = (prompt[1:] == prompt[:-1]) & (step[1:] < step[:-1])
    if back.any():
        row = order[1 + int(np.argmax(back))]
        raise WorkloadError(
            f"{where}: token {row}: step {trace.step[row]} of prompt {trace.prompt[row]} comes after a later one; with "
            "tokens, a prompt's rows go from its first token to its last"
        )
