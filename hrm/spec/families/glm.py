"""GLM-4.5: grouped-query attention around DeepSeek-V3's router and shared expert."""

from hrm.spec.config_fields import ConfigFields
from hrm.spec.families.common import MAX_LAYERS, causal_lm, dense_ffn, grouped_query, num_layers
from hrm.spec.families.deepseek import shared_expert_moe
from hrm.spec.model import LayerSpec, ModelSpec


def read_glm4_moe(fields: ConfigFields, name: str) -> ModelSpec:
    """A `glm4_moe` config; its multi-token-prediction layer (num_nextn_predict_layers) is left out."""
    hidden_size = fields.size("hidden_size")
    bias = fields.flag("attention_bias", False)
    norm = fields.size("head_dim") if fields.flag("use_qk_norm", False) else 0
    attention = grouped_query(fields, q_bias=bias, kv_bias=bias, q_norm_size=norm, k_norm_size=norm)
    moe = shared_expert_moe(fields, correction_bias=True)
    dense = dense_ffn(fields.size("intermediate_size"))
    first_moe = fields.count("first_k_dense_replace", at_most=MAX_LAYERS)
    layers = [
        LayerSpec(attention, moe if i >= first_moe else dense, layer_norm_parameters=2 * hidden_size)
        for i in range(num_layers(fields))
    ]
    return causal_lm(fields, name, "glm4_moe", layers, hidden_size)
