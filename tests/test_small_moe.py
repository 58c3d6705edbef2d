"""The small MoE: its text, tokenizer, training and traces, on toy folders and toy models."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from hrm.errors import HrmError
from hrm.predict.routing_trace import RoutingTrace
from hrm.predict.routing_trace_file import load_routing_trace
from runtime.checkpoint.checkpoint import Checkpoint
from runtime.checkpoint.tokenizer import load_tokenizer

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import small_moe_corpus as corpora  # noqa: E402
import small_moe_domains as domains  # noqa: E402
import small_moe_model as models  # noqa: E402
import small_moe_report as reports  # noqa: E402
import small_moe_save as saving  # noqa: E402
import small_moe_text as texts  # noqa: E402
import small_moe_trace as traces  # noqa: E402
import small_moe_train as training  # noqa: E402
import train_small_moe as script  # noqa: E402

sys.path.remove(str(BENCHMARKS))

TINY = models.ModelSizes(
    vocab_size=300, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
    num_local_experts=4,
)  # fmt: skip
WORDS = {"verse": ("the moon", "a river", "slow light", "old trees"), "sums": ("12 + 7 = 19", "3 * 4 = 12", "9 - 5")}


def toy_text(domain: str, seed: int) -> str:
    random = np.random.default_rng(seed)
    lines = (" ".join(random.choice(WORDS[domain], 6)) for _ in range(40))
    return f"{domain} {seed}\n" + "\n".join(lines)


def toy_documents(count: int = 60) -> list[texts.Document]:
    return [texts.document(domain, toy_text(domain, i)) for domain in WORDS for i in range(count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `prepare` writes, of toy documents and a tokenizer of 300 tokens."""
    directory: Path = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "train_tokenizer", lambda d: TRAIN_TOKENIZER(d, TINY.vocab_size))
        corpora.write_prepared(toy_documents(), tuple(WORDS), directory)
    return directory


