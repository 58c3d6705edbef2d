"""Qwen2-MoE (Qwen1.5-MoE too) and Qwen3-MoE."""

from hrm.spec.config_fields import MAX_TOKENS, ConfigFields
from hrm.spec.families.common import causal_lm, dense_ffn, gated_moe, grouped_query, num_layers
from hrm.spec.model import AttentionSpec, FfnSpec, LayerSpec, ModelSpec


def read_qwen2_moe(fields: ConfigFields, name: str) -> ModelSpec:
    """A `qwen2_moe` config: biases on q, k and v, and a gated shared expert beside the routed ones."""
    if fields.flag("use_sliding_window", False):
        wrong = "is true, which no published model of this family uses; set it to false"
        raise fields.error("use_sliding_window", wrong)
    bias = fields.flag("qkv_bias", True)
    attention = grouped_query(fields, q_bias=bias, kv_bias=bias)
    shared = fields.size("shared_expert_intermediate_size")
    moe = gated_moe(
        fields,
        "num_experts",
        "moe_intermediate_size",
        shared_intermediate_size=shared,
        shared_expert_gate=True,
    )
    return _read(fields, name, "qwen2_moe", attention, moe)


def read_qwen3_moe(fields: ConfigFields, name: str) -> ModelSpec:
    """A `qwen3_moe` config: norms on each query and key head; head_dim is not hidden_size / heads."""
    window = None
    if fields.flag("use_sliding_window", False):
        window = fields.size("sliding_window", MAX_TOKENS)
    head_dim = fields.size("head_dim")
    attention = grouped_query(
        fields,
        fields.flag("attention_bias", False),
        window=window,
        q_norm_size=head_dim,
        k_norm_size=head_dim,
    )
    count = "num_experts" if fields.has("num_experts") or not fields.has("num_local_experts") else "num_local_experts"
    moe = gated_moe(fields, count, "moe_intermediate_size")
    return _read(fields, name, "qwen3_moe", attention, moe)


def _read(fields: ConfigFields, name: str, family: str, attention: AttentionSpec, moe: FfnSpec) -> ModelSpec:
    hidden_size = fields.size("hidden_size")
    dense = dense_ffn(fields.size("intermediate_size"))
    step = fields.size("decoder_sparse_step") if fields.has("decoder_sparse_step") else 1
    indices = range(num_layers(fields))
    dense_layers = fields.counts("mlp_only_layers", at_most=len(indices) - 1)
    ffns = [moe if i not in dense_layers and (i + 1) % step == 0 else dense for i in indices]
    layers = [LayerSpec(attention, ffn, layer_norm_parameters=2 * hidden_size) for ffn in ffns]
    return causal_lm(fields, name, family, layers, hidden_size)
