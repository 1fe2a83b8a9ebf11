"""The most memory that this process has had resident at once: what tests of memory's bounds measure."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def begin() -> int:
    """Forget earlier peaks, where the system can; the bytes from which `peak` grows."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")
    return peak()


def peak() -> int:
    """Bytes at most since `begin`, or since this process began.

    Linux's own figure first: there the one of `getrusage` begins with that of whoever started the process, and would
    hide as much growth as that one was larger. Kernels without it count each process by itself.
    """
    with contextlib.suppress(OSError, LookupError):
        return int(_STATUS.read_text().split("VmHWM:")[1].split()[0]) << 10
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10
