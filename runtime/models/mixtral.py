"""Mixtral: every layer routes; the weights of the chosen experts sum to 1 and stay fp32."""

from collections.abc import Mapping

from torch import Tensor

from runtime.models.common import add_attention, project_qkv, rms_norm, rotate_heads, route
from runtime.models.config import ModelConfig
from runtime.models.config_reader import decoder_config
from runtime.models.family import Family, Routed, Shapes, Weights
from runtime.models.layout import attention_shapes, layer_prefix, names_of, router_shapes


def read_config(raw: Mapping[str, object], where: str) -> ModelConfig:
    """A `mixtral` config.json."""
    return decoder_config(raw, where, norm_topk_prob=True)


def layer_shapes(config: ModelConfig, layer: int) -> Shapes:
    """Attention and router; no layer has more."""
    return attention_shapes(config) | router_shapes(config)


def layer_names(config: ModelConfig, layer: int) -> dict[str, str]:
    """As the other families, but for the router."""
    router = f"{layer_prefix(layer)}block_sparse_moe.gate.weight"
    return names_of(layer_shapes(config, layer), layer) | {"router": router}


def expert_names(layer: int, expert: int) -> tuple[str, str, str]:
    """w1 is the gate, w3 up, w2 down."""
    prefix = f"{layer_prefix(layer)}block_sparse_moe.experts.{expert}."
    return f"{prefix}w1.weight", f"{prefix}w3.weight", f"{prefix}w2.weight"


def pre_attention(config: ModelConfig, weights: Weights, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """hidden [T, H]; cos, sin [T, D] -> [T, N + 2 K, D]."""
    x = rms_norm(hidden, weights["attention_norm"], config.rms_norm_eps)  # [T, H]
    return rotate_heads(config, project_qkv(weights, x), cos, sin)


def post_attention(config: ModelConfig, weights: Weights, hidden: Tensor, attention: Tensor) -> Routed:
    """hidden [T, H], attention [T, N D]."""
    hidden = add_attention(weights, hidden, attention)
    x = rms_norm(hidden, weights["ffn_norm"], config.rms_norm_eps)  # [T, H]
    experts, scores = route(x, weights["router"], config.top_k, config.norm_topk_prob)  # [T, k]
    return Routed(hidden, x, experts, scores)


FAMILY = Family("mixtral", read_config, layer_shapes, layer_names, expert_names, pre_attention, post_attention)
