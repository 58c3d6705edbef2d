"""DBRX: the usual numbers under other names, some in attn_config and ffn_config."""

from hrm.spec.config_fields import MAX_TOKENS, ConfigFields
from hrm.spec.families.common import (
    MAX_EXPERTS,
    check_groups,
    check_top_k,
    derived_head_dim,
    dtype_of,
    expert_dtype_of,
    num_layers,
)
from hrm.spec.model import AttentionSpec, FfnSpec, LayerSpec, ModelSpec


def read_dbrx(fields: ConfigFields, name: str) -> ModelSpec:
    """A `dbrx` config. Its fused Wqkv counts as q, k and v; its w1, v1, w2 as gate, up and down."""
    hidden_size = fields.size("d_model")
    layer = LayerSpec(_attention(fields, hidden_size), _ffn(fields), layer_norm_parameters=2 * hidden_size)
    return ModelSpec(
        name,
        "dbrx",
        hidden_size,
        fields.size("vocab_size"),
        (layer,) * num_layers(fields, "n_layers"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        dtype=dtype_of(fields),
        expert_dtype=expert_dtype_of(fields),
        max_position_embeddings=fields.size("max_seq_len", MAX_TOKENS),
        embedding_size=hidden_size,
        final_norm_parameters=hidden_size,
    )


def _attention(fields: ConfigFields, hidden_size: int) -> AttentionSpec:
    heads = fields.size("n_heads")
    nested = fields.child("attn_config")
    kv_heads = nested.size("kv_n_heads")
    check_groups(nested, heads, kv_heads, "kv_n_heads")
    head_dim = derived_head_dim(fields, hidden_size, heads, "n_heads")
    return AttentionSpec(heads, kv_heads, head_dim, head_dim)


def _ffn(fields: ConfigFields) -> FfnSpec:
    nested = fields.child("ffn_config")
    experts, top_k = nested.size("moe_num_experts", MAX_EXPERTS), nested.size("moe_top_k", MAX_EXPERTS)
    check_top_k(nested, top_k, experts, "moe_top_k")
    return FfnSpec(experts, top_k, nested.size("ffn_hidden_size"), 0, gated=True)
