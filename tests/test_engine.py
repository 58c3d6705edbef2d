"""The engine on tiny checkpoints: when completions end, that sampling repeats, and that nobody notices the policy."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from runtime_policies import HYBRID, POLICIES, RESIDENT, STREAMED, make_policy
from tiny_checkpoints import save_tiny

import runtime.passes
from hrm.errors import PolicyError
from hrm.schedule.registry import placements, schedule_names
from hrm.schedule.slice import MicroBatch, PassSlice
from hrm.schedule.task import Kind
from hrm.spec.policy import Policy
from runtime import kv_need
from runtime.batch import Batch
from runtime.checkpoint.checkpoint import Checkpoint
from runtime.checkpoint.tokenizer import load_tokenizer
from runtime.engine import Engine
from runtime.requests.request import Completion, Refusal, Request, Sampling

LONGEST = 6


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral of two layers with a tokenizer."""
    found: Path = tmp_path_factory.mktemp("mixtral")
    save_tiny("mixtral", found)
    return found


@pytest.fixture
def make(directory: Path) -> Iterator[Callable[..., Engine]]:
    """Makes engines and closes them."""
    made: list[Engine] = []

    def engine(policy: str | Policy = "cgopipe", **options: object) -> Engine:
        chosen = POLICIES[policy] if isinstance(policy, str) else policy
        made.append(Engine(Checkpoint.open(directory), chosen, device="cpu", **options))
        return made[-1]

    yield engine
    for each in made:
        each.close()


def prompts(count: int, seed: int = 0) -> list[tuple[int, ...]]:
    random = np.random.default_rng(seed)
    return [tuple(random.integers(3, 128, int(n)).tolist()) for n in random.integers(1, 40, count)]


def requests(count: int, seed: int = 0, **sampling: object) -> list[Request]:
    stated = {"max_tokens": LONGEST, "ignore_eos": True} | sampling
    return [Request(str(i), prompt, Sampling(**stated)) for i, prompt in enumerate(prompts(count, seed))]


def answers(engine: Engine, asked: list[Request]) -> dict[str, Completion]:
    """Completions by id: every request once, and the KV cache empty behind them."""
    found = list(engine.generate(asked))
    assert sorted(c.request.request_id for c in found) == sorted(r.request_id for r in asked)
    assert all(isinstance(c, Completion) for c in found)
    assert all(pool.used == 0 for pool in engine.memory.kv.pools.values())
    return {c.request.request_id: c for c in found}


def tokens_of(engine: Engine, asked: list[Request]) -> dict[str, tuple[int, ...]]:
    return {name: c.tokens for name, c in answers(engine, asked).items()}


# --- when a completion ends


def test_a_stop_string_ends_a_completion(make: Callable[..., Engine], directory: Path) -> None:
    """At the first token that completes it; neither the string nor what follows is text."""
    decode = load_tokenizer(directory).decode
    engine = make(detokenise=decode)
    for name, whole in answers(engine, requests(5)).items():
        assert whole.text == decode(whole.tokens) and whole.finish_reason == "length"
        middle = len(whole.text) // 2
        stop = whole.text[middle : middle + 2]
        asked = [replace(r, sampling=replace(r.sampling, stop=("nowhere", stop))) for r in requests(5)]
        cut = answers(engine, asked)[name]
        assert cut.text == whole.text[: whole.text.find(stop)] and cut.finish_reason == "stop"
        assert cut.tokens == whole.tokens[: len(cut.tokens)]
        assert stop in decode(cut.tokens) and stop not in decode(cut.tokens[:-1])


def test_end_of_sequence_and_going_on_past_it(make: Callable[..., Engine], directory: Path) -> None:
    """Any token can be made to end; the text leaves it out, and only where it ends."""
    decode = load_tokenizer(directory).decode
    engine = make(detokenise=decode)
    whole = answers(engine, requests(3))
    for name, completion in whole.items():
        eos = completion.tokens[3]
        engine.config = replace(engine.config, eos_token_ids=(eos, 127))
        ended = answers(engine, requests(3, ignore_eos=False))[name]
        at = completion.tokens.index(eos) + 1
        assert ended.tokens == completion.tokens[:at] and ended.finish_reason == "stop"
        assert ended.text == decode(completion.tokens[: at - 1])
        assert answers(engine, requests(3))[name] == completion


