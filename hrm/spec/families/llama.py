"""Llama 2 and 3: dense, grouped-query attention, SwiGLU."""

from hrm.spec.config_fields import ConfigFields
from hrm.spec.families.common import causal_lm, dense_ffn, grouped_query, num_layers
from hrm.spec.model import LayerSpec, ModelSpec


def read_llama(fields: ConfigFields, name: str) -> ModelSpec:
    """A `llama` config."""
    hidden_size = fields.size("hidden_size")
    attention = grouped_query(fields, fields.flag("attention_bias", False))
    ffn = dense_ffn(fields.size("intermediate_size"), bias=fields.flag("mlp_bias", False))
    layer = LayerSpec(attention, ffn, layer_norm_parameters=2 * hidden_size)
    return causal_lm(fields, name, "llama", [layer] * num_layers(fields), hidden_size)
