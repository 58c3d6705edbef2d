"""Flops and bytes of every operator against arithmetic written out by hand."""

import math

import numpy as np
import pytest

from hrm.roofline.attention import decode_attention, prefill_attention
from hrm.roofline.linear import (
    dense_operators,
    expected_distinct_experts,
    expert_operator,
    routed_tokens_per_expert,
)
from hrm.roofline.operator import Operator
from hrm.roofline.sizes import Sizes
from hrm.spec.model import ModelSpec
from hrm.spec.model_config import load_model, shipped_models
from hrm.spec.precision import Precision

FP16 = Precision("fp16", "fp16", "fp16", "fp16")
B = 2  # bytes per fp16 element

# Mixtral 8x7B (its config.json): 32 layers, hidden 4096, 32 query and 8 KV heads of 128, 8 experts of 14336, top 2,
# vocabulary 32000. So Q is 4096 wide, K and V 1024 each.


@pytest.fixture(scope="module")
def mixtral() -> ModelSpec:
    return load_model("mixtral-8x7b")


def by_name(operators: tuple[Operator, ...]) -> dict[str, Operator]:
    return {op.name: op for op in operators}


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "logits"), [(128, 128), (128 * 418, 128)], ids=["decode", "prefill"])
def test_mixtral_linear_operators(mixtral: ModelSpec, tokens: int, logits: int):
    """Decode: 128 sequences, one token each. Prefill: 128 prompts of 418 tokens, of which the last one has logits."""
    ops = by_name(dense_operators(mixtral, FP16, float(tokens), float(logits)))
    assert set(ops) == {"qkv", "attention_output", "router", "embedding", "lm_head"}

    qkv = ops["qkv"]
    assert qkv.flops == 32 * 2 * tokens * 4096 * (4096 + 2 * 1024)
    assert qkv.weight_bytes == 32 * 4096 * (4096 + 2 * 1024) * B
    assert qkv.activation_bytes == 32 * tokens * (3 * 4096 + 4096 + 2 * 1024) * B  # Q, K, V each read the input

    out = ops["attention_output"]
    assert out.flops == 32 * 2 * tokens * 4096 * 4096
    assert out.weight_bytes == 32 * 4096 * 4096 * B
    assert out.activation_bytes == 32 * tokens * (4096 + 4096) * B

    router = ops["router"]
    assert router.flops == 32 * 2 * tokens * 4096 * 8
    assert router.weight_bytes == 32 * 4096 * 8 * B
    assert router.activation_bytes == 32 * tokens * (4096 + 8) * B

    embedding = ops["embedding"]
    assert embedding.flops == 0
    assert embedding.bytes == 2 * tokens * 4096 * B  # gathered: a row read, a row written

    head = ops["lm_head"]
    assert head.flops == 2 * logits * 4096 * 32000
    assert head.weight_bytes == 4096 * 32000 * B
    assert head.activation_bytes == logits * (4096 + 32000) * B
    assert all(op.kv_bytes == 0 for op in ops.values())


@pytest.mark.parametrize("tokens", [128, 128 * 418], ids=["decode", "prefill"])
def test_mixtral_experts(mixtral: ModelSpec, tokens: int):
    op = expert_operator(mixtral, FP16, float(tokens))
    assert op.flops == 32 * 2 * tokens * 2 * 3 * 4096 * 14336
    distinct = 8 * (1 - (6 / 8) ** tokens)
    assert op.weight_bytes == pytest.approx(32 * distinct * 3 * 4096 * 14336 * B, rel=1e-14)
    # per token and selected expert: input, up, gate, their product, output
    assert op.activation_bytes == 32 * tokens * 2 * (4096 + 3 * 14336 + 4096) * B
    assert routed_tokens_per_expert(mixtral, float(tokens)) == tokens * 2 / 8


def test_one_token_reads_only_its_experts(mixtral: ModelSpec):
    assert expert_operator(mixtral, FP16, 1.0).weight_bytes == pytest.approx(32 * 2 * 3 * 4096 * 14336 * B, rel=1e-14)


def test_qwen_shared_expert():
    """Qwen1.5-MoE-A2.7B: 24 layers, hidden 2048, shared expert of 5632 with a sigmoid gate of width 1."""
    ops = by_name(dense_operators(load_model("qwen1.5-moe-a2.7b"), FP16, 10.0, 10.0))
    shared = ops["shared_experts"]
    assert shared.flops == 24 * 2 * 10 * (3 * 2048 * 5632 + 2048)
    assert shared.weight_bytes == 24 * (3 * 2048 * 5632 + 2048) * B


