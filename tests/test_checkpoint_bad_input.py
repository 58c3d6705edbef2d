"""Every fault of a checkpoint directory is one clear error that names the file and what to do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import save_tiny

from hrm.errors import CheckpointError, HrmError
from runtime.checkpoint.checkpoint import Checkpoint
from runtime.checkpoint.tokenizer import load_tokenizer

EXPERT = "model.layers.1.block_sparse_moe.experts.3.w2.weight"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint in one file, the same in shards."""
    root = tmp_path_factory.mktemp("originals")
    model = save_tiny("mixtral", root / "single")
    model.save_pretrained(root / "sharded", max_shard_size="40KB")
    return root


@pytest.fixture
def single(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "single", tmp_path / "single"))


@pytest.fixture
def sharded(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "sharded", tmp_path / "sharded"))


def refusal(directory: Path) -> str:
    with pytest.raises(HrmError) as refused:
        Checkpoint.open(directory)
    message = str(refused.value)
    assert str(directory) in message
    assert "\n" not in message
    return message


def edit_weights(directory: Path, **changes: torch.Tensor | None) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    tensors.update({name: value for name, value in changes.items() if value is not None})
    for name in [name for name, value in changes.items() if value is None]:
        del tensors[name]
    save_file(tensors, file)


def edit_config(directory: Path, **changes: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_no_directory(tmp_path: Path) -> None:
    assert "no such directory" in refusal(tmp_path / "nowhere")


def test_a_file_instead_of_a_directory(single: Path) -> None:
    assert "is not a directory" in refusal(single / "config.json")


def test_no_config(single: Path) -> None:
    (single / "config.json").unlink()
    assert "holds no config.json" in refusal(single)


@pytest.mark.parametrize("text", ["{", "", "[]", '"mixtral"', "\x00", "[" * 100_000])
def test_malformed_config(single: Path, text: str) -> None:
    (single / "config.json").write_text(text)
    assert "config.json" in refusal(single)


def test_unknown_architecture(single: Path) -> None:
    edit_config(single, model_type="mamba")
    message = refusal(single)
    assert "'mamba'" in message
    assert "mixtral, olmoe, qwen2_moe, qwen3_moe" in message


def test_no_weights(single: Path) -> None:
    (single / "model.safetensors").rename(single / "pytorch_model.bin")
    message = refusal(single)
    assert "model.safetensors" in message
    assert "pytorch_model.bin is in another format" in message


def test_missing_shard(sharded: Path) -> None:
    shard = min(sharded.glob("model-*.safetensors"))
    shard.unlink()
    message = refusal(sharded)
    assert f"{shard}: is missing" in message
    assert "download the missing shard" in message


def test_index_that_names_a_tensor_its_shard_lacks(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shards = sorted(set(content["weight_map"].values()))
    content["weight_map"][EXPERT] = next(name for name in shards if name != content["weight_map"][EXPERT])
    index.write_text(json.dumps(content))
    assert EXPERT in refusal(sharded)


@pytest.mark.parametrize("content", ["{}", "nothing", '{"weight_map": {"a": 3}}', '{"weight_map": []}'])
def test_malformed_index(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    assert "index.json" in refusal(sharded)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, -1])
def test_truncated_weights(single: Path, kept: float) -> None:
    file = single / "model.safetensors"
    whole = file.read_bytes()
    length = int(len(whole) * kept) if isinstance(kept, float) else kept
    file.write_bytes(whole[:length])
    message = refusal(single)
    assert f"{file}: is truncated or damaged" in message
    assert "download it again" in message


@pytest.mark.parametrize("header", [b"[]", b"{", b'{"a": 1}', b'{"a": {"dtype": "F32"}}', b'{"a": []}', b"\xff"])
def test_damaged_header(single: Path, header: bytes) -> None:
    file = single / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "truncated or damaged" in refusal(single)


def test_empty_safetensors(single: Path) -> None:
    (single / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert "hold no tensors" in refusal(single)


@pytest.mark.parametrize("name", [EXPERT, "lm_head.weight", "model.layers.0.self_attn.q_proj.weight"])
def test_missing_tensor(single: Path, name: str) -> None:
    edit_weights(single, **{name: None})
    assert f"no safetensors file holds {name}" in refusal(single)


@pytest.mark.parametrize("name", [EXPERT, "model.norm.weight"])
def test_wrong_shape(single: Path, name: str) -> None:
    edit_weights(single, **{name: torch.zeros(33, 48)})
    message = refusal(single)
    assert f"{name} is [33, 48], but" in message
    assert "by config.json" in message


def test_config_of_another_size(single: Path) -> None:
    edit_config(single, vocab_size=256)
    assert "model.embed_tokens.weight is [128, 32], but [256, 32]" in refusal(single)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.float64])
def test_unsupported_dtype_of_one_tensor(single: Path, dtype: torch.dtype) -> None:
    edit_weights(single, **{EXPERT: torch.zeros(32, 48).to(dtype)})
    message = refusal(single)
    assert f"{EXPERT} is stored as" in message
    assert "use the unquantised checkpoint" in message


def test_unsupported_dtype_of_all(single: Path) -> None:
    tensors = load_file(single / "model.safetensors")
    save_file({name: t.to(torch.float8_e4m3fn) for name, t in tensors.items()}, single / "model.safetensors")
    assert "most weights are stored as F8_E4M3" in refusal(single)


def test_unknown_tensor_and_shape_when_reading(single: Path) -> None:
    checkpoint = Checkpoint.open(single)
    with pytest.raises(CheckpointError, match=r"no safetensors file holds model\.nothing"):
        checkpoint.tensor("model.nothing", (1,))
    with pytest.raises(CheckpointError, match=r"is \[32\], but \[31\]"):
        checkpoint.read_into("model.norm.weight", torch.empty(31))


def test_weights_that_vanish_after_opening(single: Path) -> None:
    checkpoint = Checkpoint.open(single)
    (single / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight cannot be read"):
        checkpoint.tensor("model.norm.weight", (32,))


def test_a_tensor_that_no_one_asks_for_does_not_matter(single: Path) -> None:
    edit_weights(single, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(3, dtype=torch.int8)})
    Checkpoint.open(single)


def test_malformed_generation_config(single: Path) -> None:
    (single / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    assert "generation_config.json: eos_token_id must be token ids" in refusal(single)


def test_no_tokenizer_matters_only_when_asked_for(single: Path) -> None:
    (single / "tokenizer.json").unlink()
    Checkpoint.open(single)
    with pytest.raises(CheckpointError, match=r"holds no tokenizer\.json") as refused:
        load_tokenizer(single)
    assert "token ids" in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"model": {"type": "nothing"}}'])
def test_malformed_tokenizer(single: Path, text: str) -> None:
    (single / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be read"):
        load_tokenizer(single)
