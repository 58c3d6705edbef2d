"""Every way a model config can be wrong ends in a typed error that names the file and the field."""

import json
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from hrm.errors import HrmError, ModelConfigError, UnknownNameError
from hrm.spec.model_config import load_model, model_from_hf, shipped_models

GONE = object()


def shipped(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((resources.files("hrm.data.models") / f"{name}.json").read_text("utf-8"))
    return values


def changed(base: str, field: str, value: object) -> dict[str, Any]:
    """A shipped config with one (possibly nested, a.b) field replaced or removed."""
    values = shipped(base)
    *outer, last = field.split(".")
    target = values
    for key in outer:
        target = target[key]
    if value is GONE:
        del target[last]
    else:
        target[last] = value
    return values


BAD_FIELDS: list[tuple[str, str, object]] = [
    ("mixtral-8x7b", "model_type", GONE),
    ("mixtral-8x7b", "model_type", "mixtrall"),
    ("mixtral-8x7b", "model_type", 7),
    ("mixtral-8x7b", "model_type", None),
    ("mixtral-8x7b", "hidden_size", GONE),
    ("mixtral-8x7b", "hidden_size", "4096"),
    ("mixtral-8x7b", "hidden_size", 4096.0),
    ("mixtral-8x7b", "hidden_size", True),
    ("mixtral-8x7b", "hidden_size", [4096]),
    ("mixtral-8x7b", "hidden_size", 0),
    ("mixtral-8x7b", "hidden_size", -4096),
    ("mixtral-8x7b", "hidden_size", float("nan")),
    ("mixtral-8x7b", "hidden_size", float("inf")),
    ("mixtral-8x7b", "hidden_size", 10**30),
    ("mixtral-8x7b", "num_hidden_layers", 10**9),
    ("mixtral-8x7b", "num_hidden_layers", 0),
    ("mixtral-8x7b", "intermediate_size", GONE),
    ("mixtral-8x7b", "vocab_size", None),
    ("mixtral-8x7b", "num_local_experts", GONE),
    ("mixtral-8x7b", "num_local_experts", 10**7),
    ("mixtral-8x7b", "num_experts_per_tok", 9),
    ("mixtral-8x7b", "num_experts_per_tok", 0),
    ("mixtral-8x7b", "num_key_value_heads", 5),
    ("mixtral-8x7b", "num_attention_heads", 24),
    ("mixtral-8x7b", "head_dim", -1),
    ("mixtral-8x7b", "sliding_window", "4096"),
    ("mixtral-8x7b", "tie_word_embeddings", "false"),
    ("mixtral-8x7b", "torch_dtype", GONE),
    ("mixtral-8x7b", "torch_dtype", "bf16"),
    ("mixtral-8x7b", "torch_dtype", 16),
    ("mixtral-8x7b", "quantization_config", "awq"),
    ("mixtral-8x7b", "max_position_embeddings", -1),
    ("deepseek-v3", "quantization_config.quant_method", "awq"),
    ("deepseek-v3", "quantization_config.quant_method", GONE),
    ("deepseek-v3", "kv_lora_rank", GONE),
    ("deepseek-v3", "kv_lora_rank", 0),
    ("deepseek-v3", "q_lora_rank", -1),
    ("deepseek-v3", "v_head_dim", None),
    ("deepseek-v3", "first_k_dense_replace", -1),
    ("deepseek-v3", "n_shared_experts", 1.5),
    ("deepseek-v3", "moe_layer_freq", 0),
    ("deepseek-v3", "num_experts_per_tok", 257),
    ("dbrx", "attn_config", GONE),
    ("dbrx", "attn_config", [8]),
    ("dbrx", "attn_config.kv_n_heads", 7),
    ("dbrx", "ffn_config.moe_num_experts", "16"),
    ("dbrx", "ffn_config.moe_top_k", 17),
    ("dbrx", "n_heads", 47),
    ("llama-4-scout", "text_config", None),
    ("llama-4-scout", "text_config.hidden_size", 0),
    ("llama-4-scout", "text_config.no_rope_layers", [1, 0]),
    ("llama-4-scout", "text_config.moe_layers", 3),
    ("llama-4-scout", "text_config.moe_layers", [48]),
    ("llama-4-scout", "text_config.interleave_moe_layer_step", 0),
    ("gpt-oss-20b", "layer_types", ["full_attention"]),
    ("gpt-oss-20b", "layer_types", ["linear_attention"] * 24),
    ("gpt-oss-20b", "layer_types", [1] * 24),
    ("gpt-oss-20b", "layer_types", "full_attention"),
    ("gpt-oss-20b", "sliding_window", None),
    ("qwen3-30b-a3b", "head_dim", GONE),
    ("qwen3-30b-a3b", "mlp_only_layers", ["0"]),
    ("qwen3-30b-a3b", "mlp_only_layers", [48]),
    ("qwen3-30b-a3b", "decoder_sparse_step", 0),
    ("qwen1.5-moe-a2.7b", "use_sliding_window", True),
    ("qwen1.5-moe-a2.7b", "shared_expert_intermediate_size", GONE),
    ("glm-4.5", "use_qk_norm", 1),
    ("opt-1.3b", "ffn_dim", GONE),
    ("opt-1.3b", "max_position_embeddings", None),
    ("switch-base-128", "d_kv", 0),
    ("switch-base-128", "num_sparse_decoder_layers", 13),
    ("switch-base-128", "num_layers", GONE),
]


def assert_names(error: pytest.ExceptionInfo[HrmError], *parts: str) -> None:
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(("base", "field", "value"), BAD_FIELDS)
def test_a_bad_field_is_named_with_its_file(base: str, field: str, value: object) -> None:
    with pytest.raises(ModelConfigError) as error:
        model_from_hf(changed(base, field, value), base, "my/config.json")
    assert_names(error, "my/config.json", field)


@pytest.mark.parametrize("name", shipped_models())
def test_every_field_of_every_shipped_config_survives_any_junk(name: str) -> None:
    """Whatever stands in a field, the answer is a model or a ModelConfigError."""
    junk: list[object] = [GONE, None, "", "x", -1, 0, 10**40, float("nan"), [], [None], {}, True, 0.5]
    for field in shipped(name):
        for value in junk:
            try:
                spec = model_from_hf(changed(name, field, value), name, "f")
            except ModelConfigError as error:
                assert "f: " in str(error)
            else:
                assert spec.num_parameters > 0


@pytest.mark.parametrize("value", [[], [shipped("mixtral-8x7b")], "mixtral", None, 3])
def test_anything_but_an_object_is_refused(value: Any) -> None:
    with pytest.raises(ModelConfigError) as error:
        model_from_hf(value, "x", "c.json")
    assert_names(error, "c.json", "JSON object")


BAD_FILES: list[tuple[str, bytes, str]] = [
    ("empty", b"", "empty"),
    ("blank", b" \n\t", "empty"),
    ("binary", bytes(range(256)), "not text"),
    ("nul", b'{"model_type": "mixtral"\x00}', "not text"),
    ("truncated", b'{"model_type": "mixtral",', "JSON"),
    ("yaml", b"model_type: mixtral\n", "JSON"),
    ("list", b"[1, 2]", "JSON object"),
    ("number", b"7", "JSON object"),
    ("deep", b'{"a":' * 100_000, "JSON"),
    ("huge integer", b'{"hidden_size": ' + b"9" * 10_000 + b"}", "JSON"),
    ("twice", b'{"model_type": "mixtral", "model_type": "dbrx"}', "twice"),
    ("no model_type", b"{}", "model_type"),
    ("nan", json.dumps(changed("mixtral-8x7b", "hidden_size", float("nan"))).encode(), "hidden_size"),
]


@pytest.mark.parametrize(("content", "says"), [row[1:] for row in BAD_FILES], ids=[row[0] for row in BAD_FILES])
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    for path in (file, tmp_path):
        with pytest.raises(ModelConfigError) as error:
            load_model(str(path))
        assert_names(error, str(file), says)


def test_a_directory_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelConfigError) as error:
        load_model(str(tmp_path))
    assert_names(error, str(tmp_path), "config.json")


