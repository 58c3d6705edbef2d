"""Routing-path predictor: causal, learns context beyond a lookup, measured as by hand, refuses what is not its own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Invoke
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_calls import Recorded
from safetensors.torch import load_file, save_file
from tiny_checkpoints import save_tiny
from torch.nn import functional
from transformers.models.t5.modeling_t5 import T5Attention

from hrm.errors import CheckpointError, HrmError, WorkloadError
from hrm.predict.path_predictions import joined
from hrm.predict.routing_predictions import load_predictions
from hrm.predict.routing_trace import RoutingTrace
from hrm.predict.routing_trace_file import save_routing_trace
from runtime.checkpoint.checkpoint import Checkpoint
from runtime.experts.last_paths import LastPaths
from runtime.experts.model_embeddings import model_embeddings
from runtime.experts.predictor import RoutingPredictor, predictor_bytes
from runtime.experts.predictor_baselines import BASELINES, layer_frequencies, smoothed_shares
from runtime.experts.predictor_data import load_labels, select_rows, split_prompts, window_spans
from runtime.experts.predictor_file import LoadedPredictor, load_predictor, save_predictor, trained_on
from runtime.experts.predictor_inference import predict_paths, predict_trace
from runtime.experts.predictor_metrics import measure_quality, pass_rows
from runtime.experts.predictor_report import evaluate_predictor
from runtime.experts.predictor_settings import PredictorSettings, PredictorTarget, TrainingOptions
from runtime.experts.predictor_training import Training, train_predictor
from runtime.experts.t5_layers import position_buckets
from runtime.experts.token_profiles import log_odds, token_profiles

VOCAB, LAYERS, EXPERTS, TOP_K = 12, 2, 8, 2
TARGET = PredictorTarget(model="toy", num_moe_layers=LAYERS, num_experts=EXPERTS, top_k=TOP_K, vocab_size=VOCAB)
SMALL = PredictorSettings(hidden_size=16, ffn_size=64, num_heads=2, head_dim=8, window=16, token_rank=6)
CPU = torch.device("cpu")
CONFIG = {
    "model_type": "mixtral", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": EXPERTS,
    "num_experts_per_tok": TOP_K, "max_position_embeddings": 64, "tie_word_embeddings": False,
    "torch_dtype": "float32",
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def toy_trace(prompts: int, seed: int, length: int = 16) -> RoutingTrace:
    """Layer 0 is routed by the token, with noise in the second expert; layer 1 by the token and the one before it."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (prompts, length)) ** 2 // VOCAB  # small ids are more frequent
    before = np.concatenate((np.zeros((prompts, 1), np.int64), tokens[:, :-1]), axis=1)
    firsts = np.stack((tokens % EXPERTS, (tokens + 3 * before) % EXPERTS), axis=-1)  # [prompts, length, L]
    seconds = (firsts + rng.integers(1, 3, firsts.shape)) % EXPERTS
    experts = np.stack((firsts, seconds), axis=-1).reshape(-1, LAYERS, TOP_K).astype(np.int16)
    step = np.maximum(np.arange(length) - length // 2 + 1, 0)
    return RoutingTrace(
        "toy", EXPERTS, experts, np.repeat(np.arange(prompts), length), np.tile(step, prompts), None, tokens.ravel()
    )


def random_predictor(changes: PredictorSettings = SMALL, seed: int = 0) -> RoutingPredictor:
    torch.manual_seed(seed)
    predictor = RoutingPredictor(TARGET, changes)
    predictor.profiles.normal_()
    torch.nn.init.normal_(predictor.profile_heads)
    return predictor.eval()


@pytest.fixture(scope="module")
def trained() -> Training:
    torch.set_num_threads(1)
    options = TrainingOptions(epochs=20, batch_tokens=256, learning_rate=1e-2, dropout=0.0)
    return train_predictor(toy_trace(200, 1), TARGET, SMALL, options, CPU)


# --- network ---


def test_no_row_depends_on_later_tokens_or_padding() -> None:
    predictor, rng = random_predictor(), np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(0, VOCAB, (3, 12)))
    later = tokens.clone()
    later[:, 7:] = torch.from_numpy(rng.integers(0, VOCAB, (3, 5)))
    found, other = predictor(tokens), predictor(later)
    assert found.shape == (3, 12, LAYERS, EXPERTS)
    torch.testing.assert_close(found[:, :7], other[:, :7])
    torch.testing.assert_close(predictor(tokens[:, :7]), found[:, :7])
    assert not torch.allclose(found[:, 8:], other[:, 8:])


