"""Names of dtypes and devices, and profiles held to less memory."""

import os

import pytest
import torch

from hrm.errors import HrmError
from hrm.schedule.task import Resource
from hrm.spec.hardware import load_profile
from runtime.device import CpuDevice, choose_device, make_device
from runtime.dtypes import DTYPES, dtype_name, torch_dtype
from runtime.profile_limits import GPU_RESERVE, allocator_limit, capped, gpu_reserve
from runtime.threads import SPARE_CORES, compute_threads


def test_names_of_dtypes() -> None:
    assert [torch_dtype(name) for name in DTYPES] == [torch.bfloat16, torch.float16, torch.float32]
    assert tuple(dtype_name(torch_dtype(name)) for name in DTYPES) == DTYPES


@pytest.mark.parametrize("name", ["tpu", "", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "cpu:", "CPU"])
def test_strange_devices_are_refused(name: str) -> None:
    with pytest.raises(HrmError, match="must be cuda, cuda with an index such as cuda:1, or cpu"):
        choose_device(name)


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert choose_device(None) == choose_device("cpu") == make_device(None).torch_device == torch.device("cpu")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(HrmError, match=f"device {name}: PyTorch finds no CUDA GPU here"):
            make_device(name)


def test_with_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
    assert choose_device(None) == choose_device("cuda") == choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cuda:0").index == 0 and choose_device("cpu").type == "cpu"
    with pytest.raises(HrmError, match="cuda:2: PyTorch finds 2 CUDA GPUs"):
        choose_device("cuda:2")


def test_memories_held_to_less() -> None:
    profile = load_profile("t4")
    gpu, cpu = profile.gpu.memory_usable.value, profile.cpu.memory_usable.value
    assert capped(profile, None) is profile and capped(profile, gpu + GPU_RESERVE, 2 * cpu) is profile
    less = capped(profile, 10 * 2**30, cpu / 4)
    assert less.gpu.memory_usable.value == pytest.approx(10 * 2**30 - GPU_RESERVE)
    assert capped(profile, 64e6).gpu.memory_usable.value == pytest.approx(62e6)  # a small limit, a small reserve
    assert less.cpu.memory_usable.value == pytest.approx(cpu / 4)
    assert capped(profile, gpu / 2).cpu == profile.cpu


@pytest.mark.parametrize("limit", [64e6, 2**30, 8 * 2**30, 16 * 2**30])
def test_the_allocators_limit_is_what_leaves_the_usable_memory(limit: float) -> None:
    assert allocator_limit(limit - gpu_reserve(limit)) == pytest.approx(limit, rel=1e-6)


def test_work_on_the_cpu_leaves_cores_to_those_that_feed_the_gpu() -> None:
    cores = len(os.sched_getaffinity(0))
    assert compute_threads() == max(1, cores - max(1, cores // SPARE_CORES))


def test_a_cpu_that_plays_the_gpu_shares_its_cores_between_both() -> None:
    before = torch.get_num_threads()
    try:
        CpuDevice().begin_thread(Resource.CPU)
        assert torch.get_num_threads() == compute_threads(beside_gpu=False) == max(1, len(os.sched_getaffinity(0)) // 2)
    finally:
        torch.set_num_threads(before)
