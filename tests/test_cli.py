"""The command line as a user meets it: results, and one clear line for every bad input."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import Invoke


def test_search_alone_uses_the_stated_defaults(hrm: Invoke, tmp_path: Path) -> None:
    code, out, _ = hrm("search", "--profile", "t4.yaml", "--json", "--output", str(tmp_path / "policy.yaml"))
    report = json.loads(out)
    assert code == 0
    assert report["inputs"]["model"] == "mixtral-8x7b"
    assert report["inputs"]["workload"] == {
        "name": "mtbench",
        "prompt_len_avg": 77.0,
        "prompt_len_max": 418,
        "gen_len": 128,
        "padded": False,
    }
    policy, prediction = report["policy"], report["prediction"]
    assert set(policy) >= {
        "schedule", "batch_size", "micro_batch_size", "ffn_batch_size", "attention_on_gpu", "experts_on_gpu",
        "weights_on_gpu", "kv_on_gpu",
    }  # fmt: skip
    assert set(prediction) >= {
        "generation_throughput", "decode_throughput", "prefill_seconds", "decode_seconds", "bottleneck", "utilisation",
        "gpu_memory_bytes", "cpu_memory_bytes",
    }  # fmt: skip
    assert set(report["solver"]) >= {"status", "seconds", "relative_gap"}
    assert report["solver"]["status"] == "optimal"
    assert policy["batch_size"] % policy["micro_batch_size"] == 0
    assert report["sensitivity"][0]["relative_gain"] >= report["sensitivity"][-1]["relative_gain"] >= -1e-9
    written = yaml.safe_load((tmp_path / "policy.yaml").read_text())
    assert written == policy


def test_search_verified_by_enumeration(hrm: Invoke) -> None:
    code, out, _ = hrm(
        "search", "--profile", "rtx4090", "--model", "qwen1.5-moe-a2.7b", "--prompt-len", "30000", "--gen-len", "32",
        "--schedule", "cgopipe", "--verify", "--json",
    )  # fmt: skip
    verified = json.loads(out)["verify"]
    assert code == 0
    assert verified["agrees"] is True
    assert verified["enumerated_cells"] > 10
    assert verified["relative_difference"] <= 1e-9


def test_tables_for_people(hrm: Invoke) -> None:
    code, out, _ = hrm("search", "--profile", "l4", "--schedule", "module_batched", "--top", "1")
    assert code == 0
    for text in ("generation throughput", "HTOD link", "Peak memory by part", "Proven optimal", "would gain the most"):
        assert text in out


def test_models_show_json(hrm: Invoke) -> None:
    code, out, _ = hrm("models", "show", "mixtral-8x7b", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["num_parameters"] == 46_702_792_704
    assert report["num_active_parameters"] == 12_879_925_248
    assert report["kv_bytes_per_token"] == 131_072


@pytest.mark.parametrize("words", [("profiles", "list"), ("profiles", "show", "t4"), ("models", "list")])
def test_lists(hrm: Invoke, words: tuple[str, ...]) -> None:
    code, out, _ = hrm(*words)
    assert code == 0
    assert "T4" in out or "mixtral-8x7b" in out
    code, out, _ = hrm(*words, "--json")
    assert code == 0
    assert json.loads(out)


def test_sweep_to_csv(hrm: Invoke, tmp_path: Path) -> None:
    out_file = tmp_path / "sweep.csv"
    code, _, _ = hrm(
        "sweep", "--profile", "t4", "--schedule", "cgopipe", "--vary", "cpu_memory=32GiB,128GiB,184GiB",
        "--output", str(out_file),
    )  # fmt: skip
    lines = out_file.read_text().splitlines()
    assert code == 0
    assert len(lines) == 4
    assert "False" in lines[1], "32 GiB cannot hold Mixtral, and the row says so"


def test_sweep_of_a_policy_field(hrm: Invoke) -> None:
    """Fewer sequences than the best stream the same weights for less; more do not fit in CPU memory."""
    best = json.loads(hrm("search", "--profile", "t4", "--schedule", "cgopipe", "--json")[1])["policy"]
    mu, n = best["micro_batch_size"], best["batch_size"]
    code, out, _ = hrm(
        "sweep",
        "--profile",
        "t4",
        "--schedule",
        "cgopipe",
        "--json",
        "--vary",
        f"batch_size={2 * mu},{n},{2 * n},{n + 1}",
    )
    rows = json.loads(out)
    assert code == 0
    assert rows[0]["generation_throughput"] < rows[1]["generation_throughput"]
    assert rows[2]["feasible"] is False
    assert "CPU memory" in rows[2]["reason"]
    assert rows[3]["feasible"] is False
    assert "whole number" in rows[3]["reason"]


def test_roofline_numbers(hrm: Invoke) -> None:
    code, out, _ = hrm("roofline", "--profile", "l4", "--schedule", "cgopipe", "--json")
    assert code == 0
    assert json.loads(out)["turning_points"]


def test_nothing_fits_says_what_would(hrm: Invoke) -> None:
    code, _, err = hrm("search", "--profile", "t4", "--model", "mixtral-8x22b")
    assert code == 3
    assert "GiB more usable CPU memory" in err
    assert "bytes" in err
    assert "--dtype" in err


BAD: list[tuple[tuple[str, ...], str]] = [
    (("search", "--profile", "nope.yaml"), "nope"),
    (("search", "--profile", "t5"), "t4"),
    (("search", "--profile", "/"), "directory"),
    (("search", "--profile", ""), "profile"),
    (("search", "--profile", "t4", "--model", "mixtral"), "mixtral-8x7b"),
    (("search", "--profile", "t4", "--model", "/nope/config.json"), "config.json"),
    (("search", "--profile", "t4", "--schedule", "cgopip"), "cgopipe"),
    (("search", "--profile", "t4", "--workload", "mtbenc"), "mtbench"),
    (("search", "--profile", "t4", "--workload", "mtbench", "--prompt-len", "5"), "not both"),
    (("search", "--profile", "t4", "--prompt-len-max", "5"), "--prompt-len"),
    (("search", "--profile", "t4", "--prompt-len", "0"), "between 1"),
    (("search", "--profile", "t4", "--prompt-len", "-5"), "between 1"),
    (("search", "--profile", "t4", "--prompt-len", "nan"), "between 1"),
    (("search", "--profile", "t4", "--prompt-len", "inf"), "between 1"),
    (("search", "--profile", "t4", "--prompt-len", "1e12"), "between 1"),
    (("search", "--profile", "t4", "--prompt-len", "100", "--prompt-len-max", "50"), "above"),
    (("search", "--profile", "t4", "--gen-len", "0"), "gen_len"),
    (("search", "--profile", "t4", "--gen-len", "-1"), "gen_len"),
    (("search", "--profile", "t4", "--gen-len", "99999999999"), "gen_len"),
    (("search", "--profile", "t4", "--dtype", "fp17"), "fp17"),
    (("search", "--profile", "t4", "--kv-dtype", "int"), "int"),
    (("search", "--profile", "t4", "--schedule", "cgopipe", "--output", "/nope/policy.yaml"), "/nope/policy.yaml"),
    (("sweep", "--profile", "t4", "--vary", "cpu_memory"), "cpu_memory"),
    (("sweep", "--profile", "t4", "--vary", "cpu_memory=64"), "64"),
    (("sweep", "--profile", "t4", "--vary", "cpu_memory=64GB/s"), "64GB/s"),
    (("sweep", "--profile", "t4", "--vary", "cpu_mem=64GiB"), "cpu_memory"),
    (("sweep", "--profile", "t4", "--vary", "htod=1GB/s:2GB/s:0"), "count"),
    (("sweep", "--profile", "t4", "--vary", "htod=1GB/s:2GB/s"), "START:STOP:COUNT"),
    (("sweep", "--profile", "t4", "--vary", "htod=1x:2GB/s:3"), "factors"),
    (("sweep", "--profile", "t4", "--vary", "gpu_compute=65TFLOP/s"), "factors"),
    (("sweep", "--profile", "t4", "--vary", "gpu_to_gpu=2x"), "gpu_to_gpu"),
    (("sweep", "--profile", "t4", "--vary", "htod=0x"), "factor"),
    (("sweep", "--profile", "t4", "--vary", "gen_len=1:2:3"), "gen_len"),
    (("sweep", "--profile", "t4", "--vary", "prompt_len=nan"), "prompt_len"),
    (("sweep", "--profile", "t4", "--vary", "htod=1x,2x", "--vary", "htod=3x"), "once"),
    (("sweep", "--profile", "t4", "--vary", "htod=1x:2x:9999", "--vary", "dtoh=1x:2x:9999"), "points"),
    (("sweep", "--profile", "t4", "--vary", "htod=1x", "--output", "x.xlsx"), ".csv"),
    (("roofline", "--profile", "t4", "--schedule", "cgopipe", "--output", "x.gif"), ".png"),
    (("roofline", "--profile", "t4", "--schedule", "cgopipe", "--output", "/nope/x.png"), "/nope"),
    (("roofline", "--profile", "t4", "--policy", "/nope/policy.yaml"), "/nope/policy.yaml"),
    (("profiles", "show", "t44"), "t4"),
    (("models", "show", "mixtral-8x8b"), "mixtral-8x7b"),
]


@pytest.mark.parametrize(("words", "hint"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_clear_line(hrm: Invoke, words: tuple[str, ...], hint: str) -> None:
    code, _, err = hrm(*words)
    assert code == 1
    assert err.startswith("hrm: ")
    assert hint in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [("search",), ("search", "--profile", "t4", "--top", "0"), ("search", "--profile", "t4", "--gen-len", "many"),
     ("serch",), ("sweep", "--profile", "t4"), ("search", "--nope")],
)  # fmt: skip
def test_wrong_options(hrm: Invoke, words: tuple[str, ...]) -> None:
    code, _, err = hrm(*words)
    assert code == 2
    assert "Traceback" not in err


GOOD_POLICY = {
    "schedule": "cgopipe", "batch_size": 64, "micro_batch_size": 32, "ffn_batch_size": 32, "attention_on_gpu": 0.0,
    "experts_on_gpu": 1.0, "weights_on_gpu": 0.0, "kv_on_gpu": 0.0, "dense_weights_on_gpu": 1.0, "weights_on_disk": 0.0,
    "attention_place": "cpu", "ffn_batching": "micro_batch", "mixed_prefill": False, "prefill_chunk_tokens": 1024,
    "page_pool_bytes": 6e9, "tensor_parallel_size": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"batch_size": 65}, "batch_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 64.5}, "batch_size"),
        ({"micro_batch_size": "many"}, "micro_batch_size"),
        ({"weights_on_gpu": 1.5}, "weights_on_gpu"),
        ({"weights_on_gpu": float("nan")}, "weights_on_gpu"),
        ({"kv_on_gpu": 0.5}, "kv_on_gpu"),
        ({"schedule": "magic"}, "magic"),
        ({"schedule": "layer_streaming"}, "layer_streaming"),
        ({"weights_on_gpu": 1.0}, "GPU memory"),
        ({"batch_size": 64000, "micro_batch_size": 32}, "CPU memory"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size"),
        ({"extra": 1}, "extra"),
        ({"weights_on_disk": 0.9, "weights_on_gpu": 0.2}, "weights_on_disk"),
    ],
)
def test_bad_policy_files(hrm: Invoke, tmp_path: Path, change: dict[str, object], hint: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(yaml.safe_dump({**GOOD_POLICY, **change}))
    code, _, err = hrm("roofline", "--profile", "t4", "--policy", str(file), "--json")
    assert code == 1
    assert hint in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "empty"),
        (b"\x00\x01\xff", "text"),
        (b"- a\n- b\n", "list"),
        (b"prompt_len: [", "malformed"),
        (b"prompt_len: 5\nprompt_len: 6\n", "twice"),
        (b"prompt: 5\n", "prompt"),
        (b"gen_len: 5\n", "prompt_len"),
        (b"prompt_len: 77\n", "gen_len"),
        (b"prompt_len: .nan\ngen_len: 5\n", "prompt_len"),
        (b"prompt_len: 77 tokens\ngen_len: 5\n", "prompt_len"),
        (b"prompt_lens: 77\ngen_len: 5\n", "prompt_lens"),
        (b"prompt_lens: [77, -1]\ngen_len: 5\n", "prompt 2"),
        (b"prompt_lens: []\ngen_len: 5\n", "no prompts"),
        (b"{1: {[]: 2}}", "malformed"),
    ],
)
def test_bad_workload_files(hrm: Invoke, tmp_path: Path, content: bytes, hint: str) -> None:
    file = tmp_path / "work.yaml"
    file.write_bytes(content)
    code, _, err = hrm("search", "--profile", "t4", "--workload", str(file))
    assert code == 1
    assert "work.yaml" in err
    assert hint in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("line", "hint"),
    [("{", "not JSON"), ("[1]", '"prompt"'), ('{"prompt": 5}', '"prompt"'), ('{"prompt_len": 0}', "prompt 2")],
)
def test_bad_prompt_files(hrm: Invoke, tmp_path: Path, line: str, hint: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "four bytes a token"}\n' + line + "\n")
    code, _, err = hrm("search", "--profile", "t4", "--workload", str(file), "--gen-len", "8")
    assert code == 1
    assert "prompts.jsonl" in err
    assert hint in err


def test_prompt_file_gives_exact_moments(tmp_path: Path) -> None:
    from hrm.spec.workload_file import load_workload

    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt_len": 10}\n{"prompt": "' + "x" * 120 + '"}\n')
    work = load_workload(str(file), gen_len=4)
    assert (work.prompt_len_avg, work.prompt_len_max, work.prompt_len_sq_avg) == (20.0, 30, 500.0)
    assert work.mean_context_len == 22.0


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("sweep", "--profile", "t4", "--vary", "gen_len=2x,4x"), "factors"),
        (("search", "--profile", "t4", "--workload", ""), "--workload"),
        (("search", "--profile", "t4", "--dtype", ""), "--dtype"),
        (("search", "--profile", "t4", "--workload", "w" * 5000), "unknown workload"),
        (("search", "--profile", "t4", "--workload", "/dev/null"), "plain file"),
    ],
)
def test_easily_ignored_input_is_refused(hrm: Invoke, words: tuple[str, ...], hint: str) -> None:
    code, _, err = hrm(*words)
    assert code == 1
    assert hint in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"prompt_len: 5\ngen_len: 5\npadded: 'no'\n", "padded"),
        (b"prompt_lens: [5]\nprompt_len: 5\ngen_len: 5\n", "not both"),
        (b"prompt_len: 5\ngen_len: 5\nname: [1]\n", "name"),
    ],
)
def test_workload_fields_of_the_wrong_type(hrm: Invoke, tmp_path: Path, content: bytes, hint: str) -> None:
    file = tmp_path / "work.yaml"
    file.write_bytes(content)
    code, _, err = hrm("search", "--profile", "t4", "--workload", str(file))
    assert code == 1
    assert hint in err


def test_a_folder_does_not_shadow_a_shipped_workload(
    hrm: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mtbench").mkdir()
    monkeypatch.chdir(tmp_path)
    code, _, _ = hrm("search", "--profile", "t4", "--schedule", "cgopipe", "--workload", "mtbench", "--json")
    assert code == 0
