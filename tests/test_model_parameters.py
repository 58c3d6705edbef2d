"""Parameter counts against `transformers`, which builds every shipped model on the meta device, and by hand."""

import json
from collections import Counter
from importlib import resources
from typing import Any

import pytest

from hrm.spec.model import PARAMETER_CLASSES, AttentionSpec, FfnSpec, LayerSpec, ModelSpec
from hrm.spec.model_config import load_model, model_from_hf, shipped_models

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# What a name of the Hugging Face module tree belongs to: first match wins. Read off the modules, not off hrm.
CLASS_OF_NAME: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("lm_head", ("lm_head.",)),
    ("embedding", ("embed_tokens.", "embed_positions.", "wte.", "shared.weight", "project_in.", "project_out.")),
    ("shared_experts", (".shared_expert.", ".shared_experts.", ".shared_expert_gate.")),
    ("experts", (".experts.",)),
    ("router", (".router.", ".mlp.gate.")),
    ("attention", (".self_attn.", ".attn.", ".SelfAttention.", ".EncDecAttention.")),
    ("dense_ffn", (".mlp.", ".feed_forward.", ".fc1.", ".fc2.")),
)


def hf_config_values(name: str) -> dict[str, Any]:
    text = (resources.files("hrm.data.models") / f"{name}.json").read_text(encoding="utf-8")
    values: dict[str, Any] = json.loads(text)
    del values["_source"]
    values.pop("quantization_config", None)  # how tensors are stored, not how many there are
    return values


def hf_model(name: str) -> Any:
    """The whole model without memory. Llama 4 is the text model only, as in hrm."""
    values = hf_config_values(name)
    if values["model_type"] == "llama4":
        values = values["text_config"]
    family = values.pop("model_type")
    config = transformers.AutoConfig.for_model(family, **values)
    encoder_decoder = family == "switch_transformers"
    auto = transformers.AutoModelForSeq2SeqLM if encoder_decoder else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config)


def hf_counts(model: Any) -> Counter[str]:
    """Elements per class: each parameter once (tied ones are one object), and e_score_correction_bias.

    That bias is a buffer in `transformers` but a tensor of the checkpoint. Other buffers (rotary frequencies) are
    computed, so they are not counted.
    """
    counts: Counter[str] = Counter(dict.fromkeys(PARAMETER_CLASSES, 0))
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        if id(parameter) not in seen:
            seen.add(id(parameter))
            counts[class_of(name)] += parameter.numel()
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            counts["router"] += buffer.numel()
    return counts


def class_of(name: str) -> str:
    owner = name.rsplit(".", 2)[-2]
    if "norm" in owner:
        return "norm"
    return next(kind for kind, parts in CLASS_OF_NAME if any(part in name for part in parts))


@pytest.mark.parametrize("name", shipped_models())
def test_every_tensor_class_equals_transformers(name: str) -> None:
    expected = hf_counts(hf_model(name))
    spec = load_model(name)
    assert spec.parameters == dict(expected)
    assert spec.num_parameters == sum(expected.values())


def small(base: str, **changes: Any) -> tuple[ModelSpec, Any]:
    """A shipped config with fields changed, in both worlds."""
    values = {**hf_config_values(base), **changes}
    family = values["model_type"]
    config = transformers.AutoConfig.for_model(family, **{k: v for k, v in values.items() if k != "model_type"})
    with torch.device("meta"):
        seq2seq = family == "switch_transformers"
        auto = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
        return model_from_hf(values, base, "changed"), auto.from_config(config)


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        ("opt-1.3b", {"word_embed_proj_dim": 512, "do_layer_norm_before": False}),  # OPT-350m's shape
        ("opt-1.3b", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
        ("llama-3-8b", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        ("llama-3-8b", {"head_dim": 64, "num_key_value_heads": None}),
        ("mixtral-8x7b", {"head_dim": 96, "num_hidden_layers": 2}),
        ("qwen3-30b-a3b", {"mlp_only_layers": [1, 3], "decoder_sparse_step": 2}),
        ("qwen3-30b-a3b", {"attention_bias": True}),
        ("qwen1.5-moe-a2.7b", {"decoder_sparse_step": 3, "qkv_bias": False}),
        ("olmoe-1b-7b", {"attention_bias": True, "num_key_value_heads": 4}),
        ("phi-3.5-moe", {"attention_bias": False, "lm_head_bias": False}),
        ("deepseek-v2-lite", {"q_lora_rank": 384, "attention_bias": True, "first_k_dense_replace": 3}),
        ("deepseek-v3", {"q_lora_rank": None, "num_hidden_layers": 4, "n_shared_experts": 3}),
        ("glm-4.5", {"attention_bias": False, "num_hidden_layers": 4, "first_k_dense_replace": 4}),
        ("gpt-oss-20b", {"attention_bias": False, "num_hidden_layers": 2, "layer_types": None}),
        ("switch-base-128", {"num_sparse_decoder_layers": 0, "num_experts": 4, "router_bias": True}),
        ("switch-base-128", {"num_sparse_encoder_layers": 12, "num_decoder_layers": 6, "num_experts": 4}),
    ],
)
def test_variants_equal_transformers(base: str, changes: dict[str, Any]) -> None:
    spec, model = small(base, **changes)
    assert spec.parameters == dict(hf_counts(model))


