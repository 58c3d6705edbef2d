"""Who joins a pass and what it carries: the KV cache never overflows, everybody finishes, nothing is carried twice."""

from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from fake_engine import TINY_CONFIG
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime_policies import POLICIES, make_policy

from hrm.errors import HrmError
from hrm.spec.policy import Policy
from runtime import kv_need
from runtime.batch import Batch, Rows
from runtime.checkpoint.synthetic import synthetic_checkpoint
from runtime.finishing import finish_reason, text_of
from runtime.forming import form_batch
from runtime.kv_need import kv_plan
from runtime.memory.kv_cache import BLOCK, BlockPool, block_bytes, blocks_of
from runtime.requests.request import Request, Sampling
from runtime.scheduler import Demand, admit, peak_blocks, pool_demand, refusal
from runtime.sequences import SequenceTable, make_table
from runtime.table_arrays import padded_table

MAX_POSITIONS = 400
CONFIG = synthetic_checkpoint(TINY_CONFIG).config
HALF = {"attention_on_gpu": 0.5, "kv_on_gpu": 0.5}


def request(prompt: int, max_tokens: int, name: str = "") -> Request:
    return Request(name, tuple(range(prompt)), Sampling(max_tokens))


def pools_of(host: int, gpu: int) -> dict[str, BlockPool]:
    return {"host": BlockPool(host), "gpu": BlockPool(gpu)}


requests_of_any_length = st.lists(st.builds(request, st.integers(1, 90), st.integers(1, 60)), max_size=25)


# --- how many blocks are needed


def most_held(demand: Demand, growth: np.ndarray) -> int:
    """Pass by pass: everybody grows by its tokens, is counted, and leaves at its end."""
    cached, coming, most = demand.cached.copy(), demand.coming.copy(), 0
    step = growth.copy()
    alive = np.ones(len(cached), bool)
    while alive.any():
        cached[alive] += step[alive]
        coming[alive] -= step[alive]
        most = max(most, sum(blocks_of(int(n)) for n in cached[alive]))
        alive &= coming > 0
        step = np.ones_like(step)
    return most


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 80), st.integers(1, 80)), max_size=12))
def test_peak_equals_the_most_held_pass_by_pass(sequences: list[tuple[int, int, int]]) -> None:
    cached, coming, growth = (np.array([s[i] for s in sequences], np.int64) for i in range(3))
    demand = Demand(cached, coming)
    assert peak_blocks(demand, np.minimum(growth, coming)) == most_held(demand, np.minimum(growth, coming))


def test_the_last_token_is_never_cached() -> None:
    table = make_table(1, 40, 20)
    table.enter(0, request(10, 7), False)
    demand, growth = pool_demand(table, False)
    assert (demand.cached.tolist(), demand.coming.tolist(), growth.tolist()) == ([0], [16], [10])
    assert peak_blocks(demand, growth) == 1


# --- runs to the end


@dataclass
class Run:
    """The scheduler with made-up tokens; ends early with probability `early`, as an end-of-sequence token would."""

    policy: Policy
    pools: dict[str, BlockPool]
    requests: list[Request]
    early: float = 0.0
    refused: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    passes: int = 0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.waiting: deque[Request] = deque()
        for each in self.requests:
            reason = refusal(each, self.policy, self.pools, MAX_POSITIONS)
            self.waiting.append(each) if reason is None else self.refused.append(each.request_id)
        longest = max((len(r.prompt) + r.sampling.max_tokens for r in self.requests), default=1)
        most = max((r.sampling.max_tokens for r in self.requests), default=1)
        self.table = make_table(min(self.policy.batch_size, max(1, len(self.requests))), longest, most)

    def to_the_end(self) -> "Run":
        while self.waiting or self.table.active.any():
            self.one_pass()
        assert all(pool.used == 0 for pool in self.pools.values())
        return self

    def one_pass(self) -> None:
        table, batched = self.table, int(self.table.active.sum())
        taken = admit(table, self.waiting, self.policy, self.pools)
        assert not taken or not batched or self.policy.mixed_prefill
        assert table.active.any(), "nobody runs and somebody waits"
        batch = form_batch(table, self.policy)
        check_batch(batch, table, self.policy)
        growth = np.where(table.made > 0, 1, table.prompt - table.cached)
        table.reserve(table.in_flight, growth[table.in_flight], self.pools)  # fails where a pool overflows
        self.no_block_twice()
        slots = np.array([slot for rows in batch.rows for slot in rows.logit_slots], np.int64)
        table.append(slots, self.random.integers(0, 99, len(slots)))
        for slot in slots.tolist():
            if table.made[slot] >= table.target[slot] or self.random.random() < self.early:
                self.finished.append(table.leave(slot, self.pools).request_id)
        self.passes += 1

    def no_block_twice(self) -> None:
        table = self.table
        for name, mine in (("gpu", table.on_gpu), ("host", ~table.on_gpu)):
            slots = np.flatnonzero(table.active & mine)
            held = [b for s in slots for b in table.table[s, : blocks_of(int(table.cached[s]))]]
            assert len(set(held)) == len(held) == self.pools[name].used