def test_deepseek_v3_dense_and_shared_layers():
    """61 layers, hidden 7168: 3 dense FFNs of 18432, 58 with one shared expert of 2048 and 256 routed ones, top 8."""
    model = load_model("deepseek-v3")
    ops = by_name(dense_operators(model, FP16, 10.0, 10.0))
    assert ops["dense_ffn"].flops == 3 * 2 * 10 * 3 * 7168 * 18432
    assert ops["shared_experts"].flops == 58 * 2 * 10 * 3 * 7168 * 2048
    assert ops["router"].flops == 58 * 2 * 10 * 7168 * 256
    assert expert_operator(model, FP16, 10.0).flops == 58 * 2 * 10 * 8 * 3 * 7168 * 2048


def test_dense_model_pages_its_ffn():
    """Llama 3 8B: 32 layers, hidden 4096, FFN of 14336: it takes the experts' place, as one that all tokens use."""
    model = load_model("llama-3-8b")
    assert set(by_name(dense_operators(model, FP16, 10.0, 10.0))) == {"qkv", "attention_output", "embedding", "lm_head"}
    op = expert_operator(model, FP16, 10.0)
    assert op.flops == 32 * 2 * 10 * 3 * 4096 * 14336
    assert op.weight_bytes == 32 * 3 * 4096 * 14336 * B
    assert routed_tokens_per_expert(model, 10.0) == 10


@pytest.mark.parametrize(
    ("dtype", "bytes_per_weight"),
    [
        ("fp16", 2.0),
        ("fp8", 1 + 4 / (128 * 128)),  # one fp32 scale per block of 128 x 128
        ("int8", 1 + 2 / 128),  # one fp16 scale per 128
        ("int4", 1 / 2 + 2 / 128),
        ("mxfp4", 1 / 2 + 1 / 32),  # one 8-bit exponent per 32
    ],
)
def test_weight_bytes_with_scales(mixtral: ModelSpec, dtype: str, bytes_per_weight: float):
    precision = Precision(dtype, dtype, "fp16", "fp16")
    experts, dense = 32 * 8 * 3 * 4096 * 14336, 32 * 4096 * (2 * 4096 + 2 * 1024)
    every = expert_operator(mixtral, precision, 1e6)
    assert every.weight_bytes == pytest.approx(experts * bytes_per_weight, rel=1e-14)
    assert every.activation_bytes == expert_operator(mixtral, FP16, 1e6).activation_bytes
    assert Sizes(mixtral, precision).expert_bytes == pytest.approx(experts * bytes_per_weight, rel=1e-14)
    assert Sizes(mixtral, precision).expert_page_bytes == pytest.approx(3 * 4096 * 14336 * bytes_per_weight, rel=1e-14)
    ops = by_name(dense_operators(mixtral, precision, 1.0, 1.0))
    projections = ops["qkv"].weight_bytes + ops["attention_output"].weight_bytes
    assert projections == pytest.approx(dense * bytes_per_weight, rel=1e-14)


# --- routing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (60, 4), (128, 8), (5, 5)])
def test_distinct_experts_against_monte_carlo(experts: int, top_k: int):
    """Each token draws top_k different experts, uniformly and independently; 4,000 batches, five standard errors."""
    generator = np.random.default_rng(20241118)
    for tokens in (1, 3, 17):
        ranks = generator.random((4000, tokens, experts)).argpartition(top_k - 1, axis=2)[:, :, :top_k]
        counts = np.array([len(np.unique(batch)) for batch in ranks])
        error = counts.std() / math.sqrt(len(counts))
        expected = expected_distinct_experts(experts, top_k, float(tokens))
        assert expected == pytest.approx(counts.mean(), abs=5 * error + 1e-12)


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (256, 8), (1, 1), (4, 4)])
def test_distinct_experts_at_the_limits(experts: int, top_k: int):
    assert expected_distinct_experts(experts, top_k, 0.0) == (0.0 if top_k < experts else experts)
    assert expected_distinct_experts(experts, top_k, 1.0) == pytest.approx(top_k, rel=1e-14)
    assert expected_distinct_experts(experts, top_k, 1e5) == pytest.approx(experts, rel=1e-14)


# --- attention -------------------------------------------------------------------------------------------------------


def test_mixtral_decode_attention(mixtral: ModelSpec):
    """64 sequences at a context of 512: every one of 32 heads of 128 meets 512 keys and 512 values."""
    ops = by_name(decode_attention(mixtral, FP16, 64.0, 512.0))
    for name in ("attention_scores", "attention_pv"):
        assert ops[name].flops == 32 * 64 * 2 * 512 * 32 * 128
        assert ops[name].kv_bytes == 32 * 64 * 512 * 8 * 128 * B
        assert ops[name].activation_bytes == 32 * 64 * 4096 * B  # queries in, result out; scores stay in the kernel
        assert ops[name].weight_bytes == 0


