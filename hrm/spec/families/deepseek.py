"""DeepSeek-V2 and DeepSeek-V3/R1: multi-head latent attention, fine-grained and shared experts."""

from hrm.spec.config_fields import ConfigFields
from hrm.spec.families.common import MAX_LAYERS, causal_lm, check_groups, dense_ffn, gated_moe, num_layers
from hrm.spec.model import AttentionSpec, FfnSpec, LayerSpec, ModelSpec


def read_deepseek_v2(fields: ConfigFields, name: str) -> ModelSpec:
    """A `deepseek_v2` config."""
    return _read(fields, name, "deepseek_v2", correction_bias=False)


def read_deepseek_v3(fields: ConfigFields, name: str) -> ModelSpec:
    """A `deepseek_v3` config; its multi-token-prediction layer (num_nextn_predict_layers) is left out."""
    return _read(fields, name, "deepseek_v3", correction_bias=True)


def _read(fields: ConfigFields, name: str, family: str, correction_bias: bool) -> ModelSpec:
    hidden_size = fields.size("hidden_size")
    attention = _latent_attention(fields)
    moe = shared_expert_moe(fields, correction_bias)
    dense = dense_ffn(fields.size("intermediate_size"))
    first_moe = fields.count("first_k_dense_replace", at_most=MAX_LAYERS)
    every = fields.size("moe_layer_freq") if fields.has("moe_layer_freq") else 1
    ffns = [moe if i >= first_moe and i % every == 0 else dense for i in range(num_layers(fields))]
    layers = [LayerSpec(attention, ffn, layer_norm_parameters=2 * hidden_size) for ffn in ffns]
    return causal_lm(fields, name, family, layers, hidden_size)


def shared_expert_moe(fields: ConfigFields, correction_bias: bool) -> FfnSpec:
    """Routed experts and `n_shared_experts` shared ones of the same width, fused into one wider FFN."""
    shared = fields.count("n_shared_experts", 0) * fields.size("moe_intermediate_size")
    return gated_moe(
        fields,
        "n_routed_experts",
        "moe_intermediate_size",
        shared_intermediate_size=shared,
        correction_bias=correction_bias,
    )


def _latent_attention(fields: ConfigFields) -> AttentionSpec:
    """MLA. A `head_dim` in the config, where there is one, is only the rotary part and is not read."""
    heads = fields.size("num_attention_heads")
    kv_heads = fields.optional_size("num_key_value_heads") or heads
    check_groups(fields, heads, kv_heads, "num_key_value_heads")
    rope, nope = fields.size("qk_rope_head_dim"), fields.size("qk_nope_head_dim")
    bias = fields.flag("attention_bias", False)
    return AttentionSpec(
        heads,
        kv_heads,
        head_dim=rope + nope,
        v_head_dim=fields.size("v_head_dim"),
        kv_lora_rank=fields.size("kv_lora_rank"),
        q_lora_rank=fields.optional_size("q_lora_rank"),
        qk_rope_head_dim=rope,
        qk_nope_head_dim=nope,
        q_bias=bias,
        kv_bias=bias,
        o_bias=bias,
    )
