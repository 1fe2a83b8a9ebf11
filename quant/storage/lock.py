"""Locks that the operating system drops when their holder dies, so that none can go stale."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from quant.errors import Cancelled, DiskError, LockedError
from quant.storage.files import disk_errors, open_own

_PATIENCE = 0.5
"""Seconds in which a lock is tried again: `is_locked` holds it for an instant, and that is no writer."""
_POLL = 0.1


class FileLock:
    """The right to write, held until `release` or the end of the process. The lock's file stays where it is.

    Args:
        path: the file that stands for the lock; made if missing.
        what: what is being written, for the message.

    Raises:
        LockedError: someone else holds it; the message names the process.
        DiskError: the file cannot be made.
    """

    def __init__(self, path: Path, what: str, patience: float = _PATIENCE) -> None:
        if path.is_dir():
            raise DiskError(f"{path} is a folder in the place of the lock's file; remove it.")
        with disk_errors(path):
            self._descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
        try:
            _lock_soon(self._descriptor, patience)
        except OSError:
            holder = os.pread(self._descriptor, 20, 1).decode(errors="replace") if hasattr(os, "pread") else ""
            os.close(self._descriptor)
            by = f"process {holder.strip()}" if holder.strip() else "another process"
            raise LockedError(f"{what} is being written by {by}; wait for it or stop it.") from None
        with contextlib.suppress(OSError):  # the holder's name is a courtesy; a full disk has no room for it
            os.ftruncate(self._descriptor, 1)
            os.lseek(self._descriptor, 1, os.SEEK_SET)
            os.write(self._descriptor, str(os.getpid()).encode())

    def is_file(self, path: Path) -> bool:
        """Whether `path` still is the file that is locked: its holder before may have removed it."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), path.stat())
        except OSError:
            return False

    def release(self) -> None:
        """Let others write."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@contextlib.contextmanager
def alone(path: Path, what: str, cancelled: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Wait for the lock and hold it for the block; its file is gone afterwards.

    Raises:
        Cancelled: `cancelled()` while waiting.
        DiskError: the lock's file cannot be made.
    """
    while True:
        if cancelled():
            raise Cancelled(f"Waiting for {what} was cancelled.")
        try:
            lock = FileLock(path, what, patience=0.0)
        except LockedError:
            time.sleep(_POLL)
            continue
        if lock.is_file(path):
            break
        lock.release()
    try:
        yield
    finally:
        if os.name == "nt":  # where no open file can be removed
            lock.release()
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether some process, this one included, holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        _lock(descriptor, shared=True)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock_soon(descriptor: int, patience: float) -> None:
    """Take the lock within so many seconds or raise OSError."""
    until = time.monotonic() + patience
    while True:
        try:
            return _lock(descriptor)
        except OSError:
            if time.monotonic() >= until:
                raise
        time.sleep(0.01)


def _lock(descriptor: int, *, shared: bool = False) -> None:
    """Take the lock or raise OSError at once. The first byte is locked; who holds it is written behind.

    A shared lock is refused by a writer's only, so that those who ask do not take each other for one; Windows has none.
    """
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
