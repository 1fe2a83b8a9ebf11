"""Encoders that take the machine for themselves, kept from it.

Opened by root, as programs in containers are, SVT-AV1 makes the thread that opens it and all of its own real-time
threads (SCHED_FIFO, the highest priority): nothing else runs on their cores, and every thread and process that the
opening thread starts later inherits it, long after the video is done.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def ordinary_threads() -> Iterator[None]:
    """Makes ordinary ones again of all threads of this process that are real-time threads behind the block only.

    On Linux; elsewhere encoders leave their threads' policies alone.
    """
    before = _real_time_threads()
    try:
        yield
    finally:
        for thread in _real_time_threads() - before:
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def _real_time_threads() -> set[int]:
    """The kernel's numbers of this process's real-time threads."""
    found: set[int] = set()
    if sys.platform == "linux":
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # it has ended, or a sandbox does not tell
                if os.sched_getscheduler(int(task.name)) in (os.SCHED_FIFO, os.SCHED_RR):
                    found.add(int(task.name))
    return found
