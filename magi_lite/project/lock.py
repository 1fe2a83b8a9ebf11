"""One writer per folder: a lock that the operating system drops when its holder dies, so that none can go stale."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from magi_lite.errors import OutputError
from magi_lite.files import output_errors

LOCK_NAME = ".lock"
_PATIENCE = 0.5
"""Seconds in which a lock is tried again: `is_locked` holds it for an instant, and that is no writer."""


class FolderLock:
    """The right to write into a folder, held until `release` or the end of the process.

    Raises:
        OutputError: someone else holds it; the message names the process.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_NAME
        with output_errors(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock_soon(self._descriptor)
        except OSError:
            holder = os.pread(self._descriptor, 20, 1).decode(errors="replace") if hasattr(os, "pread") else ""
            os.close(self._descriptor)
            by = f"process {holder.strip()}" if holder.strip() else "another process"
            raise OutputError(f"{folder.name} is being written by {by}; wait for it or stop it.") from None
        with contextlib.suppress(OSError):  # who holds it is told as a courtesy; a full disk has no room for it
            os.ftruncate(self._descriptor, 1)
            os.lseek(self._descriptor, 1, os.SEEK_SET)
            os.write(self._descriptor, str(os.getpid()).encode())

    def release(self) -> None:
        """Let others write."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_locked(folder: Path) -> bool:
    """Whether some process, this one included, is writing into the folder."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR)
    except OSError:
        return False
    try:
        _lock(descriptor, shared=True)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock_soon(descriptor: int) -> None:
    """Take the lock within `_PATIENCE` or raise OSError."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return _lock(descriptor)
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.01)


def _lock(descriptor: int, *, shared: bool = False) -> None:
    """Take the lock or raise OSError at once. The first byte is locked; who holds it is written behind.

    A shared lock is refused by a writer's only, so that those who ask do not take each other for one; Windows has none.
    """
    if os.name == "nt":
        import msvcrt

        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
