"""Switch Transformers: an encoder-decoder after T5 with every other FFN routed to one expert."""

from hrm.spec.config_fields import ConfigFields
from hrm.spec.families.common import MAX_EXPERTS, MAX_LAYERS, dense_ffn, dtype_of, expert_dtype_of, num_layers
from hrm.spec.model import AttentionSpec, FfnSpec, LayerSpec, ModelSpec


def read_switch(fields: ConfigFields, name: str) -> ModelSpec:
    """A `switch_transformers` config.

    `layers` are the decoder's, each with its cross-attention; the encoder's are `encoder_layers`. Left out:
    expert capacity (every token reaches its expert), and as work or KV cache the encoder, which runs once.
    """
    hidden_size = fields.size("d_model")
    encoder_count = num_layers(fields, "num_layers")
    decoder_count = fields.optional_size("num_decoder_layers", MAX_LAYERS) or encoder_count
    encoder_sparse = fields.count("num_sparse_encoder_layers", at_most=encoder_count)
    decoder_sparse = fields.count("num_sparse_decoder_layers", at_most=decoder_count)
    return ModelSpec(
        name,
        "switch_transformers",
        hidden_size,
        fields.size("vocab_size"),
        _stack(fields, hidden_size, decoder_count, decoder_sparse, decoder=True),
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        dtype=dtype_of(fields),
        expert_dtype=expert_dtype_of(fields),
        max_position_embeddings=None,  # relative positions: no limit
        embedding_size=hidden_size,
        final_norm_parameters=2 * hidden_size,  # one after each stack
        encoder_layers=_stack(fields, hidden_size, encoder_count, encoder_sparse, decoder=False),
    )


def _stack(fields: ConfigFields, hidden_size: int, count: int, sparse: int, decoder: bool) -> tuple[LayerSpec, ...]:
    """`sparse` of `count` layers routed, spaced evenly; the first holds the stack's relative position bias."""
    step = count // sparse if sparse else count
    moe, dense = _moe(fields), dense_ffn(fields.size("d_ff"), gated=False)
    buckets = fields.size("relative_attention_num_buckets")
    plain = _attention(fields, 0)
    return tuple(
        LayerSpec(
            _attention(fields, buckets) if i == 0 else plain,
            moe if step == 1 or (step and i % step == 1) else dense,
            layer_norm_parameters=(3 if decoder else 2) * hidden_size,
            cross_attention=plain if decoder else None,
        )
        for i in range(count)
    )


def _attention(fields: ConfigFields, buckets: int) -> AttentionSpec:
    heads, head_dim = fields.size("num_heads"), fields.size("d_kv")
    return AttentionSpec(heads, heads, head_dim, head_dim, relative_bias_size=buckets * heads)


def _moe(fields: ConfigFields) -> FfnSpec:
    experts = fields.size("num_experts", MAX_EXPERTS)
    bias = fields.flag("router_bias", False)
    return FfnSpec(experts, 1, fields.size("d_ff"), 0, gated=False, router_bias=bias)
