"""A plain forward pass composed of a family's functions against transformers, and what a checkpoint gives."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_checkpoints import EOS, FAMILIES, VOCAB_SIZE, save_tiny, tiny_tokenizer
from torch import Tensor
from torch.nn.functional import embedding, linear, scaled_dot_product_attention, silu
from transformers import AutoModelForCausalLM, PreTrainedModel

from hrm.errors import HrmError, ModelConfigError
from hrm.spec.model_config import load_model
from runtime.checkpoint.checkpoint import Checkpoint
from runtime.checkpoint.expected import expected_tensors
from runtime.checkpoint.source import WeightSource
from runtime.checkpoint.synthetic import synthetic_checkpoint
from runtime.checkpoint.tokenizer import load_tokenizer
from runtime.models.common import global_names, global_shapes, lm_head, rotary
from runtime.models.family import Routed
from runtime.models.registry import family_of

TOKENS = torch.tensor([1, 5, 9, 30, 77, 127, 3, 3, 64, 12, 90])


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    directory = tmp_path_factory.mktemp("tiny") / request.param
    return directory, save_tiny(request.param, directory)


def attend(source: WeightSource, qkv: Tensor) -> Tensor:
    """qkv [S, N + 2 K, D] of one sequence -> [S, N D], causal."""
    config = source.config
    sizes = [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads]
    q, k, v = (part.transpose(0, 1) for part in qkv.split(sizes, dim=1))
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(0, 1).flatten(1)


def routed_experts(source: WeightSource, layer: int, routed: Routed) -> Tensor:
    """Output of a layer [S, H]."""
    config, total = source.config, routed.hidden.clone()
    wide = (config.moe_intermediate_size, config.hidden_size)
    if routed.experts is None:
        return total
    for expert in range(config.num_experts):
        names = source.family.expert_names(layer, expert)
        gate, up, down = (source.tensor(n, s) for n, s in zip(names, (wide, wide, wide[::-1]), strict=True))
        token, place = torch.where(routed.experts == expert)
        x = routed.normed[token]
        out = linear(silu(linear(x, gate)) * linear(x, up), down) * routed.weights[token, place, None]
        total.index_add_(0, token, out.to(total.dtype))
    return total


def forward(source: WeightSource, tokens: Tensor) -> Tensor:
    """tokens [S] -> logits [S, V]."""
    config, family = source.config, source.family
    shapes = global_shapes(config)
    outer = {local: source.tensor(name, shapes[local]) for local, name in global_names(config).items()}
    cos, sin = rotary(config, torch.arange(len(tokens)), torch.device("cpu"), source.dtype)
    hidden = embedding(tokens, outer["embedding"])
    for layer in range(config.num_layers):
        shapes, names = family.layer_shapes(config, layer), family.layer_names(config, layer)
        weights = {local: source.tensor(names[local], shapes[local]) for local in shapes}
        qkv = family.pre_attention(config, weights, hidden, cos, sin)
        assert qkv.is_contiguous()
        hidden = routed_experts(source, layer, family.post_attention(config, weights, hidden, attend(source, qkv)))
    return lm_head(config, outer["final_norm"], outer["lm_head"], hidden)


def logits_of(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens[None]).logits[0].float()


def test_logits_equal_those_of_transformers(saved: tuple[Path, PreTrainedModel]) -> None:
    directory, model = saved
    found, wanted = forward(Checkpoint.open(directory), TOKENS), logits_of(model, TOKENS)
    assert found.dtype == torch.float32
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_no_tokens_are_a_pass_too(saved: tuple[Path, PreTrainedModel]) -> None:
    assert forward(Checkpoint.open(saved[0]), TOKENS[:0]).shape == (0, VOCAB_SIZE)


def test_greedy_tokens_equal_those_of_generate(saved: tuple[Path, PreTrainedModel]) -> None:
    directory, model = saved
    checkpoint, tokens = Checkpoint.open(directory), TOKENS
    wanted = model.generate(TOKENS[None], max_new_tokens=10, min_new_tokens=10, do_sample=False, eos_token_id=None)[0]
    for _ in range(10):
        tokens = torch.cat((tokens, forward(checkpoint, tokens)[-1:].argmax(-1)))
    assert tokens.tolist() == wanted.tolist()


def test_expected_tensors_are_exactly_those_of_the_file(saved: tuple[Path, PreTrainedModel]) -> None:
    directory, _ = saved
    checkpoint = Checkpoint.open(directory)
    with safe_open(directory / "model.safetensors", "pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert dict(expected_tensors(checkpoint.family, checkpoint.config)) == stored


def test_local_names_and_shapes_have_the_same_keys(saved: tuple[Path, PreTrainedModel]) -> None:
    checkpoint = Checkpoint.open(saved[0])
    for layer in range(checkpoint.config.num_layers):
        shapes = checkpoint.family.layer_shapes(checkpoint.config, layer)
        assert checkpoint.family.layer_names(checkpoint.config, layer).keys() == shapes.keys()


def test_spec_and_config_describe_the_same_model(saved: tuple[Path, PreTrainedModel]) -> None:
    directory, model = saved
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.spec == load_model(str(directory))
    assert checkpoint.spec.num_parameters == sum(p.numel() for p in model.parameters())
    assert checkpoint.config.name == directory.name
    assert checkpoint.config.eos_token_ids == (EOS,)
    assert checkpoint.config.moe_layers == tuple(layer.ffn.is_moe for layer in checkpoint.spec.layers)


def test_fused_experts_are_read_in_slices(saved: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    directory, model = saved
    model.save_pretrained(tmp_path, save_original_format=False)
    fused, plain = Checkpoint.open(tmp_path), Checkpoint.open(directory)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert any(name.endswith("gate_up_proj") for name in file.keys())  # noqa: SIM118
    for name, shape in expected_tensors(plain.family, plain.config):
        assert torch.equal(fused.tensor(name, shape), plain.tensor(name, shape)), name


def test_shards_are_read_as_one(saved: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    directory, model = saved
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    sharded, single = Checkpoint.open(tmp_path), Checkpoint.open(directory)
    for name, shape in expected_tensors(single.family, single.config):
        assert torch.equal(sharded.tensor(name, shape), single.tensor(name, shape)), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_transformers(dtype: torch.dtype, saved: tuple[Path, PreTrainedModel]) -> None:
    directory, _ = saved
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    checkpoint = Checkpoint.open(directory, dtype)
    assert checkpoint.dtype == dtype
    wanted = logits_of(model, TOKENS)
    # Rounding may change the experts of a token, so the typical difference is what can be compared.
    assert (forward(checkpoint, TOKENS) - wanted).abs().median() < 0.02 * wanted.std()


def test_dtype_is_that_of_the_weights_whatever_the_config_says(tmp_path: Path) -> None:
    save_tiny("olmoe", tmp_path, dtype=torch.bfloat16)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"bfloat16"', '"float32"'))
    checkpoint = Checkpoint.open(tmp_path)
    assert (checkpoint.dtype, checkpoint.spec.dtype) == (torch.bfloat16, "bf16")
    assert checkpoint.tensor("model.norm.weight", (32,)).dtype == torch.bfloat16


def test_read_into_writes_where_told(saved: tuple[Path, PreTrainedModel]) -> None:
    checkpoint = Checkpoint.open(saved[0])
    out = torch.empty(VOCAB_SIZE, checkpoint.config.hidden_size, dtype=torch.bfloat16)
    checkpoint.read_into("lm_head.weight", out)
    assert torch.equal(out, checkpoint.tensor("lm_head.weight", tuple(out.shape)).bfloat16())


def test_a_tied_lm_head_is_the_embedding(tmp_path: Path) -> None:
    model = save_tiny("qwen3_moe", tmp_path)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    found, wanted = forward(Checkpoint.open(tmp_path), TOKENS), logits_of(model, TOKENS)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_earlier_spellings_of_the_config_are_read(tmp_path: Path) -> None:
    raw = dict(synthetic_checkpoint("qwen3-30b-a3b").raw)
    old = family_of(raw, "old").read_config(raw, "old")
    new = {**raw, "dtype": raw.pop("torch_dtype"), "num_local_experts": raw.pop("num_experts")}
    new["rope_parameters"] = {"rope_theta": new.pop("rope_theta"), "rope_type": "default"}
    assert family_of(new, "new").read_config(new, "new") == old
    assert (old.num_experts, old.top_k, old.rope_theta, old.dtype) == (128, 8, 1e6, torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sliding_window": 4096}, "sliding_window"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.type"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}}, "rope_parameters.rope_type"),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": None}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"layer_types": ["sliding_attention"] * 32}, "layer_types"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"eos_token_id": [2, -1]}, "eos_token_id"),
        ({"model_type": "llama"}, "mixtral"),
        ({"model_type": None}, "model_type"),
        ({"model_type": ["mixtral"]}, "model_type"),
    ],
)
def test_what_the_runtime_cannot_compute_is_refused(change: dict[str, object], named: str) -> None:
    raw = {**synthetic_checkpoint("mixtral-8x7b").raw, **change}
    with pytest.raises(ModelConfigError, match=named) as refused:
        synthetic_checkpoint(raw)
    assert "config" in str(refused.value)


def test_a_window_as_long_as_the_context_is_accepted() -> None:
    raw = {**synthetic_checkpoint("mixtral-8x7b").raw, "sliding_window": 32768}
    assert synthetic_checkpoint(raw).config.max_position_embeddings == 32768


@pytest.mark.parametrize("name", ["mixtral-8x7b", "mixtral-8x22b", "qwen3-30b-a3b", "olmoe-1b-7b", "qwen1.5-moe-a2.7b"])
def test_expected_tensors_have_as_many_elements_as_the_spec_counts(name: str) -> None:
    source = synthetic_checkpoint(name)
    elements = sum(torch.Size(shape).numel() for _, shape in expected_tensors(source.family, source.config))
    assert elements == source.spec.num_parameters


def test_synthetic_weights_depend_on_seed_and_name_alone(tmp_path: Path) -> None:
    save_tiny("qwen2_moe", tmp_path)
    source, again = (synthetic_checkpoint(str(tmp_path), num_layers=2, seed=3) for _ in range(2))
    assert (source.config.num_layers, source.spec.num_layers, source.config.moe_layers) == (2, 2, (True, False))
    assert torch.equal(forward(source, TOKENS), forward(again, TOKENS))
    assert forward(source, TOKENS).isfinite().all()
    other = synthetic_checkpoint(str(tmp_path), seed=4)
    names = ("model.layers.0.mlp.experts.0.up_proj.weight", "model.layers.0.mlp.experts.1.up_proj.weight")
    first, second = (source.tensor(name, (32, 64)) for name in names)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other.tensor(names[0], (32, 64)))
    assert first.std().item() == pytest.approx(64**-0.5, rel=0.1)
    assert torch.equal(source.tensor("model.norm.weight", (64,)), torch.ones(64))


def test_synthetic_tensors_larger_than_the_block_go_round_it() -> None:
    source = synthetic_checkpoint("mixtral-8x7b", num_layers=1)
    weight = source.tensor("model.layers.0.block_sparse_moe.experts.0.w1.weight", (14336, 4096))
    assert weight.dtype == torch.bfloat16
    assert weight.float().std().item() == pytest.approx(4096**-0.5, rel=0.01)
    assert not torch.equal(weight[0], weight[4096])


@pytest.mark.parametrize(("name", "layers"), [("mixtral-8x7b", 0), ("mixtral-8x7b", 33), ("mixtral-9x9b", 1), ("", 1)])
def test_synthetic_models_that_do_not_exist_are_refused(name: str, layers: int) -> None:
    with pytest.raises(HrmError):
        synthetic_checkpoint(name, num_layers=layers)


def test_tokenizer_agrees_with_transformers(tmp_path: Path) -> None:
    save_tiny("mixtral", tmp_path)
    tokenizer, wanted = load_tokenizer(tmp_path), tiny_tokenizer()
    text = "what is the fox?"
    assert tokenizer.encode(text) == wanted.encode(text)
    assert tokenizer.encode(text, add_special_tokens=False) == wanted.encode(text, add_special_tokens=False)
    assert tokenizer.decode([*tokenizer.encode(text), EOS]) == text


def test_generation_config_decides_where_generation_ends(tmp_path: Path) -> None:
    save_tiny("olmoe", tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert Checkpoint.open(tmp_path).config.eos_token_ids == (7, 9)
    assert replace(Checkpoint.open(tmp_path).config, eos_token_ids=()).eos_token_ids == ()
