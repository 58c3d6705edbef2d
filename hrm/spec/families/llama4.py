"""Llama 4: the language model of a multimodal checkpoint; most layers attend within chunks."""

from hrm.spec.config_fields import MAX_TOKENS, ConfigFields
from hrm.spec.families.common import (
    causal_lm,
    dense_ffn,
    dtype_of,
    expert_dtype_of,
    gated_moe,
    grouped_query,
    num_layers,
)
from hrm.spec.model import AttentionSpec, LayerSpec, ModelSpec


def read_llama4(fields: ConfigFields, name: str) -> ModelSpec:
    """A `llama4` config: reads `text_config` and leaves the vision tower out."""
    text = fields.child("text_config")
    dtype = dtype_of(text if text.has("torch_dtype") or text.has("dtype") else fields)
    return _read(text, name, "llama4", dtype, expert_dtype_of(fields))


def read_llama4_text(fields: ConfigFields, name: str) -> ModelSpec:
    """A `llama4_text` config, which stands alone."""
    return _read(fields, name, "llama4_text", dtype_of(fields), expert_dtype_of(fields))


def _read(fields: ConfigFields, name: str, family: str, dtype: str, expert_dtype: str | None) -> ModelSpec:
    hidden_size, count = fields.size("hidden_size"), num_layers(fields)
    width = fields.size("intermediate_size")
    moe = gated_moe(fields, "num_local_experts", "intermediate_size", shared_intermediate_size=width)
    dense = dense_ffn(fields.size("intermediate_size_mlp"))
    moe_layers = _moe_layers(fields, count)
    layers = [
        LayerSpec(attention, moe if i in moe_layers else dense, layer_norm_parameters=2 * hidden_size)
        for i, attention in enumerate(_attentions(fields, count))
    ]
    return causal_lm(fields, name, family, layers, hidden_size, dtype=dtype, expert_dtype=expert_dtype)


def _moe_layers(fields: ConfigFields, count: int) -> frozenset[int]:
    if fields.has("moe_layers"):
        return frozenset(fields.counts("moe_layers", at_most=count - 1))
    step = fields.size("interleave_moe_layer_step")
    return frozenset(range(step - 1, count, step))


def _attentions(fields: ConfigFields, count: int) -> list[AttentionSpec]:
    """Layers with rotary positions attend within chunks; every fourth, without, to all of the context."""
    bias = fields.flag("attention_bias", False)
    chunk = fields.optional_size("attention_chunk_size", MAX_TOKENS)
    local = grouped_query(fields, bias, window=chunk, window_is_chunk=chunk is not None)
    rotary = fields.counts("no_rope_layers", at_most=1)
    interval = fields.size("no_rope_layer_interval") if fields.has("no_rope_layer_interval") else 4
    if rotary and len(rotary) != count:
        raise fields.error("no_rope_layers", f"lists {len(rotary)} layers, but num_hidden_layers is {count}")
    local_layers = rotary or [int((i + 1) % interval != 0) for i in range(count)]
    whole = grouped_query(fields, bias)
    return [local if is_local else whole for is_local in local_layers]