def test_earlier_tokens_and_their_order_matter() -> None:
    predictor = random_predictor()
    found = predictor(torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4]]))
    assert (found[0, 3] - found[1, 3]).abs().max() > 1e-4


def test_position_buckets_are_those_of_t5() -> None:
    distance = torch.arange(300)
    wanted = T5Attention._relative_position_bucket(-distance, bidirectional=False, num_buckets=32, max_distance=128)
    assert torch.equal(position_buckets(300, 32, 128), wanted)


def test_the_paper_s_network_is_as_large_as_the_paper_says() -> None:
    """About 7 MB with the vocabulary of T5 and Switch, here of 32 experts in 12 layers."""
    target = PredictorTarget(model="switch", num_moe_layers=12, num_experts=32, top_k=1, vocab_size=32128)
    size = predictor_bytes(RoutingPredictor(target, PredictorSettings(token_rank=0)))
    assert size == pytest.approx(7e6, rel=0.1)


# --- windows and batches ---


@given(length=st.integers(1, 400), window=st.integers(2, 64))
def test_windows_predict_every_row_once_with_enough_before_it(length: int, window: int) -> None:
    spans = window_spans(length, window)
    rows = [row for span in spans for row in range(span.first, span.end)]
    assert rows == list(range(length))
    for span in spans:
        assert 0 <= span.begin <= span.first < span.end <= span.begin + window
        assert span.begin == 0 or span.first - span.begin >= window // 2


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), batch_tokens=st.integers(1, 60))
def test_batches_with_padding_equal_sequences_one_by_one(lengths: list[int], batch_tokens: int) -> None:
    predictor, rng = random_predictor(), np.random.default_rng(sum(lengths))
    sequences = [rng.integers(0, VOCAB, n).tolist() for n in lengths]
    together = predict_paths(predictor, sequences, last_only=False, batch_tokens=batch_tokens)
    alone = [predict_paths(predictor, [sequence], last_only=False) for sequence in sequences]
    np.testing.assert_allclose(together.now, joined(alone).now, atol=1e-5)
    np.testing.assert_allclose(together.following, joined(alone).following, atol=1e-5)
    last = predict_paths(predictor, sequences, last_only=True, batch_tokens=batch_tokens)
    assert last.following is not None
    for sequence, now, following in zip(sequences, last.now, last.following, strict=True):
        features = predictor.features(torch.tensor([sequence[-SMALL.window :]]))[0, -1]
        heads = predictor.logits(features), predictor.following_logits(features)
        for found, logits in zip((now, following), heads, strict=True):
            np.testing.assert_allclose(found, logits.sigmoid().detach().numpy(), atol=1e-5)


def test_traces_are_predicted_row_by_row_whatever_the_order_of_prompts() -> None:
    trace, predictor = toy_trace(5, 3, length=20), random_predictor()
    order = np.argsort(np.tile(np.arange(20), 5), kind="stable")  # prompts alternate
    mixed = predict_trace(predictor, select_rows(trace, order))
    in_order = predict_trace(predictor, trace).rows(order)
    for found, wanted in ((mixed.now, in_order.now), (mixed.following, in_order.following)):
        assert found is not None and found.dtype == np.float16 and found.shape == (100, LAYERS, EXPERTS)
        np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize("sequence", [[], [-1], [1, VOCAB]])
def test_sequences_that_cannot_be_predicted_are_refused(sequence: list[int]) -> None:
    with pytest.raises(HrmError, match="sequence 1"):
        predict_paths(random_predictor(), [[1], sequence], last_only=True)


# --- training ---


