"""Qwen3-MoE: a norm on every query and key head; some layers may be dense."""

from collections.abc import Mapping

import torch
from torch import Tensor

from runtime.models.common import (
    add_attention,
    project_qkv,
    rms_norm,
    rotate_heads,
    route,
    split_qkv,
    swiglu,
)
from runtime.models.config import ModelConfig
from runtime.models.config_reader import decoder_config
from runtime.models.family import Family, Routed, Shapes, Weights
from runtime.models.layout import attention_shapes, ffn_shapes, names_of, routed_expert_names, router_shapes


def read_config(raw: Mapping[str, object], where: str) -> ModelConfig:
    """A `qwen3_moe` config.json."""
    return decoder_config(raw, where, qk_norm="head")


def layer_shapes(config: ModelConfig, layer: int) -> Shapes:
    """Attention, then a router or a dense FFN."""
    if config.moe_layers[layer]:
        return attention_shapes(config) | router_shapes(config)
    return attention_shapes(config) | ffn_shapes(config, "dense", config.dense_intermediate_size)


def layer_names(config: ModelConfig, layer: int) -> dict[str, str]:
    """Local name -> checkpoint name."""
    return names_of(layer_shapes(config, layer), layer)


def pre_attention(config: ModelConfig, weights: Weights, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """hidden [T, H]; cos, sin [T, D] -> [T, N + 2 K, D]."""
    x = rms_norm(hidden, weights["attention_norm"], config.rms_norm_eps)  # [T, H]
    qkv = project_qkv(weights, x)  # [T, (N + 2 K) D]
    q, k, _ = split_qkv(config, qkv)
    _norm_heads(config, q, weights["q_norm"])
    _norm_heads(config, k, weights["k_norm"])
    return rotate_heads(config, qkv, cos, sin)


def _norm_heads(config: ModelConfig, x: Tensor, weight: Tensor) -> None:
    """x [T, N D], normed head by head in place; weight [D]."""
    heads = torch.unflatten(x, -1, (-1, config.head_dim))  # [T, N, D]
    heads.copy_(rms_norm(heads, weight, config.rms_norm_eps))


def post_attention(config: ModelConfig, weights: Weights, hidden: Tensor, attention: Tensor) -> Routed:
    """hidden [T, H], attention [T, N D]."""
    hidden = add_attention(weights, hidden, attention)
    x = rms_norm(hidden, weights["ffn_norm"], config.rms_norm_eps)  # [T, H]
    if "router" not in weights:
        return Routed(hidden + swiglu(x, weights["dense_gate"], weights["dense_up"], weights["dense_down"]))
    experts, scores = route(x, weights["router"], config.top_k, config.norm_topk_prob)  # [T, k]
    return Routed(hidden, x, experts, scores.to(x.dtype))


FAMILY = Family("qwen3_moe", read_config, layer_shapes, layer_names, routed_expert_names, pre_attention, post_attention)
