"""Mixtral, and Phi-3.5-MoE, which differs from it in biases and LayerNorm."""

from hrm.spec.config_fields import MAX_TOKENS, ConfigFields
from hrm.spec.families.common import causal_lm, gated_moe, grouped_query, num_layers
from hrm.spec.model import LayerSpec, ModelSpec


def read_mixtral(fields: ConfigFields, name: str) -> ModelSpec:
    """A `mixtral` config: every layer routes; RMSNorm."""
    hidden_size = fields.size("hidden_size")
    attention = grouped_query(fields, window=fields.optional_size("sliding_window", MAX_TOKENS))
    ffn = gated_moe(fields, "num_local_experts", "intermediate_size")
    layer = LayerSpec(attention, ffn, layer_norm_parameters=2 * hidden_size)
    return causal_lm(fields, name, "mixtral", [layer] * num_layers(fields), hidden_size)


def read_phimoe(fields: ConfigFields, name: str) -> ModelSpec:
    """A `phimoe` config: LayerNorm has a weight and a bias, and so may attention and lm_head."""
    hidden_size = fields.size("hidden_size")
    attention = grouped_query(
        fields,
        fields.flag("attention_bias", False),
        window=fields.optional_size("sliding_window", MAX_TOKENS),
    )
    ffn = gated_moe(fields, "num_local_experts", "intermediate_size")
    layer = LayerSpec(attention, ffn, layer_norm_parameters=4 * hidden_size)
    bias = fields.flag("lm_head_bias", False)
    layers = [layer] * num_layers(fields)
    return causal_lm(fields, name, "phimoe", layers, 2 * hidden_size, lm_head_bias=bias)
