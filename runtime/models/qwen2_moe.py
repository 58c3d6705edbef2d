"""Qwen2-MoE (Qwen1.5-MoE too): biases on q, k and v, a gated shared expert; some layers may be dense."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import linear, sigmoid

from runtime.models.common import add_attention, project_qkv, rms_norm, rotate_heads, route, swiglu
from runtime.models.config import ModelConfig
from runtime.models.config_reader import decoder_config
from runtime.models.family import Family, Routed, Shapes, Weights
from runtime.models.layout import attention_shapes, ffn_shapes, names_of, routed_expert_names, router_shapes


def read_config(raw: Mapping[str, object], where: str) -> ModelConfig:
    """A `qwen2_moe` config.json."""
    return decoder_config(raw, where)


def layer_shapes(config: ModelConfig, layer: int) -> Shapes:
    """Attention, then a router with the shared expert, or a dense FFN."""
    if not config.moe_layers[layer]:
        return attention_shapes(config) | ffn_shapes(config, "dense", config.dense_intermediate_size)
    shared = ffn_shapes(config, "shared", config.shared_intermediate_size)
    gate: Shapes = {"shared_expert_gate": (1, config.hidden_size)}
    return attention_shapes(config) | router_shapes(config) | shared | gate


def layer_names(config: ModelConfig, layer: int) -> dict[str, str]:
    """Local name -> checkpoint name."""
    return names_of(layer_shapes(config, layer), layer)


def pre_attention(config: ModelConfig, weights: Weights, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """hidden [T, H]; cos, sin [T, D] -> [T, N + 2 K, D]."""
    x = rms_norm(hidden, weights["attention_norm"], config.rms_norm_eps)  # [T, H]
    return rotate_heads(config, project_qkv(weights, x), cos, sin)


def post_attention(config: ModelConfig, weights: Weights, hidden: Tensor, attention: Tensor) -> Routed:
    """hidden [T, H], attention [T, N D]."""
    hidden = add_attention(weights, hidden, attention)
    x = rms_norm(hidden, weights["ffn_norm"], config.rms_norm_eps)  # [T, H]
    if "router" not in weights:
        return Routed(hidden + swiglu(x, weights["dense_gate"], weights["dense_up"], weights["dense_down"]))
    experts, scores = route(x, weights["router"], config.top_k, config.norm_topk_prob)  # [T, k]
    return Routed(hidden + _shared_expert(weights, x), x, experts, scores.to(x.dtype))


def _shared_expert(weights: Weights, x: Tensor) -> Tensor:
    """x [T, H] -> [T, H]."""
    openness = sigmoid(linear(x, weights["shared_expert_gate"]))  # [T, 1]
    return openness * swiglu(x, weights["shared_gate"], weights["shared_up"], weights["shared_down"])


FAMILY = Family("qwen2_moe", read_config, layer_shapes, layer_names, routed_expert_names, pre_attention, post_attention)
