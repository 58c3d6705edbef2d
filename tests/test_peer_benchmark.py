"""The throughput benchmarks on a tiny model and the CPU: they run, and their results make a table."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from runtime_policies import POLICIES

from hrm.spec.policy_file import save_policy

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TINY = {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_act": "silu", "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 128, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": False, "sliding_window": None,
    "eos_token_id": 2, "dtype": "float32",
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A tiny Mixtral."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Benchmarks import each other by their names."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield


def run_script(name: str, monkeypatch: pytest.MonkeyPatch, *options: object) -> ModuleType:
    """A benchmark with these options."""
    module = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
    module.main()
    return module


def run_engine(config: Path, policy: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """decode_throughput under a policy of the parity tests; the result's file."""
    save_policy(POLICIES[policy], config.with_name("policy.yaml"))
    output = config.with_name(f"{mode}.json")
    options = ["--synthetic", config, "--profile", "h200-16gib", "--device", "cpu", "--dtype", "fp32", "--mode", mode]
    options += ["--policy", config.with_name("policy.yaml"), "--gen-len", 16, "--passes", 3, "--output", output]
    run_script("decode_throughput", monkeypatch, *options, "--requests", 12, "--fill-tokens", 600)
    return output


@pytest.mark.parametrize("policy", ["cgopipe, kernel", "auto, mixed", "auto, mixed, batch"])
def test_decode_passes_of_a_full_batch(policy: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = json.loads(run_engine(config, policy, "decode", monkeypatch).read_text())
    window, batch = result["window"], POLICIES[policy].batch_size
    assert window["sequences"] == [batch] * 3 and window["prompts"] == [0.0] * 3
    assert result["tokens_per_s"] == pytest.approx(window["decoded_tokens_per_s"])
    assert 0 < window["share_of_roof"] < 1
    assert 0 < window["busy"]["GPU"] <= 1
    assert set(window["roof"]["bounds"]) >= {"GPU", "inbound_wire", "cpu_memory_bandwidth"}


@pytest.mark.parametrize("policy", ["cgopipe, kernel", "auto, mixed, batch"])
def test_end_to_end_finishes_every_request(policy: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = json.loads(run_engine(config, policy, "end-to-end", monkeypatch).read_text())
    assert (result["finished"], result["refused"], result["generated_tokens"]) == (12, 0, 12 * 16)
    assert result["over_time"][-1]["generated_tokens"] <= 12 * 16
    assert result["window"]["passes"] <= 3


def test_accelerate_computes_the_same_tokens_however_it_is_offloaded(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    peers, built = importlib.import_module("peers_accelerate"), importlib.import_module("peer_model")
    model = built.build_model(str(config), None, torch.float32, torch.device("cpu"))
    prompts = torch.randint(0, 128, (6, 9))
    plain, _ = peers.prefill(model, prompts, None)
    device_map = model.offload(1)
    assert model.offloaded_bytes(device_map) == model.total_bytes
    split, cache = peers.prefill(model, prompts, 4)
    model.restore()
    assert torch.equal(plain, split) and cache.get_seq_length() == 9
    assert all(parameter.device.type == "cpu" for parameter in model.module.parameters())


def test_results_make_a_table(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("accelerate")
    peer = config.with_name("peer.json")
    options = ["--default-batches", 2, "--pinned-batches", 4, "--prompt", 8, "--pinned-steps", 2, "--output", peer]
    run_script("peers_accelerate", monkeypatch, "--model", config, "--dtype", "fp32", "--device", "cpu", *options)
    decode = run_engine(config, "cgopipe, kernel", "decode", monkeypatch)
    capsys.readouterr()
    run_script("runtime_table", monkeypatch, peer, decode)
    table = capsys.readouterr().out
    lines = [line for line in table.splitlines() if line.startswith("| decode")]
    assert [line.split("|")[2].strip() for line in lines] == [
        "accelerate", "accelerate, weights page-locked by hand", "**hrm**, cgopipe",
    ]  # fmt: skip
    assert lines[-1].count("x |") == 2 and "%" in lines[-1]
    assert "in place of a GPU" in table
