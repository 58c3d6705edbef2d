"""Marks are reused from pass to pass: never while somebody may still wait for one, whatever happened in between."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from runtime_policies import POLICIES
from tiny_checkpoints import save_tiny

from hrm.schedule.task import Kind
from runtime.checkpoint.checkpoint import Checkpoint
from runtime.device import CpuDevice, Mark
from runtime.engine import Engine
from runtime.requests.request import Request, Sampling
from runtime.tasks import registry


class CountingDevice(CpuDevice):
    """Numbers instead of times; knows which marks have been given back."""

    def __init__(self) -> None:
        self.made, self.spare, self.reused = 0, set[float](), list[Mark]()

    def mark(self) -> Mark:
        self.made += 1
        return float(self.made)

    def recycle(self, marks: Iterable[Mark | None]) -> None:
        for mark in marks:
            if mark is None:
                continue
            assert mark not in self.spare, "given back twice: two tasks would share it"
            assert isinstance(mark, float)
            self.spare.add(mark)

    def order_after(self, mark: Mark) -> None:
        assert mark not in self.spare, "waited for after it was given back"

    def host_wait(self, mark: Mark) -> None:
        assert mark not in self.spare, "waited for after it was given back"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixtral")
    save_tiny("mixtral", path)
    return path


def engine_on(device: CountingDevice, directory: Path, policy: str, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr("runtime.engine.make_device", lambda name: device)
    return Engine(Checkpoint.open(directory), POLICIES[policy], device="cpu")


REQUESTS = [Request(str(i), (5, 6, 7 + i), Sampling(5)) for i in range(12)]


@pytest.mark.parametrize("policy", ["cgopipe", "cgopipe, kernel", "flexgen", "auto, mixed, batch", "cgopipe, pageable"])
def test_no_mark_is_waited_for_or_given_back_twice(
    directory: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = CountingDevice()
    with engine_on(device, directory, policy, monkeypatch) as engine:
        assert len(list(engine.generate(REQUESTS))) == len(REQUESTS)
    assert device.spare


@pytest.mark.parametrize("policy", ["cgopipe", "auto, mixed, batch"])
def test_nor_after_a_pass_that_failed(directory: Path, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = CountingDevice()
    with engine_on(device, directory, policy, monkeypatch) as engine:
        original, calls = registry.FUNCTIONS[Kind.POST_ATTENTION], [0]

        def failing(*arguments: object) -> None:
            calls[0] += 1
            if calls[0] == 9:
                raise RuntimeError("planted")
            original(*arguments)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setitem(registry.FUNCTIONS, Kind.POST_ATTENTION, failing)
            with pytest.raises(RuntimeError, match="planted"):
                list(engine.generate(REQUESTS))
        assert len(list(engine.generate(REQUESTS))) == len(REQUESTS)


def test_a_second_run_ends_the_first(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hrm.errors import HrmError

    with engine_on(CountingDevice(), directory, "cgopipe", monkeypatch) as engine:
        first = engine.generate(REQUESTS)
        next(first)
        list(engine.generate(REQUESTS[:2]))
        with pytest.raises(HrmError, match="again before"):
            list(first)
