"""Experts in slots, part by part: marks shared by a wave, copies in one call, rows in order of steps."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runtime_policies import KERNEL, RESIDENT, make_policy
from tiny_checkpoints import save_tiny

from runtime.checkpoint.checkpoint import Checkpoint
from runtime.device import CpuDevice
from runtime.engine import Engine
from runtime.events import EventPool
from runtime.experts import slot_memory
from runtime.experts.slot_marks import SlotMarks
from runtime.kernels import slot_ffn, slot_rows
from runtime.kernels.gpu_attention import Masks, decode_attention
from runtime.kernels.slot_ffn import SlotWeights, bring_over, fill_step
from runtime.kernels.slot_rows import Steps, rows_by_step, steps_of
from runtime.memory.expert_layout import Slab
from runtime.memory.host_buffer import HostBuffer
from runtime.memory.slab_tensors import SlabTensors
from runtime.memory.staging import Staging
from runtime.requests.request import Completion, Sampling

CPU = torch.device("cpu")


@dataclass
class MarkedDevice(CpuDevice):
    """Marks are numbers; says which were waited for, and which are not to be reached yet."""

    count: int = 0
    waited: list[float] = field(default_factory=list)
    given: list[object] = field(default_factory=list)
    pending: set[float] = field(default_factory=set)

    def mark(self) -> float:
        self.count += 1
        return float(self.count)

    def recycle(self, marks) -> None:
        self.given += marks

    def order_after(self, mark) -> None:
        self.waited.append(mark)

    def reached(self, mark) -> bool:
        return mark not in self.pending


def test_a_wave_has_one_mark_and_is_waited_for_once():
    device, marks = MarkedDevice(), SlotMarks()
    marks.correct(device, (3, 4, 5))
    marks.use(device, (5, 6))
    marks.await_copies(device, (3, 4, 5, 6))
    assert device.waited == [1.0] and device.count == 2
    marks.await_idle(device, (4, 5, 6))
    assert sorted(device.waited) == [1.0, 1.0, 2.0]


def test_a_gate_forgets_all_but_prefetches_under_way():
    device, marks = MarkedDevice(), SlotMarks()
    marks.prefetch(device, (1, 2))
    marks.prefetch(device, (7, 8))
    marks.correct(device, (3, 8))
    marks.use(device, (3, 4))
    device.pending = {2.0}
    marks.pass_gate(device)
    assert sorted(device.given) == [1.0, 3.0, 4.0]  # each once, none that somebody may wait for
    assert marks.arriving((1, 2, 3, 7, 8)) == 1  # the correction came after the prefetch of 8, and is over
    marks.await_idle(device, (1, 2, 3, 4))
    assert device.waited == []
    assert marks.under_way(device) == 2
    device.pending = set()
    assert marks.under_way(device) == marks.arriving((7, 8)) == 0
    assert sorted(device.given) == [1.0, 2.0, 3.0, 4.0]


def test_a_slot_written_again_waits_for_both():
    device, marks = MarkedDevice(pending={1.0, 2.0}), SlotMarks()
    marks.prefetch(device, (1, 2))
    marks.prefetch(device, (2, 3))
    marks.await_copies(device, (1, 2, 3))
    assert sorted(device.waited) == [1.0, 2.0]
    device.pending = {2.0}
    assert marks.under_way(device) == 2 and marks.arriving((1, 2, 3)) == 2


def test_events_are_given_back_to_their_kind():
    pool = EventPool()
    pool.give((1.5, None))
    assert not pool._timed and not pool._spun


@given(st.data())
def test_rows_by_step(data):
    tokens, top_k, experts, slots = 7, 3, 12, 5000
    chosen = np.array(data.draw(st.permutations(range(experts))) * 4)[: tokens * top_k].reshape(tokens, top_k)
    count = data.draw(st.integers(0, 3))
    step = data.draw(st.lists(st.integers(0, count), min_size=experts, max_size=experts))
    places = data.draw(st.permutations(range(0, slots, slots // experts)))
    steps = [[(e, places[e]) for e in range(experts) if step[e] == s] for s in range(count)]
    rows = rows_by_step(chosen, steps_of(steps, experts), slots)
    flat, found = chosen.reshape(-1), rows.places(chosen.size)
    for pair, expert in enumerate(flat):
        row = int(found[pair])
        if step[expert] == count:
            assert row == len(rows.pairs)
        else:
            assert rows.pairs[row] == pair and rows.slots[row] == places[expert]
            assert rows.borders[step[expert]] <= row < rows.borders[step[expert] + 1]
    for number in range(count):
        spans = list(rows.spans(number))
        covered = [row for span in spans for row in range(span.start, span.stop)]
        assert covered == list(range(*rows.borders[number : number + 2].tolist()))
        for span in spans:
            assert span.last - span.first <= slot_rows.MOST_GROUPS and span.ends[-1] == span.stop - span.start
            starts = np.concatenate(([0], span.ends[:-1])) + span.start
            for slot, start, stop in rows.each_slot(span.start, span.stop):
                assert starts[slot - span.first] == start and span.ends[slot - span.first] + span.start == stop


@pytest.mark.parametrize("most", [1000, 4])
def test_grouped_matmuls_give_what_single_ones_give(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Several spans of slots too; rows of a step may begin anywhere."""
    generator, (tokens, top_k, experts, slots, hidden, inner) = torch.Generator().manual_seed(1), (9, 2, 8, 16, 32, 16)
    gate_up = (torch.randn(slots, 2 * inner, hidden, generator=generator) / 6).bfloat16()
    down = (torch.randn(slots, hidden, inner, generator=generator) / 4).bfloat16()
    slab = Slab(0, 1, 0, inner)
    weights = SlotWeights(
        slots, inner, lambda s: SlabTensors(slab, gate_up[s : s + 1], down[s : s + 1]),
        lambda a, b: (gate_up[a:b], down[a:b]),
    )  # fmt: skip
    x = torch.randn(tokens, hidden, generator=generator).bfloat16()
    chosen = torch.stack([torch.randperm(experts, generator=generator)[:top_k] for _ in range(tokens)]).numpy()
    slot_of = torch.randperm(slots, generator=generator)[:experts].numpy()
    steps = Steps(np.array([0, 1, 2, 0, 1, 0, 1, 2]), slot_of, 2)
    monkeypatch.setattr(slot_rows, "MOST_GROUPS", most)
    rows = bring_over({0: rows_by_step(chosen, steps, slots)}, {0: chosen.size}, Staging(CPU), CPU)[0]
    inputs = x.index_select(0, rows.tokens)
    whole, again = (torch.zeros(len(rows.pairs), hidden) for _ in range(2))
    for step in range(2):
        fill_step(whole, inputs, rows, step, weights)
    monkeypatch.setattr(slot_ffn, "goes_grouped", lambda device, dtype: True)
    for step in range(2):
        a, b = rows.rows.borders[step : step + 2]
        fill_step(again[a:b], inputs[a:b], rows, step, weights, int(a))
    assert whole.abs().sum() > 0
    torch.testing.assert_close(again, whole, atol=3e-2, rtol=0)


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("cache", ["lru", "predictive"])
def test_slots_hold_what_the_cache_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str, seen: bool
) -> None:
    """Also where a kernel copies, from memory as the GPU sees it: in words of another size."""
    copied = []

    def view(buffer: HostBuffer, device: torch.device) -> torch.Tensor | None:
        copied.append(buffer)
        return buffer.bytes.view(torch.int32) if seen else None

    monkeypatch.setattr(slot_memory, "seen_by_gpu", view)
    save_tiny("qwen3_moe", tmp_path)
    model = Checkpoint.open(tmp_path)
    policy = make_policy("expert_cache", 4, 1, weights_on_gpu=0.5, expert_cache=cache, **RESIDENT, **KERNEL)
    with Engine(model, policy, device="cpu") as engine:
        done = list(engine.generate([(5, 6, 7), (8, 9), (4,)], Sampling(6, ignore_eos=True)))
        slots = engine.memory.slots
        assert slots is not None and copied and all(isinstance(d, Completion) for d in done)
        held = slots.cache._table.expert_in
        assert (held >= 0).any()
        for slot, number in enumerate(held.tolist()):
            if number >= 0:
                layer, expert = divmod(number, model.config.num_experts)
                start = slots.store.region.starts[expert]
                source = slots.store.host_bytes(slots.moe_layers[layer])[start : start + slots.memory.shape[1]]
                assert torch.equal(slots.memory[slot], source)


def test_choices_go_to_the_host_whatever_their_strides():
    staging, values = Staging(CPU), torch.arange(60).view(5, 3, 4)[:, 1]
    assert torch.equal(staging.store(values), values)


def test_decode_attention_of_stored_tokens_and_with_kept_masks():
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn(9, 2, 2, 4, 8, generator=generator)
    table, lengths = torch.tensor([[1, 2, 3], [4, 5, 0], [6, 0, 0]]), torch.tensor([11, 8, 1])
    qkv = torch.randn(3, 4 + 2 * 2, 8, generator=generator)
    masks: Masks = {}
    expected = decode_attention(qkv, blocks, table, lengths, 4, 0.3, (3, 2, 1))
    at = lengths - 1
    blocks[table[torch.arange(3), at // 4], :, :, at % 4] = qkv[:, 4:].reshape(3, 2, 2, 8)
    for _ in range(2):
        found = decode_attention(qkv, blocks, table, lengths, 4, 0.3, (3, 2, 1), masks, stored=True)
        assert torch.equal(found, expected)
    assert len(masks) == 1
    assert decode_attention(qkv[:0], blocks, table[:0], lengths[:0], 4, 0.3).shape == (0, 32)