@pytest.mark.parametrize("policy", ["cgopipe", "auto, mixed", "expert_cache"])
def test_one_token_needs_no_decoding(make: Callable[..., Engine], policy: str) -> None:
    engine = make(policy)
    found = tokens_of(engine, requests(20, max_tokens=1))
    assert all(len(tokens) == 1 for tokens in found.values())
    assert found == {name: tokens[:1] for name, tokens in tokens_of(engine, requests(20)).items()}


def test_lengths_of_a_batch_differ(make: Callable[..., Engine]) -> None:
    """Each stops at its own length, and says the same as with more to come."""
    whole = tokens_of(make(), requests(14))
    for policy in ("cgopipe", "auto, mixed", "module_batched, split"):
        asked = [
            replace(r, sampling=replace(r.sampling, max_tokens=1 + i % LONGEST)) for i, r in enumerate(requests(14))
        ]
        found = tokens_of(make(policy), asked)
        assert found == {str(i): whole[str(i)][: 1 + i % LONGEST] for i in range(14)}


# --- many requests, several calls


@pytest.mark.parametrize("policy", ["cgopipe", "cgopipe, nothing resident", "auto, mixed", "auto, mixed, batch"])
def test_more_requests_than_the_batch(make: Callable[..., Engine], policy: str) -> None:
    engine = make(policy)
    asked = requests(28)
    assert len(asked) > 3 * engine.policy.batch_size
    assert tokens_of(engine, asked) == tokens_of(make("flexgen"), asked)
    assert (engine.progress.finished, engine.progress.generated_tokens) == (28, 28 * LONGEST)
    assert (engine.progress.active, engine.progress.waiting) == (0, 0) and engine.progress.tokens_per_s > 0


@pytest.mark.parametrize("policy", ["cgopipe, nothing resident", "auto, mixed, small ring", "flexgen, part resident"])
def test_one_engine_answers_again_and_again(make: Callable[..., Engine], policy: str) -> None:
    """Few, many, longer ones: slots, blocks and prefetched pages go on from call to call."""
    engine, alone = make(policy), make("flexgen, resident")
    for count, seed in ((2, 1), (12, 2), (1, 3)):
        asked = requests(count, seed)
        assert tokens_of(engine, asked) == tokens_of(alone, asked)


def test_no_requests(make: Callable[..., Engine]) -> None:
    engine = make()
    assert engine.last_timeline is None
    assert list(engine.generate([])) == [] and engine.progress.passes == 0
    assert len(answers(engine, requests(2))) == 2


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("count", [1, 2])
def test_few_requests_of_a_batch_whose_cache_is_divided(make: Callable[..., Engine], share: float, count: int) -> None:
    """A share too small for one of them leaves a pool empty, and nobody is refused for it."""
    streamed = STREAMED | {"kv_on_gpu": share}
    asked = requests(count)
    assert tokens_of(make(make_policy("flexgen", 3, 3, **streamed)), asked) == tokens_of(make(), asked)


def test_refusals_among_the_answers(make: Callable[..., Engine]) -> None:
    """Too long for the model, empty, nothing asked for: the rest is answered as if they were not there."""
    bad = [
        Request("long", (5,) * 510, Sampling(LONGEST)),
        Request("empty", (), Sampling(LONGEST)),
        Request("nothing", (5,), Sampling(0)),
    ]
    good = requests(12)
    found = list(make().generate([bad[0], *good[:6], bad[1], *good[6:], bad[2]]))
    refused = {r.request.request_id: r.reason for r in found if isinstance(r, Refusal)}
    assert set(refused) == {"long", "empty", "nothing"} and "512 positions" in refused["long"]
    answered = {c.request.request_id: c.tokens for c in found if isinstance(c, Completion)}
    assert answered == tokens_of(make(), good)


def test_a_request_larger_than_the_cache_is_refused(make: Callable[..., Engine]) -> None:
    small = [Request("fits", (5,) * 40, Sampling(4))]
    engine = make(kv_tokens=9 * 16)
    assert all(isinstance(c, Completion) for c in engine.generate(small))


# --- sampling


def sampled(count: int) -> list[Request]:
    """A mixture: greedy, warm, cut; with seeds of their own."""
    kinds = [{}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8}, {"temperature": 1.5, "top_p": 0.95}]
    return [
        replace(r, sampling=replace(r.sampling, seed=i * 977, **kinds[i % len(kinds)]))
        for i, r in enumerate(requests(count))
    ]