def test_the_predictor_learns_context_and_beats_every_baseline(trained: Training) -> None:
    train, test = toy_trace(200, 1), toy_trace(60, 2)
    predictor = measure_quality(predict_trace(trained.predictor, test).now, test, 0.5, (4,))
    recalls = {name: measure_quality(b(train, test), test, 0.5, (4,)) for name, b in BASELINES.items()}
    assert recalls["layer frequency"].top_k.recall < recalls["token lookup"].top_k.recall
    for quality in recalls.values():
        assert predictor.top_k.recall > quality.top_k.recall + 0.05
        assert predictor.active[0].top_k.jaccard > quality.active[0].top_k.jaccard
    # Layer 0 needs no context: the lookup is already the best. In layer 1 it knows half of the story.
    assert predictor.top_k.layer_recall[0] > recalls["token lookup"].top_k.layer_recall[0] - 0.03
    assert predictor.top_k.layer_recall[1] > recalls["token lookup"].top_k.layer_recall[1] + 0.2


def test_probabilities_are_calibrated(trained: Training) -> None:
    """With pos_weight 1 they sum to about top_k."""
    found = predict_trace(trained.predictor, toy_trace(60, 2))
    assert found.following is not None
    for probabilities in (found.now, found.following):
        assert probabilities.astype(np.float64).sum(axis=-1).mean() == pytest.approx(TOP_K, rel=0.05)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone() -> None:
    options = TrainingOptions(epochs=1, batch_tokens=512, seed=3)
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    first, second = (train_predictor(toy_trace(20, 1), TARGET, SMALL, options, CPU).predictor for _ in range(2))
    assert torch.equal(torch.rand(1), wanted)
    other = train_predictor(toy_trace(20, 1), TARGET, SMALL, replace(options, seed=4), CPU).predictor
    states = [p.state_dict() for p in (first, second, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_prompts_of_one_token_have_nothing_that_follows() -> None:
    options, trace = TrainingOptions(epochs=1, batch_tokens=64), toy_trace(20, 1, length=1)
    training = train_predictor(trace, TARGET, SMALL, options, CPU)
    found = predict_trace(training.predictor, trace)
    assert found.following is not None and np.isfinite(found.now).all() and np.isfinite(found.following).all()
    loaded = LoadedPredictor(training.predictor, trained_on(training, trace, options, None))
    assert evaluate_predictor(loaded, found, trace, trace, 0.5, (4,)).following == {}


def test_what_follows_is_learned_as_far_as_it_can_be() -> None:
    """Prompts that repeat one token: what follows is known, where chance would be a quarter."""
    trace, tokens = toy_trace(60, 4), np.repeat(np.arange(60) % VOCAB, 16)[:, None]
    experts = np.broadcast_to(tokens % EXPERTS, (len(tokens), LAYERS * TOP_K)).reshape(-1, LAYERS, TOP_K).copy()
    experts[..., 1] = (experts[..., 0] + 1) % EXPERTS
    trace = replace(trace, tokens=tokens[:, 0], experts=experts)
    options = TrainingOptions(epochs=8, following_epochs=12, batch_tokens=128)
    training = train_predictor(trace, TARGET, SMALL.model_copy(update={"following_size": 32}), options, CPU)
    assert training.following.best_epoch.validation_recall > 0.8


def test_without_profiles_training_begins_at_the_layers_frequencies() -> None:
    trace = toy_trace(40, 1)
    train, _ = split_prompts(trace, 0.1, 0)
    options = TrainingOptions(epochs=1, batch_tokens=10**6, learning_rate=1e-9)
    predictor = train_predictor(trace, TARGET, SMALL.model_copy(update={"token_rank": 0}), options, CPU).predictor
    predictor.heads.weight.data.zero_()
    found = predict_paths(predictor, [[1, 2]], last_only=True).now[0]
    np.testing.assert_allclose(found, np.clip(layer_frequencies(train), 1e-4, None), atol=1e-3)


def test_embeddings_of_the_model_keep_its_distances(tmp_path: Path) -> None:
    save_tiny("mixtral", tmp_path / "tiny")
    checkpoint = Checkpoint.open(tmp_path / "tiny")
    vocab, width = checkpoint.config.vocab_size, checkpoint.config.hidden_size
    table = checkpoint.tensor("model.embed_tokens.weight", (vocab, width))
    found = model_embeddings(checkpoint, width + 8)
    assert found.shape == (vocab, width + 8) and not found[:, width:].any()
    wanted = torch.pdist(table)
    torch.testing.assert_close(
        torch.pdist(found) * wanted.norm() / torch.pdist(found).norm(), wanted, rtol=1e-3, atol=0
    )
    leading = model_embeddings(checkpoint, 4)
    variance = found.var(dim=0)
    assert (variance[:3] >= variance[1:4]).all()
    direction = functional.cosine_similarity(leading, found[:, :4], dim=0)
    torch.testing.assert_close(direction.abs(), torch.ones(4), rtol=1e-4, atol=0)


def test_training_begins_at_given_embeddings() -> None:
    table = torch.randn(VOCAB, SMALL.hidden_size, generator=torch.Generator().manual_seed(0))
    options = TrainingOptions(epochs=1, batch_tokens=10**6, learning_rate=1e-9)
    trained = train_predictor(toy_trace(20, 1), TARGET, SMALL, options, CPU, embeddings=table).predictor
    torch.testing.assert_close(trained.embedding.weight.data, table, rtol=1e-3, atol=1e-3)


def test_training_stops_early_and_keeps_the_best_epoch() -> None:
    trace = toy_trace(30, 1)
    rng = np.random.default_rng(0)
    noise = rng.permuted(np.tile(np.arange(EXPERTS), (len(trace.experts), LAYERS, 1)), axis=-1)[..., :TOP_K]
    options = TrainingOptions(epochs=40, patience=2, batch_tokens=128, learning_rate=2e-2, dropout=0.0)
    training = train_predictor(replace(trace, experts=noise), TARGET, SMALL, options, CPU)
    losses = [epoch.validation_loss for epoch in training.own.epochs]
    best = training.own.best
    assert len(losses) == best + 3 < 40 and losses[best] == min(losses)


def test_prompts_are_split_whole() -> None:
    trace = toy_trace(20, 1)
    train, held_out = split_prompts(trace, 0.25, 0)
    assert set(train.prompt) | set(held_out.prompt) == set(trace.prompt)
    assert not set(train.prompt) & set(held_out.prompt) and len(set(held_out.prompt)) == 5
    with pytest.raises(WorkloadError, match="at least two"):
        split_prompts(toy_trace(1, 1), 0.5, 0)


def test_profiles_of_rows_do_not_count_their_own_prompt() -> None:
    trace = toy_trace(4, 5)
    profiles = token_profiles(trace, VOCAB, LAYERS * EXPERTS, 0)
    assert trace.tokens is not None
    for row in (0, 20, 63):
        others = (trace.tokens == trace.tokens[row]) & (trace.prompt != trace.prompt[row])
        counts = np.array([np.bincount(trace.experts[others][:, i].ravel(), minlength=EXPERTS) for i in range(LAYERS)])
        prior = layer_frequencies(trace)
        wanted = log_odds(smoothed_shares(counts, np.array(others.sum()), prior)) - log_odds(prior)
        directions = profiles.basis[:, np.linalg.norm(profiles.basis, axis=0) > 1e-3]
        wanted_part = np.linalg.lstsq(directions, wanted.ravel(), rcond=None)[0] @ directions.T
        np.testing.assert_allclose(profiles.rows[row, :-1] @ profiles.basis.T, wanted_part, atol=1e-3)
        assert profiles.rows[row, -1] == pytest.approx(np.log1p(others.sum()))


# --- baselines and metrics ---


def by_hand(tokens: list[int], experts: list[tuple[int, int]]) -> RoutingTrace:
    """One prompt, top-1 in two layers of three experts."""
    n = len(tokens)
    return RoutingTrace(
        "toy", 3, np.array(experts)[..., None], np.zeros(n, int), np.zeros(n, int), None, np.array(tokens)
    )


def test_baselines_by_hand() -> None:
    train = by_hand([5, 5, 7], [(0, 1), (0, 2), (1, 1)])
    test = by_hand([5, 9], [(0, 1), (2, 0)])
    found = {name: baseline(train, test) for name, baseline in BASELINES.items()}
    frequency = np.array([[2, 1, 0], [0, 2, 1]]) / 3
    np.testing.assert_allclose(found["layer frequency"], [frequency, frequency], atol=1e-6)
    seen = (np.array([[2, 0, 0], [0, 1, 1]]) + frequency) / 3
    np.testing.assert_allclose(found["token lookup"], [seen, frequency], atol=1e-6)
    single = (np.array([0, 1, 1]) + frequency[1]) / 3  # after expert 0
    both = (np.array([0, 1, 1]) + single) / 3
    np.testing.assert_allclose(found["previous layer"][:, 1], [both, frequency[1]], atol=1e-6)


def test_metrics_by_hand() -> None:
    experts = np.array([[[0]], [[1]], [[2]], [[2]]])
    trace = RoutingTrace("toy", 3, experts, np.array([0, 0, 1, 1]), np.array([1, 2, 1, 2]))
    probabilities = np.array([[0.9, 0.05, 0.05], [0.6, 0.4, 0.0], [0.0, 0.7, 0.6], [0.1, 0.1, 0.3]])[:, None]
    quality = measure_quality(probabilities, trace, 0.5, (1, 2))
    assert quality.top_k.recall == quality.top_k.precision == 0.5
    assert (quality.threshold.recall, quality.threshold.precision) == (0.5, 0.5)  # 2 of 4 chosen, 2 of 4 predicted
    first, second = quality.active
    assert (first.passes, first.touched, first.top_k.recall) == (4, 1.0, 0.5)
    # Step 1 touches {0, 2} and {0, 1} is predicted; step 2 touches {1, 2} and {0, 2} is.
    assert (second.passes, second.touched, second.predicted) == (2, 2.0, 2.0)
    assert (second.top_k.recall, second.top_k.precision, second.top_k.jaccard) == (0.5, 0.5, 2 / 6)
    # Demand of step 2: 1 - 0.4 * 0.9 = 0.64, 1 - 0.6 * 0.9 = 0.46, 0.3. Of step 1: 0.9, 0.715, 0.62.
    assert (second.threshold.recall, second.threshold.precision) == (0.5, 0.5)


def test_passes_hold_a_token_of_each_prompt_that_is_still_there() -> None:
    step, prompt = np.array([0, 1, 2, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 2, 2])
    trace = RoutingTrace("toy", 3, np.zeros((7, 1, 1), int), prompt, step)
    assert [rows.tolist() for rows in pass_rows(trace, 2)] == [[1, 4], [2]]
    with pytest.raises(WorkloadError, match="3 prompts"):
        list(pass_rows(trace, 4))


# --- file ---


@pytest.fixture
def saved(trained: Training, tmp_path: Path) -> Path:
    path = tmp_path / "predictor.safetensors"
    save_predictor(trained.predictor, trained_on(trained, toy_trace(200, 1), TrainingOptions(), None), path)
    return path


def test_a_predictor_survives_its_file(trained: Training, saved: Path) -> None:
    loaded, trace = load_predictor(saved, CPU), toy_trace(4, 9)
    assert loaded.predictor.target == TARGET and loaded.predictor.settings == SMALL
    assert loaded.trained_on.prompts == 200 and loaded.trained_on.without_domain is None
    kept, made = (predict_trace(each.predictor, trace) for each in (loaded, trained))
    np.testing.assert_array_equal(kept.now, made.now)
    np.testing.assert_array_equal(kept.following, made.following)
    assert {weight.dtype for weight in load_file(saved).values()} == {torch.float16}


def test_files_that_are_no_predictor_are_refused(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        load_predictor(other, CPU)
    for content in (b"", b"not safetensors", saved.read_bytes()[:-100]):
        other.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_predictor(other, CPU)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_predictor(tmp_path, CPU)
    save_file({"x": torch.zeros(2)}, other)
    with pytest.raises(CheckpointError, match="is not a routing predictor"):
        load_predictor(other, CPU)


def test_damaged_metadata_and_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    other, raw = tmp_path / "other.safetensors", saved.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    metadata = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["predictor"])
    weights = load_file(saved)
    changed = weights | {"heads.bias": weights["heads.bias"] + 1}
    cases = [
        (changed, metadata, "checksum"),
        (weights, metadata | {"format": "predictor 0"}, "has format"),
        (weights, metadata | {"more": 1}, "metadata are damaged"),
        (weights, metadata | {"settings": metadata["settings"] | {"window": 0}}, "metadata are damaged"),
        (weights, metadata | {"settings": metadata["settings"] | {"hidden_size": 8}}, "shapes"),
    ]
    for tensors, found, message in cases:
        save_file(tensors, other, {"predictor": json.dumps(found)})
        with pytest.raises(CheckpointError, match=message):
            load_predictor(other, CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "other"}, "model is 'other'"),
        ({"num_experts": 9}, "experts per layer"),
        ({"experts": toy_trace(2, 1).experts[:, :1]}, "MoE layers"),
        ({"experts": toy_trace(2, 1).experts[..., :1]}, "top_k"),
        ({"tokens": np.full(32, VOCAB)}, "outside the predictor's vocabulary"),
        ({"tokens": None}, "no token ids"),
    ],
)
def test_traces_of_other_models_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        predict_trace(random_predictor(), replace(toy_trace(2, 1), **changes))


