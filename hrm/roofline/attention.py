"""Flops and bytes of attention itself: scores (Q K^T) and PV, over the KV cache."""

from hrm.roofline.operator import Operator, Quantity, merge, scale
from hrm.spec.model import AttentionSpec, ModelSpec
from hrm.spec.precision import Precision


def decode_attention(
    model: ModelSpec, precision: Precision, sequences: Quantity, context_len: float, absorbed: bool = True
) -> tuple[Operator, ...]:
    """Scores and PV of one decode step: each sequence attends `context_len` cached tokens in every layer.

    Sliding-window layers attend at most their window. With `absorbed`, MLA works on the latent (DeepSeek-V2 section
    2.1.2): every head's query is as wide as the cached latent. Otherwise K and V are read expanded, as if cached so:
    expanding cached latents again in each step is left out.
    """
    parts = []
    for layer, count in model.layer_groups:
        attended = attended_tokens(layer.attention, context_len)
        ops = _scores_and_pv(
            layer.attention, precision, sequences * attended, sequences, sequences * attended, absorbed
        )
        parts += [scale(op, count) for op in ops]
    return merge(parts)


def prefill_attention(
    model: ModelSpec,
    precision: Precision,
    sequences: Quantity,
    prompt_len: float,
    prompt_len_sq: float,
    causal: bool = True,
) -> tuple[Operator, ...]:
    """Scores and PV over whole prompts with mean length and mean square length given.

    Causal attention works on s (s + 1) / 2 query-key pairs per prompt, s^2 without the mask (what a kernel that does
    not skip masked blocks computes). Bytes are those of a fused kernel: Q, K, V in and the result out, once.
    """
    parts = []
    for layer, count in model.layer_groups:
        pairs = _prefill_pairs(layer.attention, prompt_len, prompt_len_sq, causal)
        tokens = sequences * prompt_len
        ops = _scores_and_pv(layer.attention, precision, sequences * pairs, tokens, tokens, absorbed=False)
        parts += [scale(op, count) for op in ops]
    return merge(parts)


def attended_tokens(attention: AttentionSpec, context_len: float) -> float:
    """Cached tokens that one query attends in this layer."""
    return context_len if attention.window is None else min(context_len, float(attention.window))


def _prefill_pairs(attention: AttentionSpec, mean: float, square: float, causal: bool) -> float:
    if not causal:
        return square
    window = attention.window
    if window is None or mean <= window:
        return (square + mean) / 2
    if attention.window_is_chunk:  # a query sees only its own chunk's earlier tokens
        full, rest = divmod(mean, window)
        return full * window * (window + 1) / 2 + rest * (rest + 1) / 2
    return window * (window + 1) / 2 + (mean - window) * window


def _scores_and_pv(
    attention: AttentionSpec,
    precision: Precision,
    pairs: Quantity,
    queries: Quantity,
    cached: Quantity,
    absorbed: bool,
) -> list[Operator]:
    heads = attention.num_attention_heads
    key_width, value_width = head_widths(attention, absorbed)
    query_bytes = queries * heads * key_width * precision.activation_bytes
    out_bytes = queries * heads * value_width * precision.activation_bytes
    keys, values = _cached_widths(attention, absorbed)
    return [
        Operator(
            "attention_scores",
            "attention",
            2.0 * pairs * heads * key_width,
            0.0,
            cached * keys * precision.kv_bytes,
            query_bytes,
        ),
        Operator(
            "attention_pv",
            "attention",
            2.0 * pairs * heads * value_width,
            0.0,
            cached * values * precision.kv_bytes,
            out_bytes,
        ),
    ]


def head_widths(attention: AttentionSpec, absorbed: bool) -> tuple[int, int]:
    """Elements of one head's query and of its value as attention sees them (MLA absorbed: the latent's)."""
    if attention.kv_lora_rank is None:
        return attention.head_dim, attention.v_head_dim
    if absorbed:
        return attention.kv_lora_rank + attention.qk_rope_head_dim, attention.kv_lora_rank
    return attention.qk_nope_head_dim + attention.qk_rope_head_dim, attention.v_head_dim


def _cached_widths(attention: AttentionSpec, absorbed: bool) -> tuple[int, int]:
    """Elements read per cached token for K and for V; an absorbed latent serves both and is read once."""
    if attention.kv_lora_rank is not None and absorbed:
        return attention.kv_lora_rank + attention.qk_rope_head_dim, 0
    heads = attention.num_key_value_heads
    key_width, value_width = head_widths(attention, absorbed)
    return heads * key_width, heads * value_width