def check_batch(batch: Batch, table: SequenceTable, policy: Policy) -> None:
    decoding = [rows for rows in batch.rows if not rows.is_prefill]
    prefill = [rows for rows in batch.rows if rows.is_prefill]
    check_decoding(decoding, table, policy)
    check_prefill(prefill, table, policy)
    for rows, seen in zip(batch.rows, batch.slice.micro_batches, strict=True):
        assert len(rows.tokens) == len(rows.positions) == seen.tokens > 0
        assert (seen.sequences, seen.gpu_sequences) == (len(rows.slots), rows.gpu_sequences)
        assert seen.is_prefill == rows.is_prefill and len(rows.logit_rows) == len(rows.logit_slots)
    assert sorted(slot for rows in batch.rows for slot in rows.logit_slots) == table.in_flight.tolist()
    assert [kind for kind, _, _ in batch.structure] == [rows.is_prefill for rows in batch.rows]


def check_decoding(decoding: list[Rows], table: SequenceTable, policy: Policy) -> None:
    """Everybody in one micro-batch; sizes, and those of every class, differ by at most one."""
    slots = [int(slot) for rows in decoding for slot in rows.slots]
    assert sorted(slots) == table.decoding.tolist() and len(decoding) == min(policy.num_micro_batches, len(slots))
    for sizes in ([len(r.slots) for r in decoding], [r.resident for r in decoding], [r.streamed for r in decoding]):
        assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert all(len(rows.slots) <= policy.micro_batch_size for rows in decoding)
    for rows in decoding:
        on_gpu = table.on_gpu[rows.slots]
        assert on_gpu[: rows.resident].all() and not on_gpu[rows.resident :].any()
        assert np.array_equal(rows.tokens, table.last[rows.slots])
        assert np.array_equal(rows.positions, table.cached[rows.slots])
    on_host = int((~table.on_gpu[table.decoding]).sum())
    wanted = (policy.attention_on_gpu - policy.kv_on_gpu) / max(1e-9, 1 - policy.kv_on_gpu) * on_host
    assert abs(sum(rows.streamed for rows in decoding) - wanted) <= 0.5 + 1e-9


def check_prefill(prefill: list[Rows], table: SequenceTable, policy: Policy) -> None:
    """Pieces cover each prompt once, in order, in chunks of nearly equal size that fit."""
    at = dict.fromkeys(table.entering.tolist(), 0)
    for rows in prefill:
        assert not len(rows.slots) and 0 < len(rows.tokens) <= policy.prefill_chunk_tokens
        row = 0
        for piece in rows.pieces:
            assert (piece.row, piece.start) == (row, at[piece.slot]) and piece.stop > piece.start
            whole = table.requests[piece.slot].prompt
            assert piece.last == (piece.stop == len(whole))
            row, at[piece.slot] = row + piece.stop - piece.start, piece.stop
            assert tuple(rows.tokens[piece.row : row]) == whole[piece.start : piece.stop]
            assert rows.positions[piece.row : row].tolist() == list(range(piece.start, piece.stop))
        assert row == len(rows.tokens)
    assert all(at[slot] == table.prompt[slot] for slot in at)
    sizes = [len(rows.tokens) for rows in prefill]
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


SOME = ("cgopipe", "flexgen, part resident", "module_batched, split", "auto, mixed", "auto, mixed, batch")
policies = st.sampled_from([POLICIES[name] for name in SOME]) | st.builds(
    lambda mixed, mu, n, chunk: make_policy("auto", mu, n, **HALF, mixed_prefill=mixed, prefill_chunk_tokens=chunk),
    st.booleans(),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 80),
)


@settings(max_examples=80, deadline=None)
@given(policies, requests_of_any_length, st.integers(0, 40), st.integers(0, 40), st.sampled_from([0.0, 0.0, 0.1]))
def test_pools_never_overflow_and_everybody_finishes(
    policy: Policy, requests: list[Request], host: int, gpu: int, early: float
) -> None:
    """Whatever the lengths, however little room there is, also where sequences end before they said."""
    gpu = max(gpu, 1) if policy.kv_on_gpu else 0  # a policy's pools hold at least something
    named = [Request(str(i), r.prompt, r.sampling) for i, r in enumerate(requests)]
    run = Run(policy, pools_of(max(host, 1), gpu), named, early).to_the_end()
    assert sorted([*run.finished, *run.refused]) == sorted(r.request_id for r in named)
    room = min(max(host, 1), gpu) if policy.kv_on_gpu else max(host, 1)
    longest = {r.request_id: blocks_of(len(r.prompt) + r.sampling.max_tokens - 1) for r in named}
    assert all((longest[i] > room) == (i in run.refused) for i in longest)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_runs_to_the_end(name: str) -> None:
    policy, random = POLICIES[name], np.random.default_rng(1)
    requests = [request(int(p), int(m), str(i)) for i, (p, m) in enumerate(random.integers(1, 70, (30, 2)))]
    run = Run(policy, plan_pools(policy, requests), requests, 0.02).to_the_end()
    assert not run.refused and len(run.finished) == 30


