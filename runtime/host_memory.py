"""CPU memory: how much there is, how much can still be had, and how much of that is left to others.

Linux control groups (containers, batch systems) may allow less than the machine has; the least of all limits counts.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MEMINFO, OWN_GROUPS, GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
RESERVE, RESERVE_SHARE = 3 << 30, 4  # left to others: so many bytes, or one part of so many


@dataclass(frozen=True)
class GroupLimit:
    """A control group's limit and what is used of it, in bytes; cached file pages can be dropped and are not in use."""

    limit: int
    used: int

    @property
    def available(self) -> int:
        """What the group may still take."""
        return max(0, self.limit - self.used)


@dataclass(frozen=True)
class GroupFiles:
    """What a version of control groups calls its files; `file_pages` are fields of memory.stat."""

    limit: str
    used: str
    file_pages: tuple[str, ...]


V1 = GroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
V2 = GroupFiles("memory.max", "memory.current", ("inactive_file", "active_file"))


def total_bytes() -> int:
    """The machine's memory, or a control group's limit below it."""
    return min([_machine("MemTotal", "SC_PHYS_PAGES"), *(group.limit for group in group_limits())])


def available_bytes() -> int:
    """What the system can still give, file pages that it would drop for it included."""
    return min([_machine("MemAvailable", "SC_AVPHYS_PAGES"), *(group.available for group in group_limits())])


def reserve_bytes(available: int) -> int:
    """What of `available` bytes is left to the process and the system: 3 GiB, or a quarter where that is less."""
    return min(RESERVE, available // RESERVE_SHARE)


def group_limits() -> Iterator[GroupLimit]:
    """Of the control groups that this process is in, up to the topmost one that can be seen."""
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if (number, controllers) == ("0", ""):
            yield from _chain(GROUPS, path, V2)
        elif "memory" in controllers.split(","):
            yield from _chain(GROUPS / "memory", path, V1)


def _chain(root: Path, path: str, files: GroupFiles) -> Iterator[GroupLimit]:
    """The group at `path` and those above it; in a container the path is the host's, and only `root` may be there."""
    parts = [] if ".." in Path(path).parts else [part for part in path.split("/") if part]
    for depth in range(len(parts), -1, -1):
        found = _read_group(root.joinpath(*parts[:depth]), files)
        if found is not None:
            yield found


def _read_group(group: Path, files: GroupFiles) -> GroupLimit | None:
    """None where the group cannot be seen or states no limit ("max")."""
    try:
        limit, used = int((group / files.limit).read_text()), int((group / files.used).read_text())
        pages = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return GroupLimit(limit, used - sum(int(pages.get(name, 0)) for name in files.file_pages))
    except (OSError, ValueError):
        return None


def _machine(field: str, pages: str) -> int:
    """A field of /proc/meminfo; where the system has none, its pages by sysconf (all of them, if it counts no free)."""
    try:
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines())
        return int(fields[field].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        known = pages if pages in os.sysconf_names else "SC_PHYS_PAGES"
        return os.sysconf(known) * os.sysconf("SC_PAGE_SIZE")