TRAIN_TOKENIZER = corpora.train_tokenizer


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A checkpoint after 10 steps, and what training returned."""
    directory: Path = tmp_path_factory.mktemp("trained") / "toy"
    setting = training.TrainSettings(None, 10, "cpu", 4, seq_len=32, learning_rate=1e-2)
    model = models.make_model(TINY, 0, "cpu")
    train, held_out = corpora.load_corpus(data, "train"), corpora.load_corpus(data, "trace_train")
    result = training.train(model, train, held_out, setting, say=lambda line: None)
    entropy = reports.unigram_by_domain(train, held_out, TINY.vocab_size)
    saving.save_checkpoint(model, data, directory, setting, result, entropy)
    return directory, result


def write(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_text_is_collected_alike_wherever_it_lies(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {f"p{i % 3}/{i}.txt": toy_text("verse", i) for i in range(30)}
    files |= {"p0/short.txt": "short", "p1/other.md": toy_text("sums", 99), "p2/bytes.txt": b"\xff" * 900}
    write(tmp_path / "a", files)
    write(tmp_path / "b", {name.replace("p1", "p2").replace("/", "/x"): text for name, text in files.items()})
    found = [texts.collect([domains.Domain("verse", (tmp_path / d,), ("*.txt",))], 10**9) for d in "ab"]
    assert found[0] == found[1]
    assert len(found[0]) == 30
    assert {d.part for d in toy_documents()} == {"train", "trace_train", "trace_test"}


def test_each_content_once_and_families_within_their_limit(tmp_path: Path) -> None:
    write(tmp_path, {f"one/{i}.txt": toy_text("verse", i) for i in range(20)})
    write(tmp_path, {f"two/{i}.txt": toy_text("verse", 0) for i in range(5)})
    verse = domains.Domain("verse", (tmp_path,), ("*.txt",), family_limit=8)
    again = domains.Domain("again", (tmp_path,), ("*.txt",), family_limit=8)
    found = texts.collect([verse, again], 10**9)
    assert len({d.digest for d in found}) == len(found)
    assert 8 <= len(found) <= 9
    assert all(d.domain == "verse" for d in found)


def test_text_of_a_domain_stays_within_its_bytes(tmp_path: Path) -> None:
    write(tmp_path, {f"{i}.txt": toy_text("verse", i) for i in range(20)})
    found = texts.collect([domains.Domain("verse", (tmp_path,), ("*.txt",))], 6000)
    assert 0 < sum(len(d.text.encode()) for d in found) <= 6000


def test_held_out_documents_are_no_copies_of_trained_ones() -> None:
    lines = [[f"line {i} of document {n}, long enough to tell a copy" for i in range(20)] for n in range(60)]
    documents = [texts.document("verse", "\n".join(each)) for each in lines]
    train = next(d for d in documents if d.part == "train")
    copies = (texts.document("verse", f"{train.text}\ncopy {i}") for i in range(999))
    copy = next(c for c in copies if c.part == "trace_test")
    assert texts.without_copies([*documents, copy]) == documents


@given(st.text(max_size=60))
@settings(max_examples=30, deadline=None)
def test_tokenizer_round_trips(data: Path, text: str) -> None:
    tokenizer = load_tokenizer(data)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 < i < TINY.vocab_size for i in ids)


def test_prepared_documents_keep_their_part_and_domain(data: Path) -> None:
    tokenizer, documents = load_tokenizer(data), toy_documents()
    for part in corpora.PARTS:
        corpus = corpora.load_corpus(data, part)
        for index, domain in enumerate(corpus.domains):
            ids = corpus.of_domain(index)
            assert all(i[0] == corpora.END_ID for i in ids)
            found = {tokenizer.decode(i[1:].tolist()) for i in ids}
            assert found == {d.text for d in documents if d.domain == domain and d.part == part}


def test_missing_data_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HrmError, match=r"train\.npz: cannot be read .*prepare"):
        corpora.load_corpus(tmp_path, "train")


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["train", "--steps", "1", "--minutes", "2", "--device", "cpu"], "either --minutes or --steps"),
        (["train", "--steps", "0"], "--steps: invalid at_least_1 value"),
        (["train", "--steps", "1", "--device", "cpu"], "train.npz: cannot be read"),
        (["trace", "--model", "nowhere", "--temperature", "nan"], "--temperature: invalid"),
    ],
)
def test_bad_input_is_refused_without_a_traceback(
    words: list[str], wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train_small_moe.py", *words, "--data", str(tmp_path), "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert wrong in f"{stopped.value.code} {capsys.readouterr().err}"


def test_too_few_domains_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {f"{i}.txt": toy_text("verse", i) for i in range(20)})
    monkeypatch.setattr(script, "DOMAINS", (domains.Domain("verse", (tmp_path,), ("*.txt",)),))
    monkeypatch.setattr("sys.argv", ["train_small_moe.py", "prepare", "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"text of 1 domains \(verse\); 5 are needed"):
        script.main()


@pytest.mark.parametrize("spread", ["random", "one expert", "idle expert"])
def test_batched_experts_compute_what_transformers_does(spread: str) -> None:
    torch.manual_seed(0)
    T, E, k = 23, 5, 2
    config = MixtralConfig(hidden_size=12, intermediate_size=7, num_local_experts=E, num_experts_per_tok=k)
    config._experts_implementation = "eager"
    experts = MixtralExperts(config)
    for weight in experts.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    chosen = torch.rand(T, E).topk(k).indices  # [T, k]
    if spread != "random":
        chosen = chosen % 4 if spread == "idle expert" else torch.zeros_like(chosen)
    hidden, scores = torch.randn(T, 12, requires_grad=True), torch.rand(T, k)
    wanted = experts(hidden, chosen, scores)
    found = models.batched_experts(hidden, chosen, scores, experts.gate_up_proj, experts.down_proj)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    inputs = [hidden, *experts.parameters()]
    pairs = zip(torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(wanted.sum(), inputs), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_balance_loss_is_1_when_even_and_the_number_of_experts_when_one_takes_all() -> None:
    even = torch.eye(8).repeat(4, 1) * 50  # [T, E]
    assert float(models.balance_loss((even,), 1)) == pytest.approx(1)
    alone = torch.zeros(32, 8)
    alone[:, 3] = 50
    assert float(models.balance_loss((alone, even), 1)) == pytest.approx((8 + 1) / 2)


def test_unigram_entropy_of_even_tokens_is_the_log_of_the_vocabulary() -> None:
    tokens = np.arange(64, dtype=np.uint16)
    assert reports.unigram_entropy(tokens, tokens, 64) == pytest.approx(math.log(64))


def test_learning_rate_rises_then_falls() -> None:
    setting = training.TrainSettings(None, 10, "cpu", 1)
    rates = [training.learning_rate(setting, done) for done in np.linspace(0, 1.1, 200)]
    top = int(np.argmax(rates))
    assert max(rates) <= setting.learning_rate
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) > 0


def test_ten_steps_lower_the_loss_and_can_be_repeated(data: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    _, result = trained
    curve = [point["loss"] for point in result["curve"]]
    assert curve[0] == pytest.approx(math.log(TINY.vocab_size), rel=0.1)
    assert result["held_out"].mean < curve[0] - 0.5
    setting = training.TrainSettings(None, 2, "cpu", 4, seq_len=32, learning_rate=1e-2)
    corpus = corpora.load_corpus(data, "train")
    runs = [
        training.train(models.make_model(TINY, 0, "cpu"), corpus, corpus, setting, lambda _: None) for _ in range(2)
    ]
    assert runs[0]["curve"] == runs[1]["curve"]


def test_both_ways_to_compute_experts_train_alike(data: Path) -> None:
    setting = training.TrainSettings(None, 3, "cpu", 4, seq_len=32)
    corpus = corpora.load_corpus(data, "train")
    ways = [models.make_model(TINY, 0, device) for device in ("cpu", "cuda")]  # both stay on the CPU
    losses = [training.train(way, corpus, corpus, setting, lambda _: None)["held_out"].mean for way in ways]
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)


def test_saved_checkpoint_says_how_it_was_trained(trained: tuple[Path, dict[str, Any]]) -> None:
    directory, result = trained
    record = json.loads((directory / "training.json").read_text())
    assert record["held_out_loss"] == result["held_out"].loss
    assert record["settings"]["steps"] == 10
    assert len(record["load_by_layer"]) == TINY.num_hidden_layers
    assert record["text"]["verse"]["train tokens"] > 0
    assert "sums" in reports.summary(result, record["held_out_unigram_entropy"])


@pytest.fixture(scope="module")
def recorded(data: Path, trained: tuple[Path, dict[str, Any]]) -> Iterator[traces.Recorded]:
    yield traces.record(trained[0], corpora.load_corpus(data, "trace_train"), 6, 5, 0.0, 0)


def test_trace_holds_what_transformers_routes_and_generates(
    trained: tuple[Path, dict[str, Any]], recorded: traces.Recorded
) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained[0], dtype=torch.float32).eval()
    trace = recorded.trace
    assert trace.tokens is not None
    for prompt in range(6):
        rows = np.flatnonzero(trace.prompt == prompt)
        tokens = torch.from_numpy(trace.tokens[rows].astype(np.int64))  # [S + 4]
        with torch.inference_mode():
            out = model(tokens[None], output_router_logits=True)
        routed = torch.stack([logits.topk(2).indices for logits in out.router_logits], dim=1)  # [S + 4, L, k]
        assert np.array_equal(np.sort(routed.numpy()), np.sort(trace.experts[rows]))
        decoded = trace.step[rows] > 0
        assert int(decoded.sum()) == 4
        assert np.array_equal(out.logits[0].argmax(-1).numpy()[np.flatnonzero(decoded) - 1], tokens.numpy()[decoded])


def test_trace_prompts_are_held_out_text_of_every_domain(data: Path, recorded: traces.Recorded) -> None:
    corpus = corpora.load_corpus(data, "trace_train")
    prompts = traces.choose_prompts(corpus, 6, 0)
    assert recorded.domains == tuple(p.domain for p in prompts) == ("verse", "sums") * 3
    for prompt in prompts:
        texts_of = [" ".join(map(str, d.tolist())) for d in corpus.of_domain(corpus.domains.index(prompt.domain))]
        assert any(" ".join(map(str, prompt.tokens)) in each for each in texts_of)
        assert traces.SHORTEST <= len(prompt.tokens) <= traces.LONGEST
    assert prompts == traces.choose_prompts(corpus, 6, 0) != traces.choose_prompts(corpus, 6, 1)


def test_saved_trace_loads_and_names_the_domains(
    tmp_path: Path, trained: tuple[Path, dict[str, Any]], recorded: traces.Recorded
) -> None:
    traces.save_trace(recorded, tmp_path, "test")
    trace: RoutingTrace = load_routing_trace(tmp_path / "test.npz", Checkpoint.open(trained[0]).spec)
    record = json.loads((tmp_path / "test.json").read_text())
    assert len(record["domain_of_prompt"]) == len(np.unique(trace.prompt)) == 6
    assert trace.model == record["model"] == "toy"
    assert trace.gate_weights is None
