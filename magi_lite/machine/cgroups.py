"""What Linux allows a process in memory, where a container or service limits it: both versions of control groups."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PROC = Path("/proc")
_FILES = (("memory.max", "memory.current", "memory.events"),
          ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control"))  # fmt: skip
"""Of version 2 and of version 1: the limit, what is in use, how often a process was ended."""


@dataclass(frozen=True)
class Group:
    """A control group of a process, or one above it.

    Attributes:
        limit: bytes that its processes may take together; None: no limit.
        free: of those, the bytes that can still be taken: files that the system keeps in memory can be given up.
        killed: processes that the system has ended in it for lack of memory.
    """

    limit: int | None
    free: int | None
    killed: int


def groups(pid: int | str = "self") -> list[Group]:
    """The memory groups of a process, the innermost first; none elsewhere than on Linux, or where it has ended."""
    return [group for folder in folders(pid) if (group := _read(folder)) is not None]


def killed_in(places: Iterable[Path]) -> int:
    """Processes that the system has ended for lack of memory in groups that `folders` named."""
    return sum(group.killed for folder in places if (group := _read(folder)) is not None)


def limit_of(places: Iterable[Path]) -> int | None:
    """Bytes that groups which `folders` named allow: the least limit of all; None where nothing limits."""
    found = [group.limit for folder in places if (group := _read(folder)) is not None and group.limit is not None]
    return min(found, default=None)


def least(pid: int | str = "self") -> tuple[int | None, int | None]:
    """(limit, free) bytes of a process, the least of all its groups; None where nothing limits it."""
    found = groups(pid)
    limits = [group.limit for group in found if group.limit is not None]
    free = [group.free for group in found if group.free is not None]
    return min(limits, default=None), min(free, default=None)


def folders(pid: int | str) -> Iterator[Path]:
    """Folders of a process's groups; in a container the last part of the path may be all that can be seen."""
    try:
        lines = (PROC / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, inside = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        root = ROOT / "memory" if kinds else ROOT
        folder = root / inside.strip("/")
        while not folder.is_dir() and folder != root:
            folder = folder.parent
        yield folder
        while folder != root:
            folder = folder.parent
            yield folder


def _read(folder: Path) -> Group | None:
    for limit_name, used_name, events_name in _FILES:
        limit, free, killed = None, None, None
        with contextlib.suppress(OSError, ValueError):
            killed = _counts(folder / events_name).get("oom_kill", 0)
        with contextlib.suppress(OSError, ValueError):
            limit = int((folder / limit_name).read_text())
            counts = _counts(folder / "memory.stat")
            files = counts.get("total_inactive_file", counts.get("inactive_file", 0))
            free = max(0, limit - int((folder / used_name).read_text()) + files)
        if limit is not None and limit >= 1 << 60:  # version 1 writes no limit as the largest number
            limit = free = None
        if killed is not None or limit is not None:
            return Group(limit, free, killed or 0)
    return None


def _counts(path: Path) -> dict[str, int]:
    """A file of names and numbers."""
    pairs = (line.split() for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
