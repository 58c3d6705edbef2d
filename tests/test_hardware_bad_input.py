"""Every way that a hardware profile can be wrong: a typed error that names file and field."""

import os
from pathlib import Path

import pytest

from hrm.errors import HrmError, ProfileError, UnitError, UnknownNameError
from hrm.spec.hardware import load_profile
from hrm.spec.hardware_checks import pcie_limit

GOOD = """\
name: box
title: a test machine
device_count: 1
sources:
  sheet: {title: a datasheet, date: 2024-01-31}
gpu:
  processor:
    name: a GPU
    peak_flops:
      fp16: {value: 100 TFLOP/s, accumulate: fp32, kind: datasheet, source: sheet}
  memory_capacity: {value: 16 GiB, kind: datasheet, source: sheet}
  memory_usable: {value: 15 GiB, kind: measured, source: sheet}
  memory_bandwidth: {value: 320 GB/s, kind: datasheet, source: sheet}
cpu:
  processor:
    name: a CPU
    cores: 8
    peak_flops:
      fp32: {value: 1 TFLOP/s, kind: datasheet, source: sheet}
  memory_capacity: {value: 64 GiB, kind: datasheet, source: sheet}
  memory_usable: {value: 60 GiB, kind: measured, source: sheet}
  memory_bandwidth: {value: 50 GB/s, kind: datasheet, source: sheet}
links:
  htod:
    technology: PCIe 3.0 x16
    bandwidth: {value: 15.754 GB/s, kind: datasheet, source: sheet}
    latency: {value: 10 us, kind: measured, source: sheet}
  dtoh:
    technology: PCIe 3.0 x16
    bandwidth: {value: 15.75 GB/s, kind: datasheet, source: sheet}
    latency: {value: 11 us, kind: measured, source: sheet}
efficiency:
  gpu:
    linear:
      compute_by_tokens:
        - {from_tokens: 1, value: 20 %, kind: measured, source: sheet}
        - {from_tokens: 64, value: 60 TFLOP/s, dtype: fp16, kind: measured, source: sheet}
  cpu:
    attention:
      memory: {value: 40 GB/s, kind: measured, source: sheet}
  links:
    htod: {value: 12 GB/s, kind: measured, source: sheet}
"""

GPU_BANDWIDTH = "{value: 320 GB/s, kind: datasheet, source: sheet}"
FIELD = "gpu.memory_bandwidth"


def write(folder: Path, text: str | bytes) -> str:
    """Writes box.yaml and returns its path."""
    path = folder / "box.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def changed(old: str, new: str) -> str:
    """GOOD with `old`, which must occur, replaced once."""
    assert old in GOOD, old
    return GOOD.replace(old, new, 1)


def test_the_unchanged_profile_is_good(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, GOOD))
    assert profile.gpu.memory_bandwidth.value == 320e9
    assert profile.gpu.memory_bandwidth.date == "2024-01-31"
    assert profile.compute_efficiency("gpu", "linear", 64.0) == pytest.approx(0.6)
    assert profile.compute_efficiency("gpu", "linear", 63.0) == pytest.approx(0.2)
    assert profile.memory_efficiency("cpu", "attention") == pytest.approx(0.8)
    assert profile.achieved_link_bandwidth("htod") == pytest.approx(12e9)


def test_binary_bandwidth_is_converted_not_taken_as_decimal(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, changed("320 GB/s", "300 GiB/s")))
    assert profile.gpu.memory_bandwidth.value == 300 * 1_073_741_824