def test_a_batch_ends_before_the_next_begins() -> None:
    requests = [request(5, m, str(m)) for m in range(1, 19)]
    run = Run(POLICIES["cgopipe"], pools_of(100, 0), requests).to_the_end()
    assert run.passes == 9 + 18 and run.finished == [str(m) for m in range(1, 19)]


def test_mixing_spreads_ages_and_refills() -> None:
    """With more waiting than fit, as many join per pass as end in one; batches stay full."""
    policy = POLICIES["auto, mixed"]
    requests = [request(5, 9, str(i)) for i in range(60)]
    run = Run(policy, pools_of(200, 200), requests)
    run.one_pass()
    assert int(run.table.active.sum()) == 1
    while run.waiting:
        run.one_pass()
        assert run.passes < 9 or int(run.table.active.sum()) >= policy.batch_size - 1
    run.to_the_end()
    assert run.passes < 60 + 2 * 9


def test_those_who_do_not_fit_wait_in_their_order() -> None:
    requests = [request(30, 3, str(i)) for i in range(9)]
    run = Run(POLICIES["cgopipe"], pools_of(7, 0), requests)
    run.one_pass()
    assert int(run.table.active.sum()) == 3 and [r.request_id for r in run.waiting] == list("345678")


@pytest.mark.parametrize("share", [0.0, 0.25, 0.4, 0.5, 0.9, 1.0])
def test_homes_are_in_proportion(share: float) -> None:
    policy = make_policy("auto", 5, 4, attention_on_gpu=share, kv_on_gpu=share)
    run = Run(policy, pools_of(99, 99), [request(4, 4, str(i)) for i in range(20)])
    admit(run.table, run.waiting, policy, run.pools)
    assert int(run.table.on_gpu.sum()) == round(share * 20)


def test_homes_stay_in_proportion_while_others_leave() -> None:
    policy = make_policy("auto", 5, 4, **HALF, mixed_prefill=True)
    random = np.random.default_rng(3)
    run = Run(policy, pools_of(99, 99), [request(4, int(m), str(i)) for i, m in enumerate(random.integers(1, 30, 200))])
    while len(run.waiting) > 20:
        run.one_pass()
        if (active := int(run.table.active.sum())) > 10:
            assert abs(int((run.table.on_gpu & run.table.active).sum()) - active / 2) <= 4


# --- refusals


def test_requests_that_can_never_run_are_refused() -> None:
    policy, pools = POLICIES["cgopipe"], pools_of(4, 0)
    assert refusal(request(60, 5), policy, pools, 400) is None  # 64 tokens are cached
    told = {
        "the prompt is empty": request(0, 5),
        "max_tokens is 0; ask for at least one": request(3, 0),
        "300 prompt tokens and 101 to generate exceed the model's 400 positions": request(300, 101),
        "66 tokens need 5 KV blocks of 16 tokens, the policy leaves 4": request(60, 6),
    }
    for reason, asked in told.items():
        assert (refusal(asked, policy, pools, 400) or "").startswith(reason)


def test_either_home_has_to_hold_a_request() -> None:
    """Where both pools are used nobody knows to which a request will go; an empty pool is nobody's home."""
    policy = make_policy("auto", 3, 3, **HALF)
    assert refusal(request(30, 5), policy, pools_of(9, 2), 400) is not None
    assert refusal(request(30, 5), policy, pools_of(2, 9), 400) is not None
    assert refusal(request(30, 5), policy, pools_of(3, 3), 400) is None
    assert refusal(request(30, 5), policy, pools_of(3, 0), 400) is None


# --- how much is planned for


def plan_pools(policy: Policy, requests: list[Request], tokens: int | None = None) -> dict[str, BlockPool]:
    kv, device = SimpleNamespace(host_bytes=0), SimpleNamespace(type="cpu")
    plan = kv_plan(SimpleNamespace(config=CONFIG, kv=kv, device=device), policy, requests, tokens)
    assert not plan.lock
    return pools_of(plan.host_blocks, plan.gpu_blocks)


