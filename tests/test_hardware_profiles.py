"""The shipped machines against their datasheets, and the questions a profile answers."""

import math
from pathlib import Path

import numpy as np
import pytest

from hrm.errors import ProfileError, UnknownNameError
from hrm.spec.hardware import RESOURCES, HardwareProfile, Number, load_profile, shipped_profiles

# One-way limits of x16: 16 lanes x GT/s x 128/130 / 8.
PCIE_LIMIT = {"PCIe 3.0 x16": 15.754e9, "PCIe 4.0 x16": 31.508e9, "PCIe 5.0 x16": 63.015e9}
PCIE_LIMIT |= {"PCIe 4.0 x8": 15.754e9, "PCIe 4.0 x4": 7.877e9}

# Datasheets, dense with fp32 accumulate: dtype -> TFLOP/s, memory GB/s.
DATASHEET: dict[str, tuple[dict[str, float], float]] = {
    "t4": ({"fp16": 65, "fp32": 8.1, "int8": 130}, 320),
    "l4": ({"fp16": 121, "bf16": 121, "fp8": 242.5}, 300),
    "a10g": ({"fp16": 70, "bf16": 70}, 600),
    "v100": ({"fp16": 125, "fp32": 15.7}, 900),
    "v100-32gb": ({"fp16": 125}, 900),
    "a100-40gb": ({"fp16": 312, "bf16": 312}, 1555),
    "a100-80gb": ({"fp16": 312, "bf16": 312}, 1935),
    "a100-80gb-x8": ({"bf16": 312}, 2039),
    "h100-80gb": ({"bf16": 989, "fp8": 1979}, 3350),
    "h100-pcie": ({"bf16": 756, "fp8": 1513}, 2000),
    "h200": ({"bf16": 989, "fp8": 1979}, 4800),
    "rtx3090": ({"fp16": 71, "bf16": 71}, 936),
    "rtx4090": ({"fp16": 165.2, "fp8": 330.3}, 1008),
    "rtx5090": ({"fp16": 209.5, "fp8": 419}, 1792),
    "rtx4060ti-16gb": ({"fp16": 44.1}, 288),
    "a5000": ({"fp16": 111.1}, 768),
    "mi300x": ({"fp16": 1307.4, "bf16": 1307.4}, 5300),
}


def numbers(part: object) -> list[Number]:
    """Every Number inside a model, dict or tuple."""
    if isinstance(part, Number):
        return [part]
    if isinstance(part, dict):
        return [n for value in part.values() for n in numbers(value)]
    if isinstance(part, tuple):
        return [n for value in part for n in numbers(value)]
    fields = getattr(type(part), "model_fields", {})
    return [n for name in fields for n in numbers(getattr(part, name))]


def test_at_least_eighteen_machines_ship() -> None:
    assert len(shipped_profiles()) >= 18
    assert set(DATASHEET) <= set(shipped_profiles())


