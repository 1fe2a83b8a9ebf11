"""Files that are whole or absent: atomic writes, and the sentences for what the disk refuses."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from magi_lite.errors import MediaError, OutputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CANNOT_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES}
"""What network disks, and folders that may be written but not read, answer to syncing a folder."""
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def output_error(error: OSError, path: Path) -> OutputError:
    """The sentence for a file or folder that could not be written."""
    if error.errno in _FULL:
        return OutputError(f"The disk is full or limited at {path}; free some space or choose another folder.")
    if error.errno in _DENIED:
        return OutputError(f"There is no permission to write {path}; choose another folder.")
    if error.errno == errno.ENOENT:
        return OutputError(f"The folder {path.parent} does not exist; create it or choose another.")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return OutputError(f"{path.parent} is not a folder; choose a folder for {path.name}.")
    if error.errno == errno.EISDIR:
        return OutputError(f"{path} is a folder; give the name of a file, such as {path / 'video.mp4'}.")
    if error.errno == errno.ENAMETOOLONG:
        return OutputError(f"The name {path.name[:40]}… is too long for this disk; choose a shorter one.")
    return OutputError(f"{path} cannot be written ({error.strerror or error}); choose another folder.")


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` inside into an `OutputError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise output_error(error, path) from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte; raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut, where the system can."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; what is written there takes its place when the block ends well.

    After any crash `path` holds all of the new or what it held before. Raises OSError.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:  # Windows syncs only what is open for writing
            os.fsync(file.fileno())
        _take_place(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def _take_place(temporary: Path, path: Path) -> None:
    """Rename; where the system refuses while somebody reads the old file, as Windows does, try for a second."""
    for wait in (0.05, 0.1, 0.2, 0.3, 0.4, None):
        try:
            temporary.replace(path)
            return
        except PermissionError:
            if wait is None or os.name != "nt":
                raise
            time.sleep(wait)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that after any crash holds either all of `data` or what it held before.

    Raises:
        OutputError: folder missing, no permission, disk full.
    """
    with output_errors(path), replacing(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644)
        try:
            write_all(descriptor, data)
        finally:
            os.close(descriptor)


def check_source(path: Path, kind: str) -> None:
    """Refuse a path that is no file with something in it that may be read.

    Args:
        path: where `kind`, such as "an image", should be.

    Raises:
        MediaError: one sentence.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError(f"There is no file {path}; give the path of {kind}.") from None
    except PermissionError:
        raise MediaError(f"There is no permission to read {path}; use another copy.") from None
    except (OSError, ValueError) as error:
        raise MediaError(f"{str(path)[:80]} cannot be read ({error}); give the path of {kind}.") from None
    if stat.S_ISDIR(found.st_mode):
        raise MediaError(f"{path} is a folder; give the path of {kind}.")
    if not stat.S_ISREG(found.st_mode):
        raise MediaError(f"{path} is not a file; give the path of {kind}.")
    if not os.access(path, os.R_OK):
        raise MediaError(f"There is no permission to read {path}; use another copy.")
    if found.st_size == 0:
        raise MediaError(f"{path.name} is empty; use another copy.")


def check_writable(path: Path) -> None:
    """Refuse, before hours of work, a file that could not be written in the end.

    Raises:
        OutputError: no such folder, no permission, or a folder of that name.
    """
    with output_errors(path):
        if not stat.S_ISDIR(path.parent.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "")
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "")
    if not os.access(path.parent, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise output_error(PermissionError(errno.EACCES, ""), path)


def check_output(path: Path) -> None:
    """Refuse, before hours of work, a video file that could not be written in the end.

    Raises:
        OutputError: no such folder, no permission, a folder of that name, another ending than .mp4.
    """
    if path.suffix.lower() != ".mp4":
        raise OutputError(f"{path.name!r} does not end in .mp4; give a name such as {Path(path.stem or 'video')}.mp4.")
    check_writable(path)