def test_llama4_interleaved_layers_equal_transformers() -> None:
    """Llama 4 Maverick: every other layer dense, of twice the width."""
    values = hf_config_values("llama-4-scout")
    text = {**values["text_config"], "interleave_moe_layer_step": 2, "num_local_experts": 128}
    spec = model_from_hf({**values, "text_config": text}, "maverick", "changed")
    family = text.pop("model_type")
    with torch.device("meta"):
        config = transformers.AutoConfig.for_model(family, **text)
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert spec.parameters == dict(hf_counts(model))
    assert (spec.num_moe_layers, spec.num_layers) == (24, 48)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("mixtral-8x7b", 46_702_792_704),  # safetensors index of mistralai/Mixtral-8x7B-v0.1
        ("mixtral-8x22b", 140_620_634_112),  # safetensors index of mistralai/Mixtral-8x22B-v0.1
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("deepseek-v3", 671_026_419_200),  # headers of the 163 published shards, without the MTP layer
    ],
)
def test_published_totals(name: str, published: int) -> None:
    assert load_model(name).num_parameters == published


@pytest.mark.parametrize(
    ("name", "billions", "rounding"),
    [
        ("dbrx", 132, 0.5),  # databricks blog: 132B total, 36B active
        ("deepseek-v2", 236, 0.5),  # arXiv 2405.04434
        ("deepseek-v2-lite", 15.7, 0.05),
        ("deepseek-v3", 671, 0.5),  # arXiv 2412.19437
        ("glm-4.5-air", 106, 1.0),  # arXiv 2508.06471
        ("gpt-oss-20b", 20.9, 0.05),  # gpt-oss model card, table 1
        ("gpt-oss-120b", 116.8, 0.05),
        ("llama-4-scout", 109, 2.0),  # 109B with the vision tower, which hrm leaves out
        ("olmoe-1b-7b", 6.9, 0.05),  # arXiv 2409.02060
        ("phi-3.5-moe", 42, 0.5),  # model card
        ("qwen1.5-moe-a2.7b", 14.3, 0.05),  # model card
        ("qwen3-235b-a22b", 235, 0.5),
        ("opt-30b", 30, 0.5),
        ("opt-66b", 66, 0.5),
        ("opt-175b", 175, 0.5),
    ],
)
def test_published_rounded_totals(name: str, billions: float, rounding: float) -> None:
    assert load_model(name).num_parameters / 1e9 == pytest.approx(billions, abs=rounding)


def test_mixtral_active_parameters_by_hand() -> None:
    attention = 4096 * 4096 * 2 + 4096 * 1024 * 2
    expert = 3 * 4096 * 14336
    layer = attention + 2 * 4096 + 4096 * 8 + 2 * expert
    assert 32 * layer + 2 * 32000 * 4096 + 4096 == 12_879_925_248
    assert load_model("mixtral-8x7b").num_active_parameters == 12_879_925_248


def test_qwen3_active_parameters_by_hand() -> None:
    attention = 2048 * 4096 * 2 + 2048 * 512 * 2
    layer = attention + 2 * 2048 + 2 * 128 + 2048 * 128 + 8 * 3 * 2048 * 768
    active = 48 * layer + 2 * 151936 * 2048 + 2048
    assert active == pytest.approx(3.3e9, abs=0.1e9)  # model card: 3.3B activated
    assert load_model("qwen3-30b-a3b").num_active_parameters == active


def test_deepseek_v3_active_parameters_by_hand() -> None:
    """37B, of which 0.9B are the embedding (arXiv 2412.19437 section 4.2: 37B activated)."""
    queries = 7168 * 1536 + 1536 * 128 * 192
    latent = 7168 * (512 + 64) + 512 * 128 * (128 + 128)
    attention = queries + latent + 128 * 128 * 7168
    norms = 2 * 7168 + 1536 + 512
    moe = 256 * 7168 + 256 + (8 + 1) * 3 * 7168 * 2048
    dense = 3 * 7168 * 18432
    active = 61 * (attention + norms) + 58 * moe + 3 * dense + 2 * 129280 * 7168 + 7168
    assert active == pytest.approx(37.5e9, abs=0.1e9)
    assert load_model("deepseek-v3").num_active_parameters == active


