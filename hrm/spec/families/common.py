"""What the families share: attention and FFN from the usual fields, dtypes, the model around the layers."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from hrm.spec.config_fields import MAX_TOKENS, ConfigFields
from hrm.spec.model import AttentionSpec, FfnSpec, LayerSpec, ModelSpec

MAX_LAYERS = 4096
MAX_EXPERTS = 65536
DTYPES: Mapping[str, str] = MappingProxyType({"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"})
NATIVE_DTYPES: Mapping[str, str] = MappingProxyType({"fp8": "fp8", "mxfp4": "mxfp4"})


def num_layers(fields: ConfigFields, field: str = "num_hidden_layers") -> int:
    """Number of layers, small enough to list them."""
    return fields.size(field, MAX_LAYERS)


def grouped_query(fields: ConfigFields, bias: bool = False, **more: Any) -> AttentionSpec:
    """Attention from num_attention_heads, num_key_value_heads (absent: MHA) and head_dim (absent: derived).

    `bias` is that of all four projections; `more` are further fields of AttentionSpec, which win.
    """
    heads = fields.size("num_attention_heads")
    kv_heads = fields.optional_size("num_key_value_heads") or heads
    head_dim = fields.optional_size("head_dim") or derived_head_dim(
        fields, fields.size("hidden_size"), heads, "num_attention_heads"
    )
    check_groups(fields, heads, kv_heads, "num_key_value_heads")
    biases = {"q_bias": bias, "kv_bias": bias, "o_bias": bias}
    return AttentionSpec(heads, kv_heads, head_dim, head_dim, **{**biases, **more})


def derived_head_dim(fields: ConfigFields, hidden_size: int, heads: int, heads_field: str) -> int:
    """hidden_size / heads, where that is whole."""
    if hidden_size % heads:
        raise fields.error(heads_field, f"{heads} does not divide hidden size {hidden_size}; state head_dim")
    return hidden_size // heads


def check_groups(fields: ConfigFields, heads: int, kv_heads: int, kv_field: str) -> None:
    """Each key/value head must serve the same number of query heads."""
    if heads % kv_heads:
        raise fields.error(kv_field, f"{kv_heads} does not divide the {heads} attention heads")


def gated_moe(fields: ConfigFields, experts_field: str, width_field: str, **more: Any) -> FfnSpec:
    """SwiGLU experts; `more` are further fields of FfnSpec."""
    experts = fields.size(experts_field, MAX_EXPERTS)
    top_k = fields.size("num_experts_per_tok", MAX_EXPERTS)
    check_top_k(fields, top_k, experts, "num_experts_per_tok")
    values = {"shared_intermediate_size": 0, "gated": True, **more}
    return FfnSpec(experts, top_k, fields.size(width_field), **values)


def check_top_k(fields: ConfigFields, top_k: int, experts: int, top_k_field: str) -> None:
    """A token cannot select more experts than there are."""
    if top_k > experts:
        raise fields.error(top_k_field, f"{top_k} is more than the {experts} experts there are")


def dense_ffn(width: int, gated: bool = True, bias: bool = False) -> FfnSpec:
    """An FFN without routing."""
    return FfnSpec(0, 0, width, 0, gated, bias)


def dtype_of(fields: ConfigFields) -> str:
    """The checkpoint's dtype in this toolkit's words.

    transformers 5 writes the field as `dtype`, earlier ones as `torch_dtype`.
    """
    field = "dtype" if fields.has("dtype") else "torch_dtype"
    if not fields.has(field):
        raise fields.error(field, f"is missing; add the checkpoint's, one of {', '.join(DTYPES)}")
    written = fields.text(field).removeprefix("torch.")
    if written not in DTYPES:
        raise fields.error(field, f'"{written[:40]}" is not one of {", ".join(DTYPES)}')
    return DTYPES[written]


def expert_dtype_of(fields: ConfigFields) -> str | None:
    """The native format of the stored experts, from quantization_config; None without one."""
    if not fields.has("quantization_config"):
        return None
    quantization = fields.child("quantization_config")
    method = quantization.text("quant_method")
    if method not in NATIVE_DTYPES:
        known = ", ".join(NATIVE_DTYPES)
        raise quantization.error(
            "quant_method", f'"{method[:40]}" is not one of {known}; use the unquantised model\'s config.json'
        )
    return NATIVE_DTYPES[method]


def causal_lm(
    fields: ConfigFields,
    name: str,
    family: str,
    layers: Sequence[LayerSpec],
    final_norm_parameters: int,
    **more: Any,
) -> ModelSpec:
    """The model around `layers` from the usual fields; `more` are further fields of ModelSpec, which win."""
    hidden_size = fields.size("hidden_size")
    dtype = more.pop("dtype", None) or dtype_of(fields)
    values: dict[str, Any] = {
        "tie_word_embeddings": fields.flag("tie_word_embeddings", False),
        "expert_dtype": expert_dtype_of(fields),
        "max_position_embeddings": fields.optional_size("max_position_embeddings", MAX_TOKENS),
        "embedding_size": hidden_size,
        "final_norm_parameters": final_norm_parameters,
        **more,
    }
    vocab_size = fields.size("vocab_size")
    return ModelSpec(name, family, hidden_size, vocab_size, tuple(layers), dtype=dtype, **values)
