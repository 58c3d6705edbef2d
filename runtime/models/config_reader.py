"""Reads the part of a config.json that all families share, and refuses what the runtime cannot compute."""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hrm.errors import ModelConfigError
from hrm.spec.config_fields import ConfigFields
from hrm.spec.model import FfnSpec, ModelSpec
from hrm.spec.model_config import model_from_hf
from runtime.dtypes import torch_dtype
from runtime.models.config import ModelConfig


def decoder_config(raw: Mapping[str, object], where: str, **family: Any) -> ModelConfig:
    """The config of a decoder whose layers share one attention; `family` are fields that the family decides.

    Raises:
        ModelConfigError: a field that is missing, malformed or out of range, or asks for what the runtime lacks.
    """
    if raw.get("quantization_config") is not None:
        raise ModelConfigError(f"{where}: quantization_config: quantised checkpoints are not read; use the plain one")
    spec = model_from_hf(raw, str(raw.get("model_type")), where)
    fields = ConfigFields(raw, where)
    _refuse_windows(fields, spec, raw)
    _refuse_activation(fields)
    config = _sizes(fields, spec, raw, where)
    return replace(config, **family)


def _sizes(fields: ConfigFields, spec: ModelSpec, raw: Mapping[str, object], where: str) -> ModelConfig:
    attention = spec.layers[0].attention
    moe = next((layer.ffn for layer in spec.layers if layer.ffn.is_moe), FfnSpec(0, 0, 0, 0, True))
    dense = next((layer.ffn.intermediate_size for layer in spec.layers if not layer.ffn.is_moe), 0)
    return ModelConfig(
        name=spec.name,
        family=spec.family,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
        num_attention_heads=attention.num_attention_heads,
        num_key_value_heads=attention.num_key_value_heads,
        head_dim=attention.head_dim,
        vocab_size=spec.vocab_size,
        num_experts=moe.num_experts,
        top_k=moe.top_k,
        moe_intermediate_size=moe.intermediate_size,
        shared_intermediate_size=moe.shared_intermediate_size,
        dense_intermediate_size=dense,
        moe_layers=tuple(layer.ffn.is_moe for layer in spec.layers),
        rms_norm_eps=positive(raw, "rms_norm_eps", where),
        rope_theta=_rope_theta(fields, raw, where),
        norm_topk_prob=fields.flag("norm_topk_prob", False),
        qkv_bias=attention.q_bias,
        o_bias=attention.o_bias,
        qk_norm="none",
        clip_qkv=None,
        tie_word_embeddings=spec.tie_word_embeddings,
        dtype=torch_dtype(spec.dtype),
        eos_token_ids=eos_token_ids(raw, where),
        max_position_embeddings=fields.size("max_position_embeddings", 2**30),
    )


def positive(raw: Mapping[str, object], field: str, where: str) -> float:
    """A finite number above 0, required."""
    value = raw.get(field)
    if value is None:
        raise ModelConfigError(f"{where}: {field} is missing; copy it from the model's published config.json")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ModelConfigError(f"{where}: {field} must be a number above 0, not {reprlib.repr(value)}")
    return float(value)


def _rope_theta(fields: ConfigFields, raw: Mapping[str, object], where: str) -> float:
    """From rope_parameters (transformers 5) or rope_theta beside rope_scaling (before); only plain rotary."""
    for field in ("rope_parameters", "rope_scaling"):
        if not fields.has(field):
            continue
        rope = fields.child(field)
        for key in ("rope_type", "type"):
            if rope.has(key) and rope.text(key) != "default":
                raise rope.error(key, f'"{rope.text(key)[:40]}" is not supported; only default rotary embeddings are')
    nested = raw.get("rope_parameters")
    inner = nested if isinstance(nested, Mapping) and "rope_theta" in nested else raw
    for source in (inner, raw):
        if source.get("partial_rotary_factor", 1.0) not in (None, 1.0):
            raise ModelConfigError(f"{where}: partial_rotary_factor other than 1 is not supported")
    return positive(inner, "rope_theta", where if inner is raw else f"{where}: rope_parameters")


def _refuse_windows(fields: ConfigFields, spec: ModelSpec, raw: Mapping[str, object]) -> None:
    """A window as long as the longest context hides nothing; a shorter one does."""
    window = spec.layers[0].attention.window
    if window is not None and window < fields.size("max_position_embeddings", 2**30):
        wrong = f"{window} is shorter than max_position_embeddings; sliding-window attention is not supported"
        raise fields.error("sliding_window", wrong)
    types = fields.texts("layer_types") if fields.has("layer_types") else ()
    if any(kind != "full_attention" for kind in types):
        raise fields.error("layer_types", "names other layers than full_attention, which are not supported")


def _refuse_activation(fields: ConfigFields) -> None:
    if fields.has("hidden_act") and fields.text("hidden_act") not in ("silu", "swish"):
        raise fields.error("hidden_act", f'"{fields.text("hidden_act")[:40]}" is not supported; silu is')


def eos_token_ids(raw: Mapping[str, object], where: str) -> tuple[int, ...]:
    """eos_token_id: one id, a list of them, or none.

    Raises ModelConfigError for anything else.
    """
    value = raw.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(isinstance(item, bool) or not isinstance(item, int) or item < 0 for item in ids):
        raise ModelConfigError(f"{where}: eos_token_id must be token ids, not {reprlib.repr(value)}")
    return tuple(ids)
