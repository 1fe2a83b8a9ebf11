"""What to say of a worker that ended by itself: one sentence, what happened and what to try."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from pathlib import Path

import psutil

from magi_lite.machine import cgroups
from magi_lite.sentences import memory_size

_WINDOWS = {0xC0000005: "SIGSEGV", 0xC000001D: "SIGILL", 0xC0000409: "SIGABRT", 0xC00000FD: "SIGSEGV"}
_CRASHES = ("SIGSEGV", "SIGILL", "SIGFPE")
RESUME = "Press Resume to go on from the last finished step"


@dataclass(frozen=True)
class Memory:
    """What a worker held when it was last looked at, and what was free then, bytes."""

    used: int = 0
    free: int = 0

    @property
    def words(self) -> str:
        """As a phrase; empty where nobody looked."""
        return f"it held {memory_size(self.used)} and {memory_size(self.free)} were free" if self.used else ""

    @property
    def short(self) -> bool:
        """Whether little was free. A worker takes gigabytes between two looks: figures of before say nothing then."""
        return self.free < self.used / 2


def memory_of(pid: int) -> Memory | None:
    """What a process holds and what it may still take now; None where it has ended."""
    try:
        used, available = psutil.Process(pid).memory_info().rss, psutil.virtual_memory().available
    except psutil.Error:
        return None
    if not used:  # what is left of it until somebody asks how it ended
        return None
    _, free = cgroups.least(pid)
    return Memory(used, available if free is None else min(available, free))


class KillsForMemory:
    """Whether the system has ended a process for lack of memory, in a worker's control groups or on this machine.

    Linux does not say why it sends SIGKILL, but it counts. A count that has grown says what happened.
    """

    def __init__(self, pid: int) -> None:
        self._folders: set[Path] = set()
        self._before = _killed_here()
        self.look(pid)

    def look(self, pid: int) -> None:
        """Note the groups of the worker, in which it may be put at any time; those of one that has ended are gone."""
        for folder in set(cgroups.folders(pid)) - self._folders:
            self._folders.add(folder)
            self._before += cgroups.killed_in([folder])

    @property
    def grew(self) -> bool:
        """Whether one more was ended since the worker, or its groups, were first looked at."""
        return _killed_here() + cgroups.killed_in(self._folders) > self._before

    @property
    def limit(self) -> int | None:
        """Bytes that the worker's groups allow, where that is less than the machine has; they outlive the worker."""
        allowed = cgroups.limit_of(self._folders)
        return allowed if allowed is not None and allowed < psutil.virtual_memory().total else None


def _killed_here() -> int:
    """Processes of this machine that were ended for lack of memory, as far as the system tells."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/vmstat").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return 0


def describe(status: int | None, memory: Memory, *, for_memory: bool = False, limit: int | None = None) -> str:
    """Why a worker ended.

    Args:
        status: its exit status; negative: the signal.
        memory: what it held when it was last looked at.
        for_memory: whether the system counts one more process that it ended for lack of memory.
        limit: bytes that its control groups allow, if they do not allow all that the machine has.
    """
    name = _signal(status)
    if name == "SIGKILL" and for_memory:
        figures = [f"{memory_size(limit)} are allowed here"] if limit is not None else []
        figures += [memory.words] if memory.words and memory.short else []
        known = f" ({', '.join(figures)})" if figures else ""
        return (
            f"Memory ran out and the system ended the worker{known}; close other programs or choose a smaller size or "
            f"window. {RESUME}."
        )
    held = f" ({memory.words})" if memory.words else ""
    if name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"):
        return (
            f"Another program or the system ended the worker with {name}{held}; if memory was short, choose a smaller "
            f"size or window. {RESUME}."
        )
    if name == "SIGBUS":  # weights are mapped from their files, which somebody may cut
        return (
            f"A file that the worker was reading was cut short, or its disk failed (SIGBUS){held}. {RESUME}; if it "
            "happens again, download the model again."
        )
    if name in _CRASHES:
        return (
            f"The worker crashed ({name}), as a faulty driver or attention package makes it{held}. {RESUME}; if it "
            "happens again, choose sdpa as attention under Advanced, or update the driver."
        )
    if name == "SIGABRT":
        return (
            f"A library in the worker gave up (SIGABRT; the terminal shows its last words){held}. {RESUME}; if it "
            "happens again, choose other settings under Advanced."
        )
    how = f"signal {name}" if name else f"exit code {status}"
    return f"The worker ended unexpectedly ({how}; the terminal shows its last words){held}. {RESUME}."


def describe_hang(seconds: float, memory: Memory) -> str:
    """Why a worker that gave no sign was ended."""
    passed = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
    held = f" ({memory.words})" if memory.words else ""
    return (
        f"The worker gave no sign for {passed} and was ended{held}. {RESUME}; if it happens again, restart the "
        "computer or choose other settings under Advanced."
    )


def _signal(status: int | None) -> str:
    if status is None:
        return ""
    if status < 0:
        try:
            return signal.Signals(-status).name
        except ValueError:
            return str(-status)
    return _WINDOWS.get(status, "")
