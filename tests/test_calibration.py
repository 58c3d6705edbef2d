"""Calibration: timings become a profile that loads, states what was measured and can be searched with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from click.testing import Result
from conftest import Invoke
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hrm.errors import HrmError, ModelConfigError, ProfileError
from hrm.spec.hardware import load_profile
from hrm.spec.hardware_yaml import parse_profile
from hrm.spec.model_config import load_model
from runtime.calibration.numbers import rate_text, seconds_text
from runtime.calibration.plan import make_plan
from runtime.calibration.profile import profile_text, write_profile
from runtime.calibration.results import (
    Calibration,
    ContentionResult,
    DiskResult,
    LinkResult,
    MachineFacts,
    Timing,
    spread,
)
from runtime.calibration.shapes import shapes_of
from runtime.calibration.steps import compute_steps, never_falling, streaming, sustained_copy
from runtime.calibration.tables import result_rows
from runtime.cli.calibrate import calibrate

GIB = 2**30
SPREAD = (0.99, 1.0, 1.02)  # repeats around a median


def timing(size: int, seconds: float, nbytes: float = 0.0, flops: float = 0.0) -> Timing:
    return Timing(size, tuple(seconds * factor for factor in SPREAD), nbytes, flops)


def roofline(sizes: tuple[int, ...], weight_bytes: float, flops_per_s: float, bytes_per_s: float) -> tuple[Timing, ...]:
    """A matmul of bf16 weights that runs at its roof at every number of rows."""
    flops = [rows * weight_bytes for rows in sizes]  # 2 flops per element of 2 bytes
    times = [max(f / flops_per_s, weight_bytes / bytes_per_s) for f in flops]
    return tuple(timing(r, t, weight_bytes, f) for r, t, f in zip(sizes, times, flops, strict=True))


def link(gb_per_s: tuple[float, ...]) -> LinkResult:
    sizes = (2**16, 2**20, 2**24, 2**26)
    return LinkResult(
        tuple(timing(s, s / (g * 1e9), s) for s, g in zip(sizes, gb_per_s, strict=True)), spread((8.9e-6,))
    )


def at_rate(bytes_per_s: float, size: int = GIB) -> Timing:
    return timing(size, size / bytes_per_s, size, size)


def made_calibration() -> Calibration:
    """An invented machine near those of the shipped h200 profiles."""
    rows, gpu = (1, 16, 64, 256, 1024), roofline((1, 16, 256, 1024, 4096), 48e6, 700e12, 3.5e12)
    prompts = tuple(timing(s, f / 300e12, 1.0, f) for s, f in ((128, 1e12), (2048, 2e12)))
    cpu = roofline(rows, 352e6, 5e12, 80e9)
    machine = MachineFacts(
        True, "NVIDIA H200", "Xeon", 16, 141 * GIB, 16 * GIB, True, 126 * GIB, 120 * GIB, False, "PCIe 5.0 x16",
        "PyTorch 2.11", "2026-11-20", 0.1,
    )  # fmt: skip
    return Calibration(
        machine=machine, dtype="bf16", model="mixtral-8x7b", quick=False,
        htod=link((11, 48, 55.3, 55.1)), dtoh=link((12, 47, 55.2, 55.3)), both_ways=spread((101e9,)),
        cpu_read=at_rate(99e9), cpu_read_one_thread=at_rate(13e9), gpu_copy=at_rate(4.28e12),
        gpu_linear={"bf16": gpu, "fp32": gpu[-2:]}, cpu_linear={"bf16": cpu, "fp32": cpu[-2:]},
        gpu_experts=gpu, cpu_experts=cpu, gpu_decode=(at_rate(1e12, 140), at_rate(1.2e12, 512)),
        gpu_decode_contiguous=(at_rate(3.1e12, 140),), gpu_prefill=prompts, cpu_decode=(at_rate(65e9, 140),),
        contention=ContentionResult(spread((46e9, 47e9, 45e9)), spread((54.5e9,))), disk=None,
        expert_method="grouped", attention_method="compiled",
    )  # fmt: skip


def test_profile_states_what_was_measured() -> None:
    text = profile_text(made_calibration(), "mine")
    profile = parse_profile(text, "mine.yaml")
    assert (profile.name, profile.device_count) == ("mine", 1)
    assert profile.title.startswith("1x NVIDIA H200 held to 16 GiB (emulated), 16 threads of Xeon")
    assert profile.link("htod").technology == "PCIe 5.0 x16"
    assert profile.link_bandwidth("htod") == pytest.approx(55.3e9)
    assert profile.achieved_link_bandwidth("htod") == pytest.approx(55.1e9)
    assert profile.link_latency("dtoh") == pytest.approx(8.9e-6)
    assert profile.gpu.memory_bandwidth.value == pytest.approx(4.28e12)
    assert profile.gpu.memory_usable.value == 16 * GIB
    assert profile.gpu.memory_usable.kind == "fitted"
    assert profile.memory_efficiency("gpu", "attention") == pytest.approx(1 / 4.28)
    assert profile.memory_efficiency("cpu", "expert_ffn") == pytest.approx(80 / 101, rel=1e-3)
    assert profile.peak_flops_per_s("gpu", "bf16") == pytest.approx(700e12)
    assert profile.compute_efficiency("gpu", "attention", 500.0) == pytest.approx(3 / 7, rel=1e-3)
    assert profile.uncalibrated_parts == ("cpu.attention.compute",)
    source = profile.sources["calibration"]
    assert (source.date, "PyTorch 2.11" in source.title) == ("2026-11-20", True)
    bandwidth = profile.cpu.memory_bandwidth
    assert bandwidth.value == pytest.approx(101e9)  # of the copies both ways, above 99 read and 100.5 together
    assert "plain read with many threads 99 GB/s" in (bandwidth.note or "")
    assert "together 100.5 GB/s" in (bandwidth.note or "")
    assert "median of 3, 54.02 GB/s to 55.66 GB/s" in (profile.efficiency.links["htod"].note or "")
    assert "beside copies 46 GB/s, which then run at 54.5 GB/s" in text


def test_profile_is_searched_like_any_other(hrm: Invoke, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    write_profile(made_calibration(), path)
    code, out, _ = hrm("search", "--profile", str(path), "--schedule", "cgopipe", "--json")
    assert code == 0
    assert 300 < json.loads(out)["prediction"]["generation_throughput"] < 2000


def test_disk_and_unknown_link_are_stated() -> None:
    made = made_calibration()
    disk = DiskResult("/data", "O_DIRECT", 10**12, 10**11, at_rate(6e9), at_rate(2e9), spread((8e-5,)), spread((2e-2,)))
    slow_link = replace(made.machine, link="PCIe 3.0 x8")  # reported wrongly: slower than what was measured
    profile = parse_profile(profile_text(replace(made, disk=disk, machine=slow_link), "mine"), "mine.yaml")
    assert profile.link("htod").technology == "host link of a type that is not reported"
    assert profile.disk is not None
    assert profile.disk.memory_usable.value == 1e11
    assert profile.achieved_link_bandwidth("disk_read") == pytest.approx(6e9)
    assert profile.link_latency("disk_write") == pytest.approx(2e-2)
    assert [row[0] for row in result_rows(replace(made, disk=disk))][-4:-2] == ["disk read", "disk write"]


def test_stated_cpu_memory_may_exceed_what_the_system_reports() -> None:
    made = made_calibration()
    machine = replace(made.machine, cpu_limit=True, cpu_usable=130 * GIB, cpu_capacity=130 * GIB)
    cpu = parse_profile(profile_text(replace(made, machine=machine), "mine"), "mine.yaml").cpu
    assert (cpu.memory_usable.kind, cpu.memory_usable.value) == ("fitted", 130 * GIB)
    assert "--cpu-memory" in (cpu.memory_capacity.note or "")


def test_a_busy_machine_is_stated() -> None:
    made = made_calibration()
    assert "busy" not in profile_text(made, "mine")
    busy = replace(made, machine=replace(made.machine, load=1.5))
    assert "busy with other work (load average 1.5)" in profile_text(busy, "mine")


def test_contradicting_measurements_are_not_written(tmp_path: Path) -> None:
    machine = replace(made_calibration().machine, gpu_usable=142 * GIB)
    with pytest.raises(ProfileError, match="memory_usable"):
        write_profile(replace(made_calibration(), machine=machine), tmp_path / "mine.yaml")
    assert not list(tmp_path.iterdir())


def test_a_matmul_at_its_roof_gives_both_roofs_back() -> None:
    timings = roofline((1, 4, 16, 64, 256), 1e6, 1e12, 50e9)  # ridge at 20 rows
    steps = compute_steps(timings)
    assert streaming(timings)[1].median == pytest.approx(50e9)
    assert [s.from_rows for s in steps] == [1]
    assert steps[0].rate == pytest.approx(1e12)
    only_memory = roofline((1, 4), 1e6, 1e12, 1e9)
    assert compute_steps(only_memory)[0].timing.size == 4


@given(st.lists(st.floats(1e6, 1e15), min_size=1, max_size=8))
def test_rates_never_fall_and_are_never_raised(rates: list[float]) -> None:
    timings = tuple(Timing(2**i, (1.0,), 1.0, rate) for i, rate in enumerate(rates))
    steps = never_falling(timings)
    assert steps[0].from_rows == 1
    assert [s.rate for s in steps] == sorted({s.rate for s in steps})
    for i, rate in enumerate(rates):
        stated = [s.rate for s in steps if s.from_rows <= 2**i][-1]
        assert stated == min(rates[i:]) <= rate


@given(st.floats(1e3, 9e15), st.floats(1e3, 9e15))
def test_rounded_texts_keep_their_order(a: float, b: float) -> None:
    from hrm.spec.units import parse_quantity

    low, high = (parse_quantity(rate_text(v), "bytes_per_s", "test") for v in sorted((a, b)))
    assert low <= high
    assert parse_quantity(seconds_text(a / 1e16), "seconds", "test") == pytest.approx(a / 1e16, rel=1e-3)


def test_sustained_copies_are_the_large_ones() -> None:
    assert sustained_copy(link((11, 48, 55.3, 55.1)))[0].size == 2**26
    small = LinkResult(link((11, 48, 55.3, 55.1)).timings[:2], spread((1e-6,)))
    assert sustained_copy(small)[0].size == 2**20


def test_quick_calibration_of_this_machine(hrm: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "here.yaml"
    monkeypatch.setenv("COLUMNS", "200")  # of the table, whose lines would wrap
    options = ("--quick", "--device", "cpu", "--gpu-memory", "1 GiB", "--disk", str(tmp_path), "-m", "olmoe-1b-7b")
    outcome = _calibrate("--output", str(path), *options)
    assert outcome.exit_code == 0, outcome.output
    for text in ("HTOD copy, 64 KiB", "CPU decode attention", "copies both ways", "disk read latency", "Wrote"):
        assert text in outcome.output
    assert list(tmp_path.iterdir()) == [path]
    profile = load_profile(str(path))
    assert profile.name == "here"
    assert profile.title.startswith("CPU in place of a GPU held to 1 GiB (emulated)")
    assert profile.gpu.memory_usable.value == GIB
    assert profile.cpu.memory_usable.value + GIB <= profile.cpu.memory_capacity.value
    assert "No GPU was used" in path.read_text()
    code, out, _ = hrm("profiles", "show", str(path))
    assert code == 0
    assert "measured" in out


def _calibrate(*words: str) -> Result:
    app = typer.Typer()
    app.command()(calibrate)
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "tpu"), "device tpu: must be cuda"),
        (("--dtype", "fp8"), "--dtype fp8: must be one that this device computes in"),
        (("--gpu-memory", "16"), "--gpu-memory: '16' is a bare number"),
        (("--cpu-memory", "16 GB/s"), "--cpu-memory"),
        (("--device", "cpu", "--gpu-memory", "900 TiB"), "--gpu-memory 900 TiB"),
        (("--device", "cpu", "--gpu-memory", "1 MiB"), "do not hold two experts"),
        (("--disk", "/no/such/place"), "--disk /no/such/place: is not a directory"),
        (("--model", "deepseek-v3"), "latent attention"),
        (("--model", "mixtral-8x7"), "mixtral-8x7b"),
        (("--output", "/no/such/folder/p.yaml"), "/no/such/folder/p.yaml: cannot be written"),
    ],
)
def test_bad_options_are_refused_before_anything_is_measured(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("runtime.calibration.calibrate.measure", measured)
    output = () if "--output" in words else ("--output", str(tmp_path / "p.yaml"))
    outcome = _calibrate(*words, *output, "--quick")
    assert isinstance(outcome.exception, HrmError), outcome.exception
    assert message in str(outcome.exception)


def test_cuda_is_refused_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = _calibrate("--output", str(tmp_path / "p.yaml"), "--device", "cuda")
    assert "PyTorch finds no CUDA GPU" in str(outcome.exception)


def test_cpu_memory_is_divided_as_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.calibration.machine_memory import cpu_only_memory

    monkeypatch.setattr("runtime.calibration.machine_memory.total_bytes", lambda: 24 * GIB)
    monkeypatch.setattr("runtime.calibration.machine_memory.available_bytes", lambda: 20 * GIB)

    def parts(gpu: int | None, cpu: int | None) -> tuple[int, int]:
        memory = cpu_only_memory(gpu and gpu * GIB, cpu and cpu * GIB)
        return memory.gpu_usable // GIB, memory.cpu_usable // GIB

    assert parts(None, None) == (10, 10)
    assert parts(4, None) == (4, 16)
    assert parts(None, 4) == (16, 4)
    assert parts(16, 100) == (16, 100)
    with pytest.raises(HrmError, match="state less"):
        parts(None, 20)


@pytest.mark.parametrize(("available", "usable"), [(20, 17), (12, 9), (4, 3)])
def test_beside_a_gpu_some_cpu_memory_is_left_to_others(
    available: int, usable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.calibration import machine_memory
    from runtime.profile_limits import GPU_RESERVE

    monkeypatch.setattr(machine_memory, "total_bytes", lambda: 24 * GIB)
    monkeypatch.setattr(machine_memory, "available_bytes", lambda: available * GIB)
    monkeypatch.setattr("torch.zeros", lambda *_, **__: None)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (15 * GIB, 16 * GIB))
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda *_: None)
    memory = machine_memory.gpu_machine_memory(torch.device("cuda", 0), None, None)
    assert (memory.cpu_capacity // GIB, memory.cpu_usable // GIB) == (24, usable)
    assert memory.gpu_usable == 15 * GIB - GPU_RESERVE
    stated = machine_memory.gpu_machine_memory(torch.device("cuda", 0), None, 30 * GIB)
    assert (stated.cpu_capacity, stated.cpu_usable) == (30 * GIB, 30 * GIB)


def test_plan_fits_small_memories() -> None:
    shapes = shapes_of(load_model("mixtral-8x7b"))
    plan = make_plan(shapes, "bf16", gpu_usable=GIB, cpu_usable=2 * GIB, quick=False)
    assert plan.copy_sizes[-1] * 2 <= GIB // 2
    assert plan.gpu_weight_bytes + plan.gpu_kv_bytes * 2 <= GIB
    assert plan.shapes.linear_out == 6144
    with pytest.raises(HrmError, match="GPU memory do not hold two experts"):
        make_plan(shapes, "fp32", gpu_usable=GIB, cpu_usable=2 * GIB, quick=False)
    with pytest.raises(ModelConfigError, match="without a gate"):
        shapes_of(load_model("opt-1.3b"))


def test_measured_experts_get_the_same_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.calibration import experts

    seen: list[list[int]] = []
    real = experts.sort_tokens

    def counts(x: torch.Tensor, chosen: torch.Tensor, gates: torch.Tensor, num_experts: int) -> object:
        seen.append(torch.bincount(chosen.reshape(-1), minlength=num_experts).tolist())
        assert all(len(set(row)) == len(row) for row in chosen.tolist())
        return real(x, chosen, gates, num_experts)

    monkeypatch.setattr(experts, "sort_tokens", counts)
    shapes = shapes_of(load_model("mixtral-tiny"))
    plan = make_plan(shapes, "fp32", gpu_usable=GIB, cpu_usable=GIB, quick=True)
    timings = experts.measure_gpu_experts(plan, torch.float32, torch.device("cpu"), (1, 16))
    assert [t.size for t in timings] == [1, 16]
    assert {tuple(each) for each in seen} == {(rows,) * plan.shapes.num_experts for rows in (1, 16)}
    assert timings[1].flops == 16 * timings[0].flops == 2.0 * 16 * plan.shapes.num_experts * shapes.expert_elements


def test_experts_on_the_cpu_are_measured_by_a_small_part_of_their_rows() -> None:
    """Sorting and summing weigh as much as in a run that leaves the CPU little."""
    from runtime.calibration import experts

    shapes = shapes_of(load_model("mixtral-8x7b"))
    plan = replace(make_plan(shapes, "bf16", 8 * GIB, 8 * GIB, quick=True), shapes=shapes, weight_bytes=30 << 20)
    (timing,) = experts.measure_cpu_experts(plan, torch.bfloat16, (1,))
    assert timing.flops == 2.0 * shapes.expert_elements / experts.CPU_SHARE  # of the one expert that fits
