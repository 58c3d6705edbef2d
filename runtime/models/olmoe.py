"""OLMoE: one norm over all query heads together and one over all key heads, then optional clipping."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from runtime.models.common import add_attention, project_qkv, rms_norm, rotate_heads, route, split_qkv
from runtime.models.config import ModelConfig
from runtime.models.config_reader import decoder_config, positive
from runtime.models.family import Family, Routed, Shapes, Weights
from runtime.models.layout import attention_shapes, names_of, routed_expert_names, router_shapes


def read_config(raw: Mapping[str, object], where: str) -> ModelConfig:
    """An `olmoe` config.json."""
    config = decoder_config(raw, where, qk_norm="full")
    return replace(config, clip_qkv=positive(raw, "clip_qkv", where)) if raw.get("clip_qkv") is not None else config


def layer_shapes(config: ModelConfig, layer: int) -> Shapes:
    """Attention and router; no layer has more."""
    return attention_shapes(config) | router_shapes(config)


def layer_names(config: ModelConfig, layer: int) -> dict[str, str]:
    """Local name -> checkpoint name."""
    return names_of(layer_shapes(config, layer), layer)


def pre_attention(config: ModelConfig, weights: Weights, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """hidden [T, H]; cos, sin [T, D] -> [T, N + 2 K, D]."""
    x = rms_norm(hidden, weights["attention_norm"], config.rms_norm_eps)  # [T, H]
    qkv = project_qkv(weights, x)  # [T, (N + 2 K) D]
    q, k, _ = split_qkv(config, qkv)
    q.copy_(rms_norm(q, weights["q_norm"], config.rms_norm_eps))
    k.copy_(rms_norm(k, weights["k_norm"], config.rms_norm_eps))
    if config.clip_qkv is not None:
        qkv.clamp_(-config.clip_qkv, config.clip_qkv)
    return rotate_heads(config, qkv, cos, sin)


def post_attention(config: ModelConfig, weights: Weights, hidden: Tensor, attention: Tensor) -> Routed:
    """hidden [T, H], attention [T, N D]."""
    hidden = add_attention(weights, hidden, attention)
    x = rms_norm(hidden, weights["ffn_norm"], config.rms_norm_eps)  # [T, H]
    experts, scores = route(x, weights["router"], config.top_k, config.norm_topk_prob)  # [T, k]
    return Routed(hidden, x, experts, scores.to(x.dtype))


FAMILY = Family("olmoe", read_config, layer_shapes, layer_names, routed_expert_names, pre_attention, post_attention)