# --- command line ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "config.json").write_text(json.dumps(CONFIG))
    for name, prompts, seed in (("train", 24, 1), ("test", 8, 2)):
        save_routing_trace(toy_trace(prompts, seed), tmp_path / f"{name}.npz")
        labels = {str(i): ("even", "odd")[i % 2] for i in range(prompts)}
        (tmp_path / f"{name}.json").write_text(json.dumps(labels))
    return tmp_path


def train_words(folder: Path, *more: str) -> tuple[str, ...]:
    words = ("predictor", "train", "--trace", f"{folder}/train.npz", "--model", f"{folder}/toy", "--output",
             f"{folder}/p.safetensors", "--epochs", "1", "--device", "cpu", "--hidden-size", "8")  # fmt: skip
    return (*words, *more)


def evaluate_words(folder: Path, *more: str) -> tuple[str, ...]:
    return ("predictor", "evaluate", "--trace", f"{folder}/test.npz", "--predictor", f"{folder}/p.safetensors",
            "--device", "cpu", *more)  # fmt: skip


def test_train_and_evaluate(hrm: Invoke, folder: Path) -> None:
    code, out, _ = hrm(*train_words(folder))
    assert code == 0 and "weights of epoch 1 and " in out
    baselines = ("--train-trace", f"{folder}/train.npz")
    code, out, _ = hrm(*evaluate_words(folder, *baselines, "--batches", "4"))
    assert code == 0 and "token lookup" in out and "previous layer is given" in out
    assert "Predicting a decode pass takes" in out and "for 4 sequences here" in out
    predictions = folder / "predictions.npz"
    code, out, _ = hrm(*evaluate_words(folder, "--json", "--batches", "2,4", "--predictions", f"{predictions}"))
    report = json.loads(out)
    assert list(report["methods"]) == ["predictor"] and not report["seen"]
    assert [active["batch_size"] for active in report["methods"]["predictor"]["active"]] == [2, 4]
    assert report["following"]["predictor"]["recall"] > 0
    assert set(report["forecast_seconds"]) == {"2", "4"} and min(report["forecast_seconds"].values()) > 0
    assert load_predictions(predictions, toy_trace(8, 2)).now.shape == (128, LAYERS, EXPERTS)
    seen = hrm(*evaluate_words(folder, "--trace", f"{folder}/train.npz", "--json"))
    assert json.loads(seen[1])["seen"] and "trained on this trace" in seen[2]