def test_a_config_that_is_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelConfigError) as error:
        load_model(str(tmp_path))
    assert_names(error, "config.json", "directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("{}")
    file.chmod(0)
    with pytest.raises(ModelConfigError) as error:
        load_model(str(file))
    assert_names(error, "config.json", "cannot be read")


def test_a_file_that_fails_to_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.json"
    file.write_text("{}")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ModelConfigError) as error:
        load_model(str(file))
    assert_names(error, "config.json", "Permission denied")


@pytest.mark.parametrize("path", ["/no/such/config.json", "./nothing", "nothing.json"])
def test_a_missing_file_is_named(path: str) -> None:
    with pytest.raises(ModelConfigError) as error:
        load_model(path)
    assert_names(error, path, "no such file")


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("mixtral-8x7", "mixtral-8x7b"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral-8x7b"),
        ("deepseek", "deepseek-v3"),
        ("qwen3-30b", "qwen3-30b-a3b"),
        ("gpt-4", "known"),
        ("", "known"),
        ("mixtral\x00", "known"),
    ],
)
def test_an_unknown_name_lists_close_ones(name: str, close: str) -> None:
    with pytest.raises(UnknownNameError) as error:
        load_model(name)
    assert_names_close(error, close)


def assert_names_close(error: pytest.ExceptionInfo[UnknownNameError], close: str) -> None:
    hint = str(error.value).split("known: ")[0] if close != "known" else str(error.value)
    assert close in hint


def test_a_name_too_long_for_a_path_is_a_typed_error() -> None:
    with pytest.raises(HrmError):
        load_model("x" * 5000)


def test_a_loop_of_links_is_a_typed_error(tmp_path: Path) -> None:
    link: Path = tmp_path / "config.json"
    link.symlink_to(link)
    with pytest.raises(HrmError):
        load_model(str(link))
    with pytest.raises(HrmError):
        load_model(str(tmp_path))


Writer = Callable[[Path], str]


@pytest.mark.parametrize("write", [lambda p: str(p), lambda p: str(p / "config.json")])
def test_a_good_file_is_named_after_its_directory(tmp_path: Path, write: Writer) -> None:
    directory = tmp_path / "my-model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(shipped("mixtral-8x7b")))
    spec = load_model(write(directory))
    assert spec.name == "my-model"
    assert spec.layers == load_model("Mixtral-8x7B").layers


def test_every_shipped_config_states_its_source() -> None:
    assert len(shipped_models()) >= 23
    for name in shipped_models():
        assert shipped(name)["_source"]
        assert load_model(name).name == name
