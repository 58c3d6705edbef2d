"""OLMoE."""

from hrm.spec.config_fields import ConfigFields
from hrm.spec.families.common import causal_lm, gated_moe, grouped_query, num_layers
from hrm.spec.model import LayerSpec, ModelSpec


def read_olmoe(fields: ConfigFields, name: str) -> ModelSpec:
    """An `olmoe` config: one norm over all query heads together, one over all key heads."""
    hidden_size = fields.size("hidden_size")
    plain = grouped_query(fields)
    attention = grouped_query(
        fields,
        fields.flag("attention_bias", False),
        q_norm_size=plain.q_width,
        k_norm_size=plain.num_key_value_heads * plain.head_dim,
    )
    ffn = gated_moe(fields, "num_experts", "intermediate_size")
    layer = LayerSpec(attention, ffn, layer_norm_parameters=2 * hidden_size)
    return causal_lm(fields, name, "olmoe", [layer] * num_layers(fields), hidden_size)