def test_gpt_oss_active_parameters_against_the_model_card() -> None:
    """Table 1 of the card: 3.61B and 5.13B active, which leave the embedding out."""
    for name, billions in (("gpt-oss-20b", 3.61), ("gpt-oss-120b", 5.13)):
        spec = load_model(name)
        active = spec.num_active_parameters - spec.parameters["embedding"]
        assert active / 1e9 == pytest.approx(billions, abs=0.005)


def test_switch_activates_as_much_as_t5_base_and_its_routers() -> None:
    """T5-base has 222,903,552 parameters (google-t5/t5-base), Switch-Base the same per token (arXiv 2101.03961)."""
    assert load_model("switch-base-128").num_active_parameters == 222_903_552 + 12 * 768 * 128


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mixtral-8x7b", 32 * 2 * 8 * 128 * 2),  # 131072
        ("deepseek-v3", 61 * 576 * 2),  # 70272
        ("deepseek-v2-lite", 27 * 576 * 2),
        ("qwen3-30b-a3b", 48 * 2 * 4 * 128 * 2),
        ("gpt-oss-20b", 24 * 2 * 8 * 64 * 2),
        ("opt-30b", 48 * 2 * 7168 * 2),
        ("switch-base-128", 12 * 2 * 768 * 2),  # the decoder's self-attention
    ],
)
def test_kv_bytes_per_token_by_hand(name: str, expected: int) -> None:
    assert load_model(name).kv_bytes_per_token(2) == expected


def test_layers_that_differ() -> None:
    windows = [layer.attention.window for layer in load_model("gpt-oss-20b").layers]
    assert windows == [128, None] * 12
    scout = load_model("llama-4-scout").layers
    assert [layer.attention.window for layer in scout] == [8192, 8192, 8192, None] * 12
    assert [layer.attention.window_is_chunk for layer in scout] == [True, True, True, False] * 12
    assert [layer.ffn.is_moe for layer in load_model("deepseek-v3").layers] == [False] * 3 + [True] * 58
    switch = load_model("switch-base-128")
    assert [layer.ffn.is_moe for layer in switch.layers] == [False, True] * 6
    assert [layer.ffn.is_moe for layer in switch.encoder_layers] == [False, True] * 6
    assert all(layer.cross_attention for layer in switch.layers)
    assert load_model("mixtral-8x7b").layers[0].attention.window is None


def test_layer_types_that_gpt_oss_leaves_out_are_those_of_transformers() -> None:
    spec, model = small("gpt-oss-20b", layer_types=None, num_hidden_layers=5)
    slides = [kind == "sliding_attention" for kind in model.config.layer_types]
    assert [layer.attention.window is not None for layer in spec.layers] == slides


def test_dtypes() -> None:
    dtypes = {name: (load_model(name).dtype, load_model(name).expert_dtype) for name in shipped_models()}
    assert dtypes["mixtral-8x7b"] == ("bf16", None)
    assert dtypes["deepseek-v3"] == ("bf16", "fp8")
    assert dtypes["gpt-oss-20b"] == ("bf16", "mxfp4")
    assert dtypes["opt-30b"] == ("fp16", None)
    assert dtypes["switch-base-128"] == ("fp32", None)


def test_counts_handed_out_are_copies() -> None:
    spec = load_model("mixtral-8x7b")
    spec.parameters["experts"] = 0
    assert spec.num_parameters == 46_702_792_704


def test_widths_of_an_mla() -> None:
    linears = load_model("deepseek-v3").layers[0].attention.linears(7168)
    assert [(x.name, x.in_features, x.out_features) for x in linears] == [
        ("q_a_proj", 7168, 1536),
        ("q_b_proj", 1536, 128 * 192),
        ("kv_a_proj_with_mqa", 7168, 576),
        ("kv_b_proj", 512, 128 * 256),
        ("o_proj", 128 * 128, 7168),
    ]
    lite = load_model("deepseek-v2-lite").layers[0].attention.linears(2048)
    assert lite[0].name == "q_proj" and lite[0].out_features == 16 * 192


def test_parts_of_a_layer_by_hand() -> None:
    attention = AttentionSpec(4, 2, 8, 8, q_bias=True, kv_bias=True, o_bias=True, sinks=True)
    assert attention.parameters(10) == (10 * 32 + 32) + 2 * (10 * 16 + 16) + (32 * 10 + 10) + 4
    ffn = FfnSpec(6, 2, 5, 7, True, bias=True, router_bias=True, correction_bias=True, shared_expert_gate=True)
    assert ffn.expert_parameters(10) == 2 * (10 * 5 + 5) + 5 * 10 + 10
    assert ffn.shared_parameters(10) == 3 * 10 * 7 + 10
    assert ffn.router_parameters(10) == 10 * 6 + 6 + 6
    assert ffn.dense_parameters(10) == 0
    layer = LayerSpec(attention, ffn, 20)
    assert layer.idle_parameters(10) == 4 * ffn.expert_parameters(10)
    assert layer.active_parameters(10) == sum(layer.parameters(10).values()) - 4 * ffn.expert_parameters(10)
