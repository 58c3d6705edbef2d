"""Flops and bytes of the operators that multiply by weights: projections, router, experts, LM head."""

import numpy as np

from hrm.roofline.operator import Operator, Quantity, merge, scale
from hrm.spec.model import FfnSpec, LayerSpec, Linear, ModelSpec
from hrm.spec.precision import Precision


def layer_linears(layer: LayerSpec, hidden_size: int) -> list[tuple[str, Linear]]:
    """(operator name, projection) for every linear that each token passes in a layer: all but the routed experts.

    In a decoder with cross-attention its queries and output are counted; its K and V belong to the encoder's tokens.
    """
    named = [(_projection_operator(p.name), p) for p in layer.attention.linears(hidden_size)]
    if layer.cross_attention is not None:
        cross = layer.cross_attention.linears(hidden_size)
        named += [(_projection_operator(p.name), p) for p in cross if p.name in ("q_proj", "o_proj")]
    ffn = layer.ffn
    named += [("router", p) for p in ffn.router_linears(hidden_size)]
    named += [("shared_experts", p) for p in ffn.shared_linears(hidden_size)]
    return named + [("dense_ffn", p) for p in ffn.dense_linears(hidden_size)]


def _projection_operator(name: str) -> str:
    return "attention_output" if name == "o_proj" else "qkv"


def linear_operator(name: str, width_in: int, width_out: int, tokens: Quantity, precision: Precision) -> Operator:
    """2 * tokens * in * out flops; the weight read once, input and output once per token (biases left out)."""
    return Operator(
        name,
        "linear",
        2.0 * tokens * width_in * width_out,
        width_in * width_out * precision.weight_bytes,
        0.0,
        tokens * (width_in + width_out) * precision.activation_bytes,
    )


def dense_operators(
    model: ModelSpec, precision: Precision, tokens: Quantity, logit_tokens: Quantity
) -> tuple[Operator, ...]:
    """Every weight operator but the paged experts (see `expert_layers`), summed over layers, for one batch of `tokens`.

    `logit_tokens` go through the LM head (in prefill only the last token of each prompt does). The embedding is a
    gather of `tokens` rows. Leaves out norms, rotary embedding, softmax and residual additions (below 0.1 % of flops).
    """
    parts: list[Operator] = []
    paged_ffn = model.num_moe_layers == 0
    for layer, count in model.layer_groups:
        for name, projection in layer_linears(layer, model.hidden_size):
            if paged_ffn and name == "dense_ffn":
                continue
            op = linear_operator(name, projection.in_features, projection.out_features, tokens, precision)
            parts.append(scale(op, count))
    row = model.hidden_size * precision.activation_bytes
    embedding = Operator("embedding", "linear", 0.0 * tokens, tokens * row, 0.0, tokens * row)
    head = linear_operator("lm_head", model.hidden_size, model.vocab_size, logit_tokens, precision)
    return (*merge(parts), embedding, head)


def expected_distinct_experts(num_experts: int, top_k: int, tokens: Quantity) -> Quantity:
    """E * (1 - (1 - k/E)^tokens): experts touched by `tokens` tokens under uniform independent routing.

    Real routers are skewed, so this is an upper bound on the mean (Jensen; skew only lowers it).
    """
    if top_k >= num_experts:
        return num_experts * np.ones_like(tokens)[()]
    touched: Quantity = num_experts * -np.expm1(tokens * np.log1p(-top_k / num_experts))
    return touched


def pages_ffn(model: ModelSpec, layer: LayerSpec) -> bool:
    """Whether a layer has weights that are paged: routed experts, or any FFN of a model without experts."""
    return layer.ffn.is_moe or not model.num_moe_layers


def expert_layers(model: ModelSpec) -> tuple[tuple[FfnSpec, int], ...]:
    """Feed-forward blocks that are paged and may stay in CPU memory: the routed experts of each MoE layer.

    A dense model has no experts; its FFN takes their place, as one expert that every token uses.
    """
    return tuple((layer.ffn, count) for layer, count in model.layer_groups if pages_ffn(model, layer))


def expert_operator(model: ModelSpec, precision: Precision, tokens: Quantity) -> Operator:
    """Routed experts of all MoE layers for one batch of `tokens`, reading the expected distinct experts once."""
    parts = []
    for ffn, count in expert_layers(model):
        experts, top_k = (ffn.num_experts, ffn.top_k) if ffn.is_moe else (1, 1)
        ups = 2 if ffn.gated else 1
        size = (ups + 1) * model.hidden_size * ffn.intermediate_size
        touched = expected_distinct_experts(experts, top_k, tokens)
        moved = tokens * top_k * (2 * model.hidden_size + (ups + 1) * ffn.intermediate_size)
        op = Operator(
            "experts",
            "expert_ffn",
            2.0 * tokens * top_k * size,
            touched * size * precision.expert_weight_bytes,
            0.0,
            moved * precision.activation_bytes,
        )
        parts.append(scale(op, count))
    return merge(parts)[0]


def routed_tokens_per_expert(model: ModelSpec, tokens: Quantity) -> Quantity:
    """Mean rows of one expert's matmul, by which expert efficiency is looked up."""
    ffn = expert_layers(model)[0][0]
    return tokens * ffn.top_k / ffn.num_experts if ffn.is_moe else tokens