def test_sampling_repeats_and_seeds_differ(make: Callable[..., Engine]) -> None:
    engine = make()
    first = tokens_of(engine, sampled(14))
    assert tokens_of(engine, sampled(14)) == first == tokens_of(make(), sampled(14))
    other = [replace(r, sampling=replace(r.sampling, seed=r.sampling.seed + 1)) for r in sampled(14)]
    changed = {name for name, tokens in tokens_of(engine, other).items() if tokens != first[name]}
    assert changed >= {"1", "3", "5", "7"} and not changed & {"0", "4", "8", "12"}


@pytest.mark.parametrize("policy", ["auto, mixed", "auto, mixed, batch", "module_batched, split", "flexgen, pageable"])
def test_sampling_does_not_depend_on_the_policy(make: Callable[..., Engine], policy: str) -> None:
    assert tokens_of(make(policy), sampled(20)) == tokens_of(make(), sampled(20))


def test_sampling_does_not_depend_on_company(make: Callable[..., Engine]) -> None:
    """Alone, in other order, among others: the same tokens."""
    engine, asked = make(), sampled(14)
    together = tokens_of(engine, asked)
    assert tokens_of(engine, asked[::-1]) == together
    for each in asked[:4]:
        assert tokens_of(engine, [each]) == {each.request_id: together[each.request_id]}


# --- logits, timeline, refused policies


def test_kept_logits_belong_to_their_tokens(make: Callable[..., Engine]) -> None:
    plain, kept = (
        answers(make("auto, mixed"), requests(14)),
        answers(make("auto, mixed", keep_logits=True), requests(14)),
    )
    for name, completion in kept.items():
        assert isinstance(completion.logits, torch.Tensor) and completion.logits.shape == (LONGEST, 128)
        assert tuple(completion.logits.argmax(dim=-1).tolist()) == completion.tokens == plain[name].tokens
        assert plain[name].logits is None


@pytest.mark.parametrize("change", [{"weights_on_disk": 0.5}, {"tensor_parallel_size": 2}])
def test_policies_that_cannot_be_run_are_refused(make: Callable[..., Engine], change: dict[str, object]) -> None:
    with pytest.raises(PolicyError, match=f"policy: {next(iter(change))} .*search with a profile"):
        make(make_policy("cgopipe", 3, 3, **change))


@pytest.mark.parametrize("name", POLICIES)
def test_the_timeline_respects_the_graph(make: Callable[..., Engine], name: str) -> None:
    engine = make(name)
    answers(engine, requests(5, max_tokens=2))
    timeline = engine.last_timeline
    assert timeline is not None and (timeline.start <= timeline.end).all()
    for i, task in enumerate(timeline.graph.tasks):
        assert all(timeline.end[before] <= timeline.start[i] for before in task.after)
    assert timeline.makespan <= engine.progress.recent[-1].seconds


# --- any policy


@st.composite
def random_policies(draw: st.DrawFn) -> Policy:
    """Every placement of every schedule, with shares as a search would find them, ends and halves often."""

    def share(low: float, high: float) -> float:
        return draw(st.sampled_from([low, high]) | st.floats(low, high))

    placement = draw(st.sampled_from([p for name in schedule_names() for p in placements(name)]))
    attention = {"cpu": 0.0, "resident": 1.0, "streamed": 1.0}.get(placement.attention)
    attention = share(0.0, 1.0) if attention is None else attention
    free = {"streamed": (0.0, 0.9), "split": (0.0, attention)}.get(placement.attention)
    experts = share(0.0, 1.0) if placement.experts_on_cpu else 1.0
    return make_policy(
        placement.schedule,
        draw(st.integers(1, 4)),
        1 if placement.single_micro_batch else draw(st.integers(1, 4)),
        attention_on_gpu=attention,
        kv_on_gpu=share(*free) if free else attention,
        attention_place=placement.attention,
        ffn_batching=placement.ffn,
        mixed_prefill=placement.mixed_prefill,
        experts_on_gpu=experts,
        weights_on_gpu=share(0.0, experts),
        dense_weights_on_gpu=draw(st.sampled_from([1.0, 0.5, 0.0])),
        prefill_chunk_tokens=draw(st.sampled_from([8, 24, 256])),
        page_pool_bytes=draw(st.sampled_from([3e4, 8e4, 1e9])),
        attention_lookahead=draw(st.sampled_from([1, 2, 4])),
        hidden_states_by=draw(st.sampled_from(["copy_engine", "kernel"])),
        host_weights=draw(st.sampled_from(["page_locked", "pageable"])),
        weight_prefetch=draw(st.sampled_from(["always", "within_decode"])),
    )


def stages_cached_kv(policy: Policy) -> bool:
    """What is reported below."""
    return policy.host_weights == "pageable" and 0 < policy.kv_on_gpu < policy.attention_on_gpu