@pytest.mark.parametrize("name", shipped_profiles())
def test_shipped_profile_loads_and_states_where_every_number_comes_from(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    stated = numbers(profile)
    assert len(stated) >= 14
    for number in stated:
        assert number.source in profile.sources, number
        assert number.date == profile.sources[number.source].date, number
        assert number.date[:2] == "20", number
        assert math.isfinite(number.value), number
    assert set(profile.sources) == {number.source for number in stated}


@pytest.mark.parametrize("name", shipped_profiles())
def test_shipped_links_stay_within_their_technology(name: str) -> None:
    profile = load_profile(name)
    for link_name, link in profile.links.items():
        assert profile.achieved_link_bandwidth(link_name) <= profile.link_bandwidth(link_name)
        assert 1e-6 < profile.link_latency(link_name) < 1e-3
        if link.technology.startswith("PCIe"):
            assert profile.link_bandwidth(link_name) <= PCIE_LIMIT[link.technology]


@pytest.mark.parametrize("name", shipped_profiles())
def test_shipped_memory_is_ordered(name: str) -> None:
    """All but the card that is held to less on purpose."""
    profile = load_profile(name)
    held = name == "h200-16gib"
    for level in (profile.cpu,) if held else (profile.gpu, profile.cpu):
        assert 0.85 * level.memory_capacity.value < level.memory_usable.value <= level.memory_capacity.value
    assert profile.has_peak("cpu", "fp32")
    assert profile.peak_flops_per_s("cpu", "fp32") < profile.peak_flops_per_s("gpu", "fp32")


@pytest.mark.parametrize("name", DATASHEET)
def test_gpu_peaks_are_the_dense_datasheet_values(name: str) -> None:
    peaks, bandwidth = DATASHEET[name]
    profile = load_profile(name)
    for dtype, teraflops in peaks.items():
        assert profile.peak_flops_per_s("gpu", dtype) == pytest.approx(teraflops * 1e12, rel=1e-12)
    assert profile.gpu.memory_bandwidth.value == pytest.approx(bandwidth * 1e9, rel=1e-12)


@pytest.mark.parametrize("name", ["t4", "t4x2", "t4x4", "t4-g4dn", "v100", "v100-32gb"])
def test_turing_and_volta_have_no_bf16(name: str) -> None:
    profile = load_profile(name)
    assert not profile.has_peak("gpu", "bf16")
    with pytest.raises(ProfileError, match=r"gpu\.processor\.peak_flops\.bf16 is not stated"):
        profile.peak_flops_per_s("gpu", "bf16")


@pytest.mark.parametrize("name", ["rtx3090", "rtx4090", "rtx5090", "rtx4060ti-16gb"])
def test_geforce_fp16_is_with_fp32_accumulate(name: str) -> None:
    processor = load_profile(name).gpu.processor
    assert processor is not None
    assert processor.peak_flops["fp16"].accumulate == "fp32"
    assert "with fp16 accumulate twice this" in str(processor.peak_flops["fp16"].note)


def test_t4_machine() -> None:
    profile = load_profile("t4.yaml")
    assert profile == load_profile("t4")
    assert profile.device_count == 1
    assert profile.cpu.processor is not None and profile.cpu.processor.cores == 24
    assert profile.link_bandwidth("htod") == 15.754e9
    assert profile.achieved_link_bandwidth("htod") == pytest.approx(12.89 * 2**30, rel=1e-3)  # FlexGen's fit
    assert profile.gpu.memory_usable.value < 15 * 2**30
    assert profile.cpu.memory_bandwidth.value == 100e9
    with pytest.raises(ProfileError, match=r"links\.gpu_to_gpu"):
        profile.link_bandwidth("gpu_to_gpu")


def test_l4_efficiencies_come_from_the_published_component_latencies() -> None:
    profile = load_profile("l4")
    # Figure 9: KV of 32 requests at context 2048, 2 x 8 heads x 128 x 2 B each, in 21.8 ms.
    kv_bytes = 32 * 2048 * 4096
    assert profile.achieved_link_bandwidth("htod") == pytest.approx(kv_bytes / 0.0218, rel=0.01)
    attention = profile.memory_efficiency("cpu", "attention") * profile.cpu.memory_bandwidth.value
    assert 36e9 <= attention <= 50e9
    ffn = profile.memory_efficiency("gpu", "expert_ffn") * profile.gpu.memory_bandwidth.value
    assert 216e9 <= ffn <= 231e9


def test_several_devices_are_linked() -> None:
    for name, count in (("t4x2", 2), ("t4x4", 4), ("a100-80gb-x8", 8), ("h100-80gb-x8", 8)):
        profile = load_profile(name)
        assert profile.device_count == count
        assert profile.link_bandwidth("gpu_to_gpu") > 0
    assert load_profile("a100-80gb-x8").link_bandwidth("gpu_to_gpu") == 300e9  # NVLink 3, half of 600
    assert load_profile("h100-80gb-x8").link_bandwidth("gpu_to_gpu") == 450e9  # NVLink 4, half of 900


def test_unstated_efficiency_is_the_roof_and_is_listed() -> None:
    profile = load_profile("mi300x")
    assert not profile.is_calibrated
    assert profile.compute_efficiency("gpu", "linear", 77.0) == 1.0
    assert profile.memory_efficiency("cpu", "attention") == 1.0
    assert profile.achieved_link_bandwidth("htod") == profile.link_bandwidth("htod")
    assert {"gpu.linear.compute", "cpu.attention.memory", "links.htod"} <= set(profile.uncalibrated_parts)
    h200 = load_profile("h200")
    assert h200.is_calibrated
    assert "links.htod" not in h200.uncalibrated_parts
    assert "gpu.attention.memory" in h200.uncalibrated_parts


def test_compute_efficiency_steps_by_tokens() -> None:
    profile = load_profile("h200")
    peak = profile.peak_flops_per_s("cpu", "bf16")
    tokens = np.array([[0.25, 1.0, 63.9], [64.0, 1023.0, 1e6]])
    achieved = profile.compute_efficiency("cpu", "linear", tokens) * peak
    np.testing.assert_allclose(achieved, [[2.23e12, 2.23e12, 2.23e12], [3.25e12, 5.25e12, 8.04e12]], rtol=1e-12)
    assert profile.compute_efficiency("cpu", "linear", 64) * peak == pytest.approx(3.25e12)
    assert isinstance(profile.compute_efficiency("cpu", "linear", 64), float)
    for bad in (-1.0, math.nan):
        with pytest.raises(ProfileError, match="tokens must be zero or more"):
            profile.compute_efficiency("cpu", "linear", bad)


@pytest.mark.parametrize(
    ("call", "suggestion"),
    [
        (lambda p: p.peak_flops_per_s("gpuu", "fp16"), "gpu"),
        (lambda p: p.compute_efficiency("gpu", "expert_fnn", 1.0), "expert_ffn"),
        (lambda p: p.memory_efficiency("disk", "attention"), "cpu, gpu"),
        (lambda p: p.link_bandwidth("h2d"), "htod"),
        (lambda p: p.with_scaled("gpu_mem", 2.0), "gpu_memory"),
    ],
)
def test_unknown_names_list_the_known_ones(call: object, suggestion: str) -> None:
    assert callable(call)
    with pytest.raises(UnknownNameError, match=suggestion):
        call(load_profile("t4"))


def resource_values(profile: HardwareProfile) -> dict[str, float]:
    """What each resource of with_scaled stands for."""
    links = {name: link.bandwidth.value for name, link in profile.links.items()}
    return {
        "gpu_compute": profile.peak_flops_per_s("gpu", "fp16"),
        "gpu_memory_bandwidth": profile.gpu.memory_bandwidth.value,
        "gpu_memory": profile.gpu.memory_usable.value,
        "cpu_compute": profile.peak_flops_per_s("cpu", "fp32"),
        "cpu_memory_bandwidth": profile.cpu.memory_bandwidth.value,
        "cpu_memory": profile.cpu.memory_usable.value,
        "htod": links["htod"],
        "dtoh": links["dtoh"],
        "disk": links.get("disk_read", 0.0),
        "gpu_to_gpu": links.get("gpu_to_gpu", 0.0),
    }


@pytest.mark.parametrize("resource", RESOURCES)
@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_with_scaled_changes_one_resource_only(resource: str, factor: float) -> None:
    profile = load_profile({"disk": "rtx4090", "gpu_to_gpu": "t4x2"}.get(resource, "t4"))
    scaled = profile.with_scaled(resource, factor)
    before, after = resource_values(profile), resource_values(scaled)
    for name, value in before.items():
        assert after[name] == pytest.approx(value * (factor if name == resource else 1.0)), name
    assert scaled.efficiency == profile.efficiency
    assert profile == load_profile(profile.name)  # the original is unchanged
    assert f"x {factor:g}" in str(scaled)


@pytest.mark.parametrize("factor", [0.0, -1.0, 1e6, math.nan, math.inf])
def test_with_scaled_refuses_impossible_factors(factor: float) -> None:
    with pytest.raises(ProfileError, match=r"t4: cannot scale htod .* \(0, 1e6\)"):
        load_profile("t4").with_scaled("htod", factor)


def test_with_scaled_refuses_what_the_machine_lacks() -> None:
    with pytest.raises(ProfileError, match=r"links\.disk_read is not stated"):
        load_profile("t4").with_scaled("disk", 2.0)


def test_a_file_is_found_before_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = Path(__file__).parents[1] / "hardware_profiles" / "t4.yaml"
    (tmp_path / "t4.yaml").write_text(shipped.read_text(encoding="utf-8").replace("320 GB/s", "310 GB/s"))
    (tmp_path / "l4").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_profile("t4.yaml").gpu.memory_bandwidth.value == 310e9
    assert load_profile("t4").gpu.memory_bandwidth.value == 320e9
    assert load_profile("l4").name == "l4"  # a directory of that name does not hide the profile
