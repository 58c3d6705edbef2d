"""gpt-oss: sliding and full layers in turn, attention sinks, biases everywhere, experts stored in MXFP4."""

from hrm.spec.config_fields import MAX_TOKENS, ConfigFields
from hrm.spec.families.common import causal_lm, dtype_of, gated_moe, grouped_query, num_layers
from hrm.spec.model import LayerSpec, ModelSpec

_WINDOWED = {"sliding_attention": True, "full_attention": False}


def read_gpt_oss(fields: ConfigFields, name: str) -> ModelSpec:
    """A `gpt_oss` config. OpenAI publishes it without a dtype; what is not MXFP4 is bf16 (model card)."""
    dtype = dtype_of(fields) if fields.has("torch_dtype") or fields.has("dtype") else "bf16"
    hidden_size = fields.size("hidden_size")
    bias = fields.flag("attention_bias", True)
    windowed_layers = _windowed_layers(fields, num_layers(fields))
    window = fields.size("sliding_window", MAX_TOKENS) if any(windowed_layers) else None
    ffn = gated_moe(fields, "num_local_experts", "intermediate_size", bias=True, router_bias=True)
    layers = [
        LayerSpec(
            grouped_query(fields, bias, sinks=True, window=window if windowed else None),
            ffn,
            layer_norm_parameters=2 * hidden_size,
        )
        for windowed in windowed_layers
    ]
    return causal_lm(fields, name, "gpt_oss", layers, hidden_size, dtype=dtype)


def _windowed_layers(fields: ConfigFields, count: int) -> list[bool]:
    """Which layers slide: as `layer_types` says, or where it is absent every other one from the first."""
    if not fields.has("layer_types"):
        return [i % 2 == 0 for i in range(count)]
    types = fields.texts("layer_types")
    if len(types) != count:
        raise fields.error("layer_types", f"lists {len(types)} layers, but num_hidden_layers is {count}")
    unknown = [kind for kind in types if kind not in _WINDOWED]
    if unknown:
        raise fields.error("layer_types", f'holds "{unknown[0][:40]}", not one of {", ".join(_WINDOWED)}')
    return [_WINDOWED[kind] for kind in types]
