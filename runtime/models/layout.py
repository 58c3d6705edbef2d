"""Shapes and checkpoint names of the weights that the families have in common."""

from runtime.models.config import ModelConfig
from runtime.models.family import Shapes

_SUFFIXES = {
    "attention_norm": "input_layernorm.weight",
    "ffn_norm": "post_attention_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o_bias": "self_attn.o_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "router": "mlp.gate.weight",
    "dense_gate": "mlp.gate_proj.weight",
    "dense_up": "mlp.up_proj.weight",
    "dense_down": "mlp.down_proj.weight",
    "shared_gate": "mlp.shared_expert.gate_proj.weight",
    "shared_up": "mlp.shared_expert.up_proj.weight",
    "shared_down": "mlp.shared_expert.down_proj.weight",
    "shared_expert_gate": "mlp.shared_expert_gate.weight",
}


def layer_prefix(layer: int) -> str:
    """What the names of a layer's tensors begin with."""
    return f"model.layers.{layer}."


def names_of(shapes: Shapes, layer: int) -> dict[str, str]:
    """Checkpoint name of each weight of `shapes`."""
    return {local: layer_prefix(layer) + _SUFFIXES[local] for local in shapes}


def routed_expert_names(layer: int, expert: int) -> tuple[str, str, str]:
    """gate, up and down as every family but Mixtral names them."""
    prefix = f"{layer_prefix(layer)}mlp.experts.{expert}."
    return f"{prefix}gate_proj.weight", f"{prefix}up_proj.weight", f"{prefix}down_proj.weight"


def attention_shapes(config: ModelConfig) -> Shapes:
    """Both norms, the four projections, and biases and norms of queries and keys where the model has them."""
    hidden, q, kv = config.hidden_size, config.q_width, config.kv_width
    shapes: Shapes = {"attention_norm": (hidden,), "ffn_norm": (hidden,)}
    shapes |= {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}
    if config.qkv_bias:
        shapes |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
    if config.o_bias:
        shapes["o_bias"] = (hidden,)
    if config.qk_norm != "none":
        whole = config.qk_norm == "full"
        shapes |= {"q_norm": (q if whole else config.head_dim,), "k_norm": (kv if whole else config.head_dim,)}
    return shapes


def router_shapes(config: ModelConfig) -> Shapes:
    """The router, [E, H]."""
    return {"router": (config.num_experts, config.hidden_size)}


def ffn_shapes(config: ModelConfig, kind: str, width: int) -> Shapes:
    """gate, up and down of an FFN of `width` that every token passes; `kind` is "dense" or "shared"."""
    wide, narrow = (width, config.hidden_size), (config.hidden_size, width)
    return {f"{kind}_gate": wide, f"{kind}_up": wide, f"{kind}_down": narrow}