def test_across_domains(hrm: Invoke, folder: Path) -> None:
    labels = ("--labels", f"{folder}/train.json", "--without-domain", "odd")
    code, _, _ = hrm(*train_words(folder, *labels, "--json"))
    assert code == 0
    words = evaluate_words(folder, "--labels", f"{folder}/test.json", "--domain", "odd", "--batches", "4", "--json")
    trained_with = ("--train-trace", f"{folder}/train.npz", "--train-labels", f"{folder}/train.json")
    code, out, _ = hrm(*words, *trained_with)
    assert code == 0 and json.loads(out)["prompts"] == 4 and json.loads(out)["trained_on"]["prompts"] == 12
    code, _, err = hrm(*words, *trained_with[:2])
    assert code == 1 and "--train-labels" in err
    code, _, err = hrm(*words, "--train-trace", f"{folder}/test.npz", "--train-labels", f"{folder}/test.json")
    assert code == 1 and "is not what the predictor was trained on" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--labels", "{}/train.json"), "go together"),
        (("--labels", "{}/train.json", "--without-domain", "prime"), "known domains: even, odd"),
        (("--labels", "{}/test.json", "--without-domain", "odd"), "has no label"),
        (("--labels", "{}/train.npz", "--without-domain", "odd"), "train.npz"),
        (("--trace", "{}/none.npz"), "none.npz"),
        (("--model", "mixtral-8x7b"), "recorded of model"),
        (("--output", "{}/nowhere/p.safetensors"), "cannot be written"),
        (("--pos-weight", "nan"), "pos_weight"),
        (("--model", "mixtral-8x7b", "--model-embeddings"), "recorded of model"),
        (("--model", "{}/toy/config.json", "--model-embeddings"), "no checkpoint directory"),
        (("--model-embeddings",), "toy: holds neither"),
    ],
)
def test_bad_options_of_train(hrm: Invoke, folder: Path, more: tuple[str, ...], message: str) -> None:
    code, _, err = hrm(*train_words(folder, *(word.format(folder) for word in more)))
    assert code == 1 and message in err and err.count("\n") == 1


