"""The expert cache's throughput benchmark on a tiny model and the CPU: every mode runs, and says what it did."""

import importlib
import json
from pathlib import Path

import pytest

from hrm.predict.cache_replay import true_predictions
from hrm.predict.routing_demand import first_prompts
from hrm.predict.routing_predictions import save_predictions
from hrm.predict.routing_trace_file import load_routing_trace, save_routing_trace

ROOT = Path(__file__).parent.parent
TINY = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_act": "silu", "hidden_size": 32,
    "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_experts": 64, "num_experts_per_tok": 2, "norm_topk_prob": True,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "vocab_size": 128, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": False, "dtype": "float32",
}  # fmt: skip


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Options of a run of a tiny model on right predictions of ten recorded prompts."""
    trace, _ = first_prompts(load_routing_trace(ROOT / "benchmarks" / "small_moe" / "traces" / "test.npz", None), 10)
    save_routing_trace(trace, tmp_path / "trace.npz")
    save_predictions(true_predictions(trace), trace, tmp_path / "predictions.npz")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    return [
        "expert_cache", "--synthetic", f"{tmp_path}/tiny.json", "--profile", "t4", "--device", "cpu",
        "--trace", f"{tmp_path}/trace.npz", "--predictions", f"{tmp_path}/predictions.npz", "--gen-len", "6",
        "--warmup", "1", "--output", f"{tmp_path}/out.json",
    ]  # fmt: skip


def test_every_mode_at_every_size(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("expert_cache")
    monkeypatch.setattr("sys.argv", [*words, "--batch", "5", "--slots", "0.25", "0.5"])
    benchmark.main()
    runs = json.loads((tmp_path / "out.json").read_text())["runs"]
    places = [(run["batch"], run["slot_share"], run["mode"]) for run in runs]
    assert len(set(places)) == len(places) == 2 * len(benchmark.MODES) - 1
    by_place = dict(zip(places, runs, strict=True))
    assert not any("failed" in run for run in runs)
    for slots in (0.25, 0.5):
        lru, predictive = (by_place[5, slots, mode]["hit_rate"] for mode in ("lru", "predictive"))
        assert predictive > lru
    assert by_place[5, 0.5, "lru"]["hit_rate"] > by_place[5, 0.25, "lru"]["hit_rate"]


def test_too_few_prompts_are_told_in_one_line(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("expert_cache")
    monkeypatch.setattr("sys.argv", [*words, "--batch", "11", "--modes", "lru"])
    with pytest.raises(SystemExit, match="expert_cache: 11 requests of 1 prompts each; the trace has 10 prompts"):
        benchmark.main()