@cache
def greedy(directory: Path) -> dict[str, tuple[int, ...]]:
    engine = Engine(Checkpoint.open(directory), POLICIES["flexgen, resident"], device="cpu")
    found = tokens_of(engine, requests(11))
    engine.close()
    return found


NEXT_TO_NOTHING = make_policy(
    "auto", 2, 2, experts_on_gpu=2.2250738585072014e-308, ffn_batching="batch", mixed_prefill=True, **HYBRID
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(random_policies().filter(lambda policy: not stages_cached_kv(policy)), st.integers(1, 11))
@example(NEXT_TO_NOTHING, 5)
def test_no_policy_changes_the_tokens(directory: Path, policy: Policy, count: int) -> None:
    engine = Engine(Checkpoint.open(directory), policy, device="cpu")
    found = tokens_of(engine, requests(11)[:count])
    engine.close()
    assert found == {name: tokens for name, tokens in greedy(directory).items() if int(name) < count}


@pytest.mark.parametrize("share", [0.45, 0.31])
@pytest.mark.parametrize("schedule", ["cgopipe", "expert_cache", "auto"])
def test_experts_that_stay_where_they_are_computed(
    make: Callable[..., Engine], directory: Path, schedule: str, share: float
) -> None:
    """Nothing is streamed, and shares that are no whole number of rows are still computed whole."""
    places = {"cgopipe": {}, "expert_cache": RESIDENT, "auto": HYBRID}[schedule]
    policy = make_policy(schedule, 3, 1, experts_on_gpu=share, weights_on_gpu=share, **places)
    assert tokens_of(make(policy), requests(11)) == greedy(directory)


# --- reported, not yet mended


def test_pageable_cache_of_which_a_part_is_resident(make: Callable[..., Engine], directory: Path) -> None:
    policy = make_policy("flexgen", 1, 6, **(STREAMED | {"kv_on_gpu": 0.4}), host_weights="pageable")
    assert tokens_of(make(policy), requests(11)) == greedy(directory)


def test_one_absurd_request_does_not_stop_the_others(
    make: Callable[..., Engine], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take more memory than there is, but exceeds the model's positions anyway."""
    monkeypatch.setattr(kv_need, "available_bytes", lambda: 256 << 20)
    absurd = Request("absurd", (5, 6), Sampling(1_000_000))
    found = list(make("auto, mixed").generate([*requests(11), absurd]))
    assert [r.request.request_id for r in found if isinstance(r, Refusal)] == ["absurd"] and len(found) == 12


def test_after_answers_that_nobody_waited_for(make: Callable[..., Engine], directory: Path) -> None:
    engine = make()
    asked = [replace(r, sampling=replace(r.sampling, max_tokens=LONGEST + 3 * i)) for i, r in enumerate(requests(11))]
    started = engine.generate(asked)
    next(started)
    started.close()
    assert tokens_of(engine, requests(11)) == greedy(directory)


@pytest.mark.parametrize("name", ["cgopipe, nothing resident", "auto, mixed, batch, small ring", "cgopipe"])
def test_after_a_failed_pass(
    make: Callable[..., Engine], directory: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, calls, functions = make(name), [], runtime.passes.FUNCTIONS

    def fails(*args: object) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise OSError("no more memory")
        functions[Kind.LM_HEAD](*args)

    with monkeypatch.context() as patch:
        patch.setattr(runtime.passes, "FUNCTIONS", {**functions, Kind.LM_HEAD: fails})
        with pytest.raises(OSError, match="no more memory"):
            list(engine.generate(requests(11)))
    assert tokens_of(engine, requests(11)) == greedy(directory)


def test_passes_that_keep_their_prompts_share_no_graph_with_those_that_do_not(make: Callable[..., Engine]) -> None:
    """Seven chunks of up to 1,280 tokens are 7,681 to 8,960, of which 8,192 are kept."""
    policy = make_policy("auto", 3, 3, mixed_prefill=True, attention_place="hybrid", prefill_chunk_tokens=1280)
    runner = make(policy).runner
    decode = MicroBatch(sequences=3, context_len=4.0)
    for tokens, spilled in ((1100, False), (1250, True), (1100, False)):
        prompt = MicroBatch(prompt_tokens=tokens, prompts=11.0, prompt_len=100.0, prompt_len_sq=10_000.0)
        graph = runner.wirings.of(Batch((), PassSlice((decode, *[prompt] * 7)))).graph
        assert any(task.kind == Kind.HIDDEN_STORE for task in graph.tasks) == spilled
