"""Lanes that wait for the CPU by themselves: how far it is, what is certain, and that a failure lets everybody go."""

import ctypes
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from runtime_policies import KERNEL, RESIDENT, make_policy
from tiny_checkpoints import save_tiny
from tiny_schedules import VARIANTS, tiny_graph

import runtime.engine
from hrm.schedule.task import Kind, Task
from runtime.checkpoint.checkpoint import Checkpoint
from runtime.device import CpuDevice
from runtime.engine import Engine
from runtime.host_counter import ALL_BITS, HostCounter
from runtime.kernels.cpu_experts import experts_backend
from runtime.memory.host_buffer import HostBuffer
from runtime.pipeline import Pipeline
from runtime.requests.request import Completion, Request, Sampling
from runtime.wiring import Wiring

ON_CPU = "expert_cache_predictive_on_cpu"


class WaitingLanes(CpuDevice):
    """The CPU in the GPU's place, with lanes that wait for words as a GPU's do: without Python's help."""

    def __init__(self) -> None:
        self.waited = 0

    def host_counter(self) -> HostCounter:
        return HostCounter()

    def order_after_host(self, counter: HostCounter, count: int) -> None:
        self.waited += 1
        until = time.monotonic() + 20
        while (counter._done.value - counter._base - count) & ALL_BITS > ALL_BITS >> 1:
            assert time.monotonic() < until, "nobody says that the task is done"
            time.sleep(0)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> WaitingLanes:
    monkeypatch.setattr(HostBuffer, "lock", lambda self: None)  # there is no driver
    return WaitingLanes()


def test_counts_go_on_past_all_bits(device: WaitingLanes) -> None:
    counter = device.host_counter()
    counter._base = counter._top = 2**32 - 3
    counter.reach(0)
    counter.begin(5)
    assert not counter.is_sure(1)
    for done in range(1, 6):
        counter.reach(done)
        assert counter.is_sure(done) and not counter.is_sure(done + 1)
    counter.begin(2)
    assert not counter.is_sure(1)
    counter.reach_all()
    assert counter.is_sure(2)


def test_a_signal_names_the_words_and_the_count(device: WaitingLanes) -> None:
    counter = device.host_counter()
    counter.begin(3)
    signal = counter.signal(2)
    ctypes.c_uint32.from_address(signal.sure).value = signal.value
    assert counter.is_sure(2) and not counter.is_sure(3)
    ctypes.c_uint32.from_address(signal.done).value = signal.value
    device.order_after_host(counter, 2)


def test_only_passes_with_gates_have_lanes_that_wait() -> None:
    """In others the thread would run ahead until the driver stops it."""
    waiting = {name for name, policy in VARIANTS.items() if Wiring(tiny_graph(policy, "decode")).awaited_by_lanes}
    on_cpu = {name for name, policy in VARIANTS.items() if policy.caches_whole_experts and policy.experts_on_gpu < 1}
    assert waiting == on_cpu and ON_CPU in waiting


def test_a_failure_lets_lanes_go(device: WaitingLanes) -> None:
    wiring, began = Wiring(tiny_graph(VARIANTS[ON_CPU], "decode")), threading.Event()
    pipeline = Pipeline(device)

    def perform(index: int, task: Task) -> None:
        if task.kind == Kind.CPU_EXPERT_FFN:
            signal = run.signal(index)
            assert signal is not None
            ctypes.c_uint32.from_address(signal.sure).value = signal.value
            began.wait(0.2)  # so that the lane waits by then
            raise OSError("no such memory")

    run = pipeline.prepare(wiring, perform, timed=True)
    with pytest.raises(OSError, match="no such memory"):
        pipeline.execute(run)
    pipeline.close()


@pytest.mark.skipif(experts_backend() != "compiled", reason="only compiled code gives the signal")
@pytest.mark.parametrize("timed", [True, False])
def test_the_same_answers(device: WaitingLanes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, timed: bool) -> None:
    save_tiny("qwen3_moe", tmp_path)
    model, random = Checkpoint.open(tmp_path), np.random.default_rng(0)
    policy = make_policy(
        "expert_cache", 4, 1, weights_on_gpu=0.25, expert_cache="lru", experts_on_gpu=0.3, **RESIDENT, **KERNEL
    )
    prompts = [tuple(random.integers(3, 128, length).tolist()) for length in (4, 7, 20)]
    asked = [Request(str(i), prompt, Sampling(20, ignore_eos=True)) for i, prompt in enumerate(prompts)]

    def answers() -> dict[str, tuple[int, ...]]:
        with Engine(model, policy, device="cpu") as engine:
            engine.runner.timed = timed
            found = list(engine.generate(asked))
            assert (engine.last_timeline is not None) == timed
        return {c.request.request_id: c.tokens for c in found if isinstance(c, Completion)}

    expected = answers()
    monkeypatch.setattr(runtime.engine, "make_device", lambda name: device)
    assert answers() == expected and len(expected) == 3
    assert device.waited > 0
