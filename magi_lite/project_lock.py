"""One writer per folder: a lock that the operating system drops when its holder dies, so that none can go stale."""

from __future__ import annotations

import os
from pathlib import Path

from magi_lite.errors import OutputError
from magi_lite.files import output_errors

LOCK_NAME = ".lock"


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
            _lock(self._descriptor)
        except OSError:
            holder = os.pread(self._descriptor, 20, 1).decode(errors="replace") if hasattr(os, "pread") else ""
            os.close(self._descriptor)
            by = f"process {holder.strip()}" if holder.strip() else "another process"
            raise OutputError(f"{folder.name} is being written by {by}; wait for it or stop it.") from None
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
        _lock(descriptor)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock(descriptor: int) -> None:
    """Take the lock or raise OSError at once. The first byte is locked; who holds it is written behind."""
    if os.name == "nt":
        import msvcrt

        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