@settings(max_examples=60, deadline=None)
@given(policies, requests_of_any_length.filter(len))
def test_what_is_planned_refuses_nobody(policy: Policy, requests: list[Request]) -> None:
    named = [Request(str(i), r.prompt, r.sampling) for i, r in enumerate(requests)]
    run = Run(policy, plan_pools(policy, named), named).to_the_end()
    assert not run.refused and len(run.finished) == len(named)


@pytest.mark.parametrize("name", ["cgopipe", "flexgen, part resident", "flexgen, resident", "module_batched, split"])
@pytest.mark.parametrize("count", [1, 2, 5, 9, 30])
def test_equal_requests_all_fit_as_planned(name: str, count: int) -> None:
    """The batch of the policy, or all requests where they are fewer, joins at once; lengths here fill their blocks."""
    policy, requests = POLICIES[name], [request(44, 20, str(i)) for i in range(count)]
    run = Run(policy, plan_pools(policy, requests), requests)
    run.one_pass()
    in_flight = min(count, policy.batch_size)
    assert int(run.table.active.sum()) == in_flight
    resident = round(policy.kv_on_gpu * in_flight)
    assert run.pools["gpu"].num_blocks <= resident * 4 + kv_need.FEW  # hardly more than the policy plans


def test_stated_tokens_decide_the_size() -> None:
    pools = plan_pools(make_policy("auto", 3, 3, **HALF), [request(4, 4)] * 9, tokens=9 * 64 * BLOCK)
    resident = round(0.5 * 9)
    assert resident * 64 <= pools["gpu"].num_blocks <= resident * 65
    assert (9 - resident) * 64 <= pools["host"].num_blocks <= (9 - resident) * 64 * 1.05


def test_too_little_cpu_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than the batch needs is taken as it is; none at all is an error."""
    requests = [request(40, 24, str(i)) for i in range(9)]
    per_block = block_bytes(CONFIG) * CONFIG.num_layers
    for room in (3, 4, 7):
        available = -(-room * per_block * 4 // 3)  # a quarter is left to everything else
        monkeypatch.setattr(kv_need, "available_bytes", lambda available=available: available)
        assert plan_pools(POLICIES["cgopipe"], requests)["host"].num_blocks == room
    monkeypatch.setattr(kv_need, "available_bytes", lambda: per_block)
    with pytest.raises(HrmError, match=r"KV cache: .* CPU memory has room for none"):
        plan_pools(POLICIES["cgopipe"], requests)


# --- when a completion ends


def spell(tokens: list[int]) -> str:
    return "".join(chr(96 + t) for t in tokens)


@pytest.mark.parametrize(
    ("sampling", "tokens", "reason", "text"),
    [
        (Sampling(3), [1, 2], None, "ab"),
        (Sampling(3), [1, 2, 3], "length", "abc"),
        (Sampling(3), [1, 9], "stop", "a"),
        (Sampling(2), [1, 9], "stop", "a"),
        (Sampling(3), [9, 1], None, "ia"),
        (Sampling(3, ignore_eos=True), [1, 9], None, "ai"),
        (Sampling(2, ignore_eos=True), [1, 9], "length", "ai"),
        (Sampling(9, stop=("bc",)), [1, 2, 3], "stop", "a"),
        (Sampling(9, stop=("c", "bc")), [1, 2, 3, 4], "stop", "a"),
        (Sampling(3, stop=("z",)), [1, 2, 3], "length", "abc"),
        (Sampling(9, stop=("a",)), [1], "stop", ""),
    ],
)
def test_a_completion_ends_for_the_right_reason(
    sampling: Sampling, tokens: list[int], reason: str | None, text: str
) -> None:
    assert finish_reason(sampling, tokens, (9,), spell) == reason
    assert text_of(sampling, tokens, (9,), spell) == text
    assert text_of(sampling, tokens, (9,), None) == ""


def test_a_slot_that_changes_its_pool_leaves_no_block_of_the_other_behind() -> None:
    """Padding is read too, so it has to lie in the pool that is read."""
    table, pools = make_table(2, 8 * BLOCK, 4), pools_of(100, 6)
    pools["host"].allocate(50)
    table.enter(0, request(6 * BLOCK, 4), on_gpu=False)
    table.reserve(np.array([0]), np.array([6 * BLOCK]), pools)
    table.leave(0, pools)
    for slot, tokens in ((0, BLOCK), (1, 3 * BLOCK)):
        table.enter(slot, request(tokens, 4), on_gpu=True)
        table.reserve(np.array([slot]), np.array([tokens]), pools)
    padded = padded_table(table, np.array([0, 1]))
    assert padded.shape == (2, 3) and padded.max() < 6
    assert padded[0].tolist() == [table.table[0, 0]] * 3
    assert padded[1].tolist() == table.table[1, :3].tolist()