CASES: list[tuple[str, str, str, type[HrmError], str]] = [
    ("bare number", GPU_BANDWIDTH, "320", UnitError, FIELD),
    ("bare value", "value: 320 GB/s", "value: 320", UnitError, FIELD),
    ("bare value as text", "value: 320 GB/s", 'value: "320e9"', UnitError, FIELD),
    ("quantity without its source", GPU_BANDWIDTH, "320 GB/s", ProfileError, FIELD),
    ("unit of size for a bandwidth", "value: 320 GB/s", "value: 320 GB", UnitError, FIELD),
    ("unit of compute for a bandwidth", "value: 320 GB/s", "value: 320 TFLOP/s", UnitError, FIELD),
    ("NaN", "value: 320 GB/s", "value: nan GB/s", UnitError, FIELD),
    ("YAML NaN", "value: 320 GB/s", "value: .nan", UnitError, FIELD),
    ("infinite", "value: 320 GB/s", "value: inf GB/s", UnitError, FIELD),
    ("negative", "value: 320 GB/s", "value: -320 GB/s", UnitError, FIELD),
    ("zero", "value: 320 GB/s", "value: 0 GB/s", UnitError, FIELD),
    ("huge", "value: 320 GB/s", "value: 1e40 GB/s", UnitError, FIELD),
    ("list for a number", GPU_BANDWIDTH, "[320]", UnitError, FIELD),
    ("list for a value", "value: 320 GB/s", "value: [320, GB/s]", UnitError, FIELD),
    ("null number", GPU_BANDWIDTH, "null", ProfileError, f"{FIELD}: is missing"),
    ("null value", "value: 320 GB/s", "value: null", ProfileError, f"{FIELD}.value: is missing"),
    ("missing kind", "320 GB/s, kind: datasheet,", "320 GB/s,", ProfileError, f"{FIELD}.kind: is missing"),
    ("unknown kind", "320 GB/s, kind: datasheet", "320 GB/s, kind: data sheet", UnknownNameError, f"{FIELD}.kind"),
    ("list for a kind", "320 GB/s, kind: datasheet", "320 GB/s, kind: [a]", ProfileError, f"{FIELD}.kind"),
    ("unknown source", "320 GB/s, kind: datasheet, source: sheet", "320 GB/s, kind: datasheet, source: shet",
     UnknownNameError, f"{FIELD}.source"),
    ("unknown key of a number", "320 GB/s, kind", "320 GB/s, when: 2024, kind", UnknownNameError, "'when'"),
    ("number as note", "320 GB/s, kind", "320 GB/s, note: 4, kind", ProfileError, f"{FIELD}.note"),
    ("missing date", ", date: 2024-01-31", "", ProfileError, "sources.sheet.date: is missing"),
    ("date in words", "date: 2024-01-31", "date: last week", ProfileError, "sources.sheet.date"),
    ("impossible date", "date: 2024-01-31", "date: 2024-13-45", ProfileError, "box.yaml"),
    ("sources as a list", "sources:\n  sheet: {", "sources:\n  - {", ProfileError, "sources: must be a mapping"),
    ("unknown top-level key", "name: box", "name: box\ncolour: red", UnknownNameError, "'colour'"),
    ("missing name", "name: box\n", "", ProfileError, "name: is missing"),
    ("number as name", "name: box", "name: 4", ProfileError, "name: must be text"),
    ("no devices", "device_count: 1", "device_count: 0", ProfileError, "device_count"),
    ("half a device", "device_count: 1", "device_count: 1.5", ProfileError, "device_count"),
    ("true devices", "device_count: 1", "device_count: true", ProfileError, "device_count"),
    ("unlinked devices", "device_count: 1", "device_count: 2", ProfileError, "links.gpu_to_gpu"),
    ("usable above capacity", "value: 15 GiB", "value: 17 GiB", ProfileError, "gpu.memory_usable"),
    ("usable above capacity on the CPU", "value: 60 GiB", "value: 65 GiB", ProfileError, "cpu.memory_usable"),
    ("no cores", "cores: 8", "cores: 0", ProfileError, "cpu.processor.cores"),
    ("no peaks", "peak_flops:\n      fp16: {value: 100 TFLOP/s, accumulate: fp32, kind: datasheet, source: sheet}",
     "peak_flops: {}", ProfileError, "gpu.processor.peak_flops"),
    ("unknown dtype", "fp16: {", "fp61: {", UnknownNameError, "fp61"),
    ("sparse peak in the note", "accumulate: fp32,", "note: with 2:4 sparse weights,", ProfileError,
     "gpu.processor.peak_flops.fp16: is a sparse peak"),
    ("sparse peak as a key", "accumulate: fp32,", "sparse: true,", UnknownNameError, "'sparse'"),
    ("PCIe above its limit", "value: 15.754 GB/s", "value: 16 GB/s", ProfileError, "links.htod.bandwidth"),
    ("PCIe 4.0 x8 above its limit", "PCIe 3.0 x16\n    bandwidth: {value: 15.754 GB/s",
     "PCIe 4.0 x8\n    bandwidth: {value: 25 GB/s", ProfileError, "links.htod.bandwidth"),
    ("unclear PCIe", "PCIe 3.0 x16", "PCIe gen3", ProfileError, "links.htod.technology"),
    ("latency in bytes", "value: 10 us", "value: 10 kB", UnitError, "links.htod.latency"),
    ("missing direction", GOOD[GOOD.index("  dtoh:") : GOOD.index("efficiency:")], "", ProfileError, "links.dtoh"),
    ("unknown link", "  dtoh:", "  d2h:", UnknownNameError, "d2h"),
    ("disk without its links", "links:\n", "disk:\n  memory_capacity: {value: 2 TB, kind: datasheet, source: sheet}\n"
     "  memory_usable: {value: 1 TB, kind: datasheet, source: sheet}\nlinks:\n", ProfileError, "links.disk_read"),
    ("efficiency above one", "value: 20 %", "value: 120 %", ProfileError, "efficiency.gpu.linear.compute_by_tokens"),
    ("efficiency as a bare number", "value: 20 %", "value: 0.2", UnitError, "compute_by_tokens[0]"),
    ("achieved above the peak", "value: 40 GB/s", "value: 51 GB/s", ProfileError, "efficiency.cpu.attention.memory"),
    ("link achieved above its peak", "value: 12 GB/s", "value: 15.8 GB/s", ProfileError, "efficiency.links.htod"),
    ("decreasing table", "value: 60 TFLOP/s", "value: 10 TFLOP/s", ProfileError, "compute_by_tokens: must not"),
    ("table that starts late", "from_tokens: 1,", "from_tokens: 2,", ProfileError, "must begin with from_tokens: 1"),
    ("table out of order", "from_tokens: 64,", "from_tokens: 1,", ProfileError, "from_tokens must increase"),
    ("table without tokens", "from_tokens: 64, ", "", ProfileError, "compute_by_tokens[1].from_tokens: is missing"),
    ("tokens in words", "from_tokens: 64,", "from_tokens: many,", ProfileError, "compute_by_tokens[1].from_tokens"),
    ("rate of no dtype", "dtype: fp16, ", "", ProfileError, "needs dtype"),
    ("rate of an unstated dtype", "dtype: fp16,", "dtype: fp8,", UnknownNameError, "compute_by_tokens[1].dtype"),
    ("mapping for a dtype", "dtype: fp16,", "dtype: {a: 1},", ProfileError, "compute_by_tokens[1].dtype"),
    ("zero table", "  cpu:\n    attention:\n      memory: {value: 40 GB/s, kind: measured, source: sheet}", "  cpu: 0",
     ProfileError, "efficiency.cpu: must be a mapping"),
    ("compute twice", "    linear:\n", "    linear:\n      compute: {value: 5 %, kind: fitted, source: sheet}\n",
     ProfileError, "efficiency.gpu.linear.compute: is given twice"),
    ("unknown operator class", "    attention:", "    atention:", UnknownNameError, "did you mean attention"),
    ("efficiency of no link", "    htod: {value: 12", "    disk_read: {value: 12", UnknownNameError, "disk_read"),
    ("gpu as text", GOOD[GOOD.index("gpu:\n") : GOOD.index("cpu:\n")], "gpu: fast\n", ProfileError, "gpu: must be a"),
    ("duplicate key", "name: box", "name: box\nname: crate", ProfileError, "name"),
    ("duplicate inner key", "value: 320 GB/s", "value: 320 GB/s, value: 640 GB/s", ProfileError, "value"),
    ("malformed YAML", "links:", "links: [", ProfileError, "malformed YAML"),
    ("tag of no type", "name: box", "name: !!bool maybe", ProfileError, "malformed YAML"),
    ("python object tag", "name: box", "name: !!python/object/apply:os.getcwd []", ProfileError, "malformed YAML"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "error", "field"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_wrong_profile(tmp_path: Path, old: str, new: str, error: type[HrmError], field: str) -> None:
    with pytest.raises(HrmError) as caught:
        load_profile(write(tmp_path, changed(old, new)))
    assert type(caught.value) is error
    assert "box.yaml" in str(caught.value)
    assert field in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"  \n\n",
        b"\x00\xff\xfe\x80",
        b"\xff\xd8\xff\xe0 JFIF",
        b"- a\n- list\n",
        b"42\n",
        b"just words\n",
        b"{" * 5000,
    ],
    ids=["empty", "blank", "binary", "image", "list", "number", "words", "deep"],
)
def test_file_that_is_no_mapping(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(ProfileError, match=r"box\.yaml"):
        load_profile(write(tmp_path, text))


@pytest.mark.parametrize("key", ["value", "kind", "source", "note"])
def test_aliases_that_multiply_are_refused_at_once(tmp_path: Path, key: str) -> None:
    levels = ["&b0 [x, x]", *(f"&b{i} [{', '.join([f'*b{i - 1}'] * 10)}]" for i in range(1, 30))]
    fields = {"value": "320 GB/s", "kind": "datasheet", "source": "sheet", key: f"[{', '.join(levels)}]"}
    number = ", ".join(f"{name}: {text}" for name, text in fields.items())
    with pytest.raises((ProfileError, UnitError), match=r"box\.yaml: gpu\.memory_bandwidth"):
        load_profile(write(tmp_path, changed(GPU_BANDWIDTH, f"{{{number}}}")))


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"absent\.yaml: no such file"):
        load_profile(str(tmp_path / "absent.yaml"))
    with pytest.raises(ProfileError, match="is a directory"):
        load_profile(str(tmp_path))


def test_special_file_is_not_read() -> None:
    with pytest.raises(ProfileError, match="not a regular file"):
        load_profile(os.devnull)


@pytest.mark.parametrize("name", ["", "t44", "T4", "rtx490", "a\x00b", "x" * 5000, "h100.yml"])
def test_unknown_name_is_a_typed_error(name: str) -> None:
    with pytest.raises((UnknownNameError, ProfileError)):
        load_profile(name)


def test_unknown_name_suggests_close_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean .*rtx4090"):
        load_profile("rtx490.yaml")
    with pytest.raises(UnknownNameError, match=r"known: .*t4x2"):
        load_profile("nothing-like-it")


@pytest.mark.parametrize(
    ("technology", "limit"),
    [("PCIe 3.0 x16", 15.754e9), ("PCIe 4.0 x16", 31.508e9), ("PCIe 5.0 x16", 63.015e9), ("PCIe 4.0 x8", 15.754e9)],
)
def test_pcie_limits(technology: str, limit: float) -> None:
    assert pcie_limit(technology) == pytest.approx(limit, rel=1e-4)


def test_other_technologies_have_no_limit_here() -> None:
    assert pcie_limit("NVLink 4") is None
