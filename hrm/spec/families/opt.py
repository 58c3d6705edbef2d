"""OPT: dense, multi-head attention, ReLU, biases everywhere, learned positions."""

from hrm.spec.config_fields import MAX_TOKENS, ConfigFields
from hrm.spec.families.common import causal_lm, dense_ffn, grouped_query, num_layers
from hrm.spec.model import LayerSpec, ModelSpec

POSITION_OFFSET = 2  # OPT's table has two rows more than positions, kept from its padding index


def read_opt(fields: ConfigFields, name: str) -> ModelSpec:
    """An `opt` config; embeddings narrower than the model (OPT-350m) pass through two projections."""
    hidden_size = fields.size("hidden_size")
    embedding_size = fields.optional_size("word_embed_proj_dim") or hidden_size
    bias = fields.flag("enable_bias", True)
    norm = 2 * hidden_size if fields.flag("layer_norm_elementwise_affine", True) else 0
    layer = LayerSpec(
        grouped_query(fields, bias),
        dense_ffn(fields.size("ffn_dim"), gated=False, bias=bias),
        layer_norm_parameters=2 * norm,
    )
    positions = (fields.size("max_position_embeddings", MAX_TOKENS) + POSITION_OFFSET) * hidden_size
    projections = 2 * hidden_size * embedding_size if embedding_size != hidden_size else 0
    final = fields.flag("do_layer_norm_before", True) and not fields.flag("_remove_final_layer_norm", False)
    return causal_lm(
        fields,
        name,
        "opt",
        [layer] * num_layers(fields),
        final_norm_parameters=norm if final else 0,
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        embedding_size=embedding_size,
        position_parameters=positions + projections,
    )