def test_mixtral_prefill_attention(mixtral: ModelSpec):
    """Causal: token i meets i keys, 418 * 419 / 2 pairs a prompt; without the mask 418^2."""
    pairs = 418 * 419 // 2
    for causal, met in ((True, pairs), (False, 418 * 418)):
        ops = by_name(prefill_attention(mixtral, FP16, 64.0, 418.0, 418.0**2, causal))
        for name in ("attention_scores", "attention_pv"):
            assert ops[name].flops == 32 * 64 * 2 * met * 32 * 128
            assert ops[name].kv_bytes == 32 * 64 * 418 * 8 * 128 * B
            assert ops[name].activation_bytes == 32 * 64 * 418 * 4096 * B


def test_prefill_of_unequal_prompts_uses_both_moments(mixtral: ModelSpec):
    """Prompts of 100 and 300 tokens: mean 200, mean square 50,000; 100 * 101 / 2 + 300 * 301 / 2 pairs."""
    ops = prefill_attention(mixtral, FP16, 2.0, 200.0, 50_000.0)
    assert sum(op.flops for op in ops) == 32 * 2 * 2 * (100 * 101 // 2 + 300 * 301 // 2) * 32 * 128


def test_decode_attention_intensity_of_grouped_queries(mixtral: ModelSpec):
    """Per cached token: 4 * nq * d flops, 2 * nkv * d * 2 bytes: nq / nkv = 4 flops/byte, less for Q and the result."""
    ops = decode_attention(mixtral, FP16, 1.0, 1e6)
    assert sum(op.flops for op in ops) / sum(op.bytes for op in ops) == pytest.approx(4.0, rel=1e-5)
    short = decode_attention(mixtral, FP16, 1.0, 512.0)
    by_hand = (4 * 512 * 4096) / (2 * 512 * 1024 * B + 2 * 4096 * B)
    assert sum(op.flops for op in short) / sum(op.bytes for op in short) == pytest.approx(by_hand, rel=1e-14)


def test_gpt_oss_sliding_window():
    """gpt-oss-20b: 24 layers, 64 query and 8 KV heads of 64; every other layer sees 128 tokens at most."""
    model = load_model("gpt-oss-20b")
    assert [layer.attention.window for layer in model.layers[:2]] == [128, None]
    scores = by_name(decode_attention(model, FP16, 1.0, 1000.0))["attention_scores"]
    assert scores.flops == 2 * (12 * 128 + 12 * 1000) * 64 * 64
    assert scores.kv_bytes == (12 * 128 + 12 * 1000) * 8 * 64 * B
    below = by_name(decode_attention(model, FP16, 1.0, 100.0))["attention_scores"]
    assert below.flops == 2 * 24 * 100 * 64 * 64
    # prefill: the first 128 tokens meet 1 .. 128 keys, the other 872 meet 128
    prefill = by_name(prefill_attention(model, FP16, 1.0, 1000.0, 1e6))["attention_scores"]
    assert prefill.flops == 2 * (12 * (128 * 129 // 2 + 872 * 128) + 12 * 1000 * 1001 // 2) * 64 * 64
    assert Sizes(model, FP16).kv_bytes_per_sequence(1000.0) == (12 * 128 + 12 * 1000) * 2 * 8 * 64 * B


def test_llama_4_chunked_attention():
    """Llama 4 Scout: 48 layers, 40 heads of 128; three in four see only their own chunk of 8,192 tokens."""
    model = load_model("llama-4-scout")
    chunked = [layer.attention.window_is_chunk for layer in model.layers]
    assert (len(chunked), sum(chunked), model.layers[0].attention.window) == (48, 36, 8192)
    prefill = by_name(prefill_attention(model, FP16, 1.0, 20_000.0, 20_000.0**2))["attention_scores"]
    in_chunks = 2 * (8192 * 8193 // 2) + 3616 * 3617 // 2  # 20,000 = 2 x 8,192 + 3,616
    assert prefill.flops == 2 * (36 * in_chunks + 12 * 20_000 * 20_001 // 2) * 40 * 128


def test_deepseek_v3_latent_attention():
    """128 heads; latent 512, rotary key 64, non-rotary 128, value 128.

    Absorbed: a query is 512 + 64 wide, a value 512, and one latent of 576 serves K and V. Expanded: query and key
    192, value 128, for each head.
    """
    model = load_model("deepseek-v3")
    absorbed = by_name(decode_attention(model, FP16, 1.0, 1000.0, absorbed=True))
    assert absorbed["attention_scores"].flops == 61 * 2 * 1000 * 128 * (512 + 64)
    assert absorbed["attention_pv"].flops == 61 * 2 * 1000 * 128 * 512
    assert absorbed["attention_scores"].kv_bytes == 61 * 1000 * (512 + 64) * B
    assert absorbed["attention_pv"].kv_bytes == 0
    expanded = by_name(decode_attention(model, FP16, 1.0, 1000.0, absorbed=False))
    assert expanded["attention_scores"].flops == 61 * 2 * 1000 * 128 * (128 + 64)
    assert expanded["attention_pv"].flops == 61 * 2 * 1000 * 128 * 128
    assert expanded["attention_scores"].kv_bytes == 61 * 1000 * 128 * (128 + 64) * B
    assert expanded["attention_pv"].kv_bytes == 61 * 1000 * 128 * 128 * B
    assert Sizes(model, FP16).kv_bytes_per_token == 61 * (512 + 64) * B  # arXiv 2405.04434, table 1


def test_deepseek_v3_projections():
    """q: 7168 -> 1536 -> 128 * 192; kv: 7168 -> 512 + 64, 512 -> 128 * (128 + 128); o: 128 * 128 -> 7168."""
    ops = by_name(dense_operators(load_model("deepseek-v3"), FP16, 1.0, 1.0))
    per_layer = 7168 * 1536 + 1536 * 128 * 192 + 7168 * (512 + 64) + 512 * 128 * (128 + 128)
    assert ops["qkv"].flops == 61 * 2 * per_layer
    assert ops["attention_output"].flops == 61 * 2 * 128 * 128 * 7168


# --- identities ------------------------------------------------------------------------------------------------------


def not_multiplied(model: ModelSpec) -> int:
    """Parameters that are no matrix of a token's path: norms, biases, sinks, the embedding (unless it is the head)."""
    parameters = model.parameters
    rest = parameters["norm"] + (0 if model.tie_word_embeddings else parameters["embedding"])
    for layer in model.layers:
        attention, ffn, hidden = layer.attention, layer.ffn, model.hidden_size
        rest += sum(p.out_features for p in attention.linears(hidden) if p.bias)
        rest += attention.num_attention_heads if attention.sinks else 0
        linears = [*ffn.router_linears(hidden), *ffn.shared_linears(hidden), *ffn.dense_linears(hidden)]
        linears += [p for p in ffn.expert_linears(hidden) for _ in range(ffn.top_k)]
        rest += sum(p.out_features for p in linears if p.bias) + ffn.num_experts * ffn.correction_bias
    return rest + (model.vocab_size if model.lm_head_bias else 0)


def has_only_matrices_in_its_path(name: str) -> bool:
    model = load_model(name)
    return not model.encoder_layers and model.embedding_size == model.hidden_size and not model.position_parameters


@pytest.mark.parametrize("name", [n for n in shipped_models() if has_only_matrices_in_its_path(n)])
def test_flops_per_token_are_twice_the_active_parameters(name: str):
    """Each active weight is one multiplication and one addition for each token."""
    model = load_model(name)
    flops = sum(op.flops for op in dense_operators(model, FP16, 1.0, 1.0)) + expert_operator(model, FP16, 1.0).flops
    assert flops == 2 * (model.num_active_parameters - not_multiplied(model))


def test_most_shipped_models_are_covered_by_the_identity():
    """Left out: OPT (learned positions) and Switch (encoder, relative bias)."""
    left_out = {n for n in shipped_models() if not has_only_matrices_in_its_path(n)}
    assert left_out == {n for n in shipped_models() if n.startswith(("opt-", "switch-"))}


def test_intensity_and_bytes_add_up(mixtral: ModelSpec):
    for op in (*dense_operators(mixtral, FP16, 7.0, 7.0), expert_operator(mixtral, FP16, 7.0)):
        assert op.bytes == op.weight_bytes + op.kv_bytes + op.activation_bytes
        assert op.operational_intensity == op.flops / op.bytes


def test_arrays_of_batch_sizes_give_what_single_ones_give(mixtral: ModelSpec):
    tokens = np.array([1.0, 5.0, 300.0])
    together = [*dense_operators(mixtral, FP16, tokens, tokens), expert_operator(mixtral, FP16, tokens)]
    for i, count in enumerate(tokens.tolist()):
        single = [*dense_operators(mixtral, FP16, count, count), expert_operator(mixtral, FP16, count)]
        for many, one in zip(together, single, strict=True):
            assert np.broadcast_to(many.flops, 3)[i] == one.flops
            assert np.broadcast_to(many.bytes, 3)[i] == pytest.approx(one.bytes, rel=1e-14)
