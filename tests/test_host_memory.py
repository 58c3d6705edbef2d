"""CPU memory as /proc and control groups of both versions state it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import host_memory
from runtime.host_memory import available_bytes, reserve_bytes, total_bytes

GIB = 1 << 30
NO_LIMIT = 9223372036854771712  # what version 1 says where there is none


@pytest.fixture(autouse=True)
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 24 GiB, 20 of them available, without control groups."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {24 << 20} kB\nMemAvailable: {20 << 20} kB\nHugePages_Total: 0\n")
    for name, file in (("MEMINFO", "meminfo"), ("OWN_GROUPS", "own"), ("GROUPS", "groups")):
        monkeypatch.setattr(host_memory, name, tmp_path / file)
    return tmp_path


def group(path: Path, limit: object, used: int, files: int = 0, v1: bool = False) -> None:
    """Half of `files` in each list of file pages."""
    path.mkdir(parents=True, exist_ok=True)
    (path / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(f"{limit}\n")
    (path / ("memory.usage_in_bytes" if v1 else "memory.current")).write_text(f"{used}\n")
    prefix = "total_" if v1 else ""
    stat = f"anon 5\n{prefix}inactive_file {files // 2}\n{prefix}active_file {files - files // 2}\n"
    (path / "memory.stat").write_text(stat)


def test_a_machine_without_groups() -> None:
    assert (total_bytes(), available_bytes()) == (24 * GIB, 20 * GIB)


@pytest.mark.parametrize("text", [None, "MemTotal: many\n", "MemFree: 1 kB\n", "nothing\n"])
def test_a_system_without_meminfo_counts_pages(system: Path, text: str | None) -> None:
    (system / "meminfo").unlink() if text is None else (system / "meminfo").write_text(text)
    assert 0 < available_bytes() <= total_bytes()


def test_version_2_the_least_of_all_groups_above_counts(system: Path) -> None:
    (system / "own").write_text("0::/batch/job\n")
    group(system / "groups/batch/job", "max", 3 * GIB)
    assert (total_bytes(), available_bytes()) == (24 * GIB, 20 * GIB)
    group(system / "groups/batch", 16 * GIB, 10 * GIB, files=4 * GIB)
    assert (total_bytes(), available_bytes()) == (16 * GIB, 10 * GIB)  # files' pages can be dropped
    group(system / "groups/batch/job", 8 * GIB, 3 * GIB)
    assert (total_bytes(), available_bytes()) == (8 * GIB, 5 * GIB)
    group(system / "groups/batch", 16 * GIB, 15 * GIB)
    assert (total_bytes(), available_bytes()) == (8 * GIB, GIB)
    group(system / "groups/batch", 16 * GIB, 17 * GIB)
    assert available_bytes() == 0


def test_a_limit_above_the_machine_changes_nothing(system: Path) -> None:
    (system / "own").write_text("0::/\n")
    group(system / "groups", 100 * GIB, 1 * GIB)
    assert (total_bytes(), available_bytes()) == (24 * GIB, 20 * GIB)


@pytest.mark.parametrize("path", ["/docker/0123", "/", "/../other"])
def test_a_container_sees_its_group_as_the_topmost(system: Path, path: str) -> None:
    (system / "own").write_text(f"0::{path}\n")
    group(system / "groups", 4 * GIB, 1 * GIB)
    assert (total_bytes(), available_bytes()) == (4 * GIB, 3 * GIB)


@pytest.mark.parametrize("controllers", ["memory", "cpu,memory"])
def test_version_1(system: Path, controllers: str) -> None:
    (system / "own").write_text(f"9:name=systemd:/x\n4:{controllers}:/job:1\n0::/\n")
    group(system / "groups/memory", NO_LIMIT, 9 * GIB, v1=True)
    assert (total_bytes(), available_bytes()) == (24 * GIB, 20 * GIB)
    group(system / "groups/memory/job:1", 6 * GIB, 5 * GIB, files=GIB, v1=True)
    assert (total_bytes(), available_bytes()) == (6 * GIB, 2 * GIB)


@pytest.mark.parametrize("text", ["", "damaged\n", "1:cpu:/x\n"])
def test_a_list_of_groups_that_says_nothing(system: Path, text: str) -> None:
    (system / "own").write_text(text)
    group(system / "groups", GIB, 0)
    assert total_bytes() == 24 * GIB


@given(st.integers(0, 10**13))
def test_the_reserve_leaves_most(available: int) -> None:
    reserve = reserve_bytes(available)
    assert 0 <= reserve <= available // 4 and (reserve == 3 * GIB or available < 12 * GIB)