def test_a_trace_without_token_ids_names_the_way_to_record_one(hrm: Invoke, folder: Path) -> None:
    save_routing_trace(replace(toy_trace(4, 1), tokens=None), folder / "train.npz")
    code, _, err = hrm(*train_words(folder))
    assert code == 1 and "hrm run --trace-routing" in err


def test_bad_options_of_evaluate(hrm: Invoke, folder: Path, saved: Path) -> None:
    words = evaluate_words(folder, "--predictor", str(saved))
    for more, message in (
        (("--batches", "4,x"), "--batches"),
        (("--batches", "9"), "8 prompts"),
        (("--threshold", "0"), "threshold"),
        (("--train-trace", f"{folder}/train.npz"), "is not what the predictor was trained on"),
    ):
        code, _, err = hrm(*words, *more)
        assert code == 1 and message in err and err.count("\n") == 1


def test_labels_may_be_a_list(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text('{"model": "toy", "domain_of_prompt": ["c", "perl"]}')
    assert load_labels(path) == {0: "c", 1: "perl"}
    for text in ("[]", "{}", '{"a": "c"}', '{"0": 1}', '{"domain_of_prompt": [1]}'):
        path.write_text(text)
        with pytest.raises(WorkloadError, match="prompt number -> domain"):
            load_labels(path)


def test_paths_of_last_tokens_by_recorded_calls() -> None:
    """As the predictor has them, whatever the lengths; a sequence longer than its window, too."""
    predictor = random_predictor()
    window, random, made = predictor.settings.window, np.random.default_rng(0), Recorded()
    paths = LastPaths(predictor, made)
    for step in range(4):
        lengths = (1, 5, window // 2 + step, window + 3)
        sequences = [random.integers(0, predictor.target.vocab_size, length) for length in lengths]
        found, expected = paths(sequences), predict_paths(predictor, sequences, last_only=True)
        np.testing.assert_allclose(found.now, expected.now, atol=1e-6)
        assert found.following is not None and expected.following is not None
        np.testing.assert_allclose(found.following, expected.following, atol=1e-6)
    assert len(made.calls) == 1 and made.again == 3
    with pytest.raises(HrmError, match="token id"):
        paths([[predictor.target.vocab_size]])
    with pytest.raises(HrmError, match="empty"):
        paths([[1], []])
