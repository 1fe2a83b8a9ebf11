"""Files that are whole or absent: atomic writes, and the sentences for what the disk refuses."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from quant.errors import DiskError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CANNOT_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES}
"""What network disks, and folders that may be written but not read, answer to syncing a folder."""
_DENIED = {errno.EACCES, errno.EPERM}
_PIECE = 1 << 22
_SMALL = 1 << 26


def disk_sentence(error: OSError, path: Path) -> str:
    """What to say of a file or folder that could not be written."""
    if error.errno in _FULL:
        return f"The disk is full or limited at {path}; free some space or choose another folder."
    if error.errno in _DENIED:
        return f"There is no permission to write {path}; choose another folder."
    if error.errno == errno.EROFS:
        return f"The disk of {path} can only be read; choose another folder, or look whether it failed."
    if error.errno == errno.ENOENT:
        return f"The folder {path.parent} does not exist; create it or choose another."
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{path.parent} is not a folder; choose a folder for {path.name}."
    if error.errno == errno.EISDIR:
        return f"{path} is a folder; give the name of a file, such as {path / 'video.mp4'}."
    if error.errno == errno.ENAMETOOLONG:
        return f"The name {path.name[:40]}… is too long for this disk; choose a shorter one."
    return f"{path} cannot be written ({error.strerror or error}); choose another folder."


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` inside into a `DiskError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise DiskError(disk_sentence(error, path)) from error


def check_working_folder() -> None:
    """Refuse to run in a folder that was deleted: libraries cannot be loaded there, and one of them aborts.

    Raises:
        DiskError: it is gone.
    """
    try:
        Path.cwd()
    except OSError:
        raise DiskError("The folder that this was started in is no longer there; change to another one.") from None


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


def sync_file(path: Path) -> None:
    """Bring a file to the disk, and have the next reader read it from there, where the system can be asked to."""
    with path.open("rb+") as file:  # Windows syncs only what is open for writing
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; what is written there takes its place when the block ends well.

    After any crash `path` holds all of the new or what it held before. Raises OSError.
    """
    stem = path.stem[:24]  # a name as long as the disk takes leaves no room for more
    suffix = path.suffix if len(path.suffix.encode()) <= 32 else ""
    temporary = path.with_name(f".{stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp{suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        take_place(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def is_leftover(name: str) -> bool:
    """Whether a file of that name is what `replacing` leaves when the process is killed."""
    return re.fullmatch(r"\..*\.\d+-[0-9a-f]{8}\.tmp(\.\w+)?", name) is not None


def take_place(temporary: Path, path: Path) -> None:
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
        DiskError: folder missing, no permission, disk full.
    """
    with disk_errors(path), replacing(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644)
        try:
            write_all(descriptor, data)
        finally:
            os.close(descriptor)


def sha256(path: Path) -> str:
    """Of a whole file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_PIECE):
            digest.update(block)
    return digest.hexdigest()


def open_plain(path: Path) -> BinaryIO:
    """An ordinary file, for reading. A pipe would wait for a writer for ever, and a device may never end.

    Raises:
        OSError: it cannot be opened, or is something else.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
    return os.fdopen(descriptor, "rb")


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a file of ours that is written in place. A link found there goes: it would lead elsewhere.

    A pipe in its place would wait for a reader for ever.

    Raises:
        OSError: it cannot be opened, or is a pipe.
    """
    if path.is_symlink():
        path.unlink()
    more = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_BINARY", "O_NONBLOCK"))
    descriptor = os.open(path, flags | sum(more), 0o644)
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is a pipe", str(path))
    return descriptor


def remove_folder(path: Path) -> None:
    """Remove a folder with all in it as far as the system allows; of a link to one only the link."""
    if path.is_symlink():
        with contextlib.suppress(OSError):
            path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def read_now(file: BinaryIO, most: int = -1) -> bytes:
    """At most so many bytes of a file of `open_plain`.

    Raises:
        OSError: also for a file of the system's, such as /proc/kmsg, that has nothing yet and would be waited for.
    """
    data = file.read(most)
    if data is None:
        raise OSError(errno.EAGAIN, "it has nothing to read yet")
    return data


def read_small(path: Path, most: int = _SMALL) -> bytes:
    """The bytes of an ordinary file of at most `most`: records, indexes and configurations.

    Raises:
        OSError: as `open_plain`.
        ValueError: it is larger.
    """
    with open_plain(path) as file:
        data = read_now(file, most + 1)
    if len(data) > most:
        raise ValueError(f"{path.name} has more than {most} bytes")
    return data


def parse_json(text: str | bytes) -> Any:
    """As `json.loads`, the one reader of JSON: a mark in front does no harm, and whatever is wrong is a ValueError.

    Bytes may be UTF-8, UTF-16 or UTF-32.
    """
    try:
        return json.loads(text.removeprefix("\ufeff") if isinstance(text, str) else text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def is_denied(error: BaseException) -> bool:
    """Whether an error, or its cause, is that something may not be written."""
    return any(isinstance(e, OSError) and e.errno in {*_DENIED, errno.EROFS} for e in (error, error.__cause__))
