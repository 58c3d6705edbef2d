"""A model's shapes and sizes as plain data."""

from typing import Any

from hrm.spec.dtypes import bytes_per_element
from hrm.spec.model import ModelSpec


def model_report(model: ModelSpec) -> dict[str, Any]:
    """Counts of a model; KV bytes per token in the checkpoint's own dtype."""
    routed = next((layer.ffn for layer in model.layers if layer.ffn.is_moe), None)
    attention = model.layers[-1].attention
    return {
        "name": model.name,
        "family": model.family,
        "num_parameters": model.num_parameters,
        "num_active_parameters": model.num_active_parameters,
        "kv_bytes_per_token": model.kv_bytes_per_token(bytes_per_element(model.dtype)),
        "num_layers": model.num_layers,
        "num_moe_layers": model.num_moe_layers,
        "num_experts": routed.num_experts if routed else 0,
        "top_k": routed.top_k if routed else 0,
        "hidden_size": model.hidden_size,
        "intermediate_size": (routed or model.layers[-1].ffn).intermediate_size,
        "num_attention_heads": attention.num_attention_heads,
        "num_key_value_heads": attention.num_key_value_heads,
        "head_dim": attention.head_dim,
        "vocab_size": model.vocab_size,
        "dtype": model.dtype,
        "expert_dtype": model.expert_dtype or model.dtype,
        "parameters": model.parameters,
    }
