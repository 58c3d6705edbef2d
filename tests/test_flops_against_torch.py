"""Flops of the operator model equal those that PyTorch counts in `transformers` models, exactly.

The models are small, real (routing needs values) and built from the same config that ours is read from. What each side
counts: both count two flops per multiply-add of every matrix product. PyTorch's counter sees what `transformers`
executes with eager attention: the masked half of causal attention too (so ours is asked with causal=False), logits of
every position (so is ours), MLA with expanded keys and values (absorbed=False), and each routed token's experts one by
one, whichever they are. The outer product of positions and rotary frequencies, which ours leaves out, is taken off.
"""

from typing import Any

import pytest

from hrm.roofline.attention import decode_attention, prefill_attention
from hrm.roofline.linear import dense_operators, expert_operator
from hrm.roofline.operator import Operator
from hrm.spec.model import ModelSpec
from hrm.spec.model_config import model_from_hf
from hrm.spec.precision import Precision

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
flop_counter = pytest.importorskip("torch.utils.flop_counter")

FP32 = Precision("fp32", "fp32", "fp32", "fp32")
VOCABULARY = 96

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "dtype": "float32",
}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "q_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "intermediate_size": 80,
    "moe_intermediate_size": 28,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 2, "intermediate_size": 80}),
    "mixtral": (
        "mixtral",
        {"num_key_value_heads": 2, "intermediate_size": 80, "num_local_experts": 6, "num_experts_per_tok": 2},
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 80, "moe_intermediate_size": 28,
         "num_experts": 8, "num_experts_per_tok": 3, "mlp_only_layers": [1]},
    ),
    "qwen2_moe": (
        "qwen2_moe",
        {"num_key_value_heads": 4, "intermediate_size": 80, "moe_intermediate_size": 28, "num_experts": 8,
         "num_experts_per_tok": 3, "shared_expert_intermediate_size": 36},
    ),
    "olmoe": (
        "olmoe",
        {"num_key_value_heads": 4, "intermediate_size": 28, "num_experts": 8, "num_experts_per_tok": 4},
    ),
    "deepseek_v2": ("deepseek_v2", {**LATENT, "topk_method": "greedy"}),
    "deepseek_v2_lite": ("deepseek_v2", {**LATENT, "topk_method": "greedy", "q_lora_rank": None}),
    "deepseek_v3": ("deepseek_v3", LATENT),
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, ModelSpec]:
    """A `transformers` model with random weights, and ours read from its config."""
    family, values = CONFIGS[request.param]
    config = transformers.AutoConfig.for_model(family, **COMMON, **values)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    values = config.to_dict()
    if family == "qwen3_moe":  # transformers 5 renames this field in memory; published files have num_experts
        values["num_experts"] = values.pop("num_local_experts")
    return model, model_from_hf(values, request.param, "config.json")


def counted_flops(model: Any, positions: int, **inputs: Any) -> int:
    """What PyTorch counts in one forward pass, less the rotary angles: one product per position and frequency."""
    counter = flop_counter.FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(**inputs)
    rotary = sum(
        sum(counts.values()) for name, counts in counter.get_flop_counts().items() if name.endswith("rotary_emb")
    )
    assert rotary in (0, 2 * positions * len(model.model.rotary_emb.inv_freq))
    return counter.get_total_flops() - rotary


def total_flops(*operators: Operator) -> float:
    return sum(float(op.flops) for op in operators)


def latent_expansion_size(spec: ModelSpec) -> int:
    """Elements of kv_b_proj, all layers: rank x heads x (non-rotary key + value); 0 without MLA."""
    return sum(
        (a.kv_lora_rank or 0) * a.num_attention_heads * (a.qk_nope_head_dim + a.v_head_dim)
        for a in (layer.attention for layer in spec.layers)
    )


@pytest.mark.parametrize(("batch", "prompt_len"), [(1, 1), (3, 17), (2, 64)])
def test_prefill(pair: tuple[Any, ModelSpec], batch: int, prompt_len: int):
    model, spec = pair
    tokens = torch.randint(VOCABULARY, (batch, prompt_len))
    ours = total_flops(
        *dense_operators(spec, FP32, float(batch * prompt_len), float(batch * prompt_len)),
        expert_operator(spec, FP32, float(batch * prompt_len)),
        *prefill_attention(spec, FP32, float(batch), float(prompt_len), float(prompt_len) ** 2, causal=False),
    )
    assert ours == counted_flops(model, prompt_len, input_ids=tokens, use_cache=False)


@pytest.mark.parametrize(("batch", "cached"), [(1, 1), (3, 17), (5, 64)])
def test_decode(pair: tuple[Any, ModelSpec], batch: int, cached: int):
    """One new token for each sequence; it attends the cached ones and itself.

    `transformers` caches an MLA's latents and expands all of them again in each step; ours counts the expansion of new
    tokens only, so that of the cached ones is added here.
    """
    model, spec = pair
    with torch.no_grad():
        cache = model(input_ids=torch.randint(VOCABULARY, (batch, cached)), use_cache=True).past_key_values
    ours = total_flops(
        *dense_operators(spec, FP32, float(batch), float(batch)),
        expert_operator(spec, FP32, float(batch)),
        *decode_attention(spec, FP32, float(batch), float(cached + 1), absorbed=False),
    )
    ours += 2 * batch * cached * latent_expansion_size(spec)
    tokens = torch.randint(VOCABULARY, (batch, 1))
    assert ours == counted_flops(model, 1, input_ids=tokens, past_key_values=cache, use_cache=True)


def test_lm_head_is_a_small_part_of_the_count(pair: tuple[Any, ModelSpec]):
    """The LM head alone, by hand, and that the rest is most of the count."""
    model, spec = pair
    tokens = torch.randint(VOCABULARY, (1, 8))
    counted = counted_flops(model, 8, input_ids=tokens, use_cache=False)
    head_only = total_flops(*dense_operators(spec, FP32, 0.0, 8.0))
    assert head_only == 2 * 8 * 48 * VOCABULARY
    assert counted > 10 * head_only
