"""One file over the network: continued where it was cut, checked, and put in place only when it is whole.

A file grows as `name.<hash>.part` beside its place, so that a dead process, a lost connection or a newer version of the
file on the server cannot spoil anything. What moves the bytes is a `Source`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from magi_lite.errors import DownloadError, MagiLiteError, OutputError
from quant.errors import Cancelled, DiskError
from quant.storage.lock import alone

Progress = Callable[[int, int, str], None]
"""Called with bytes done and bytes in all, over all files, and the file in work."""
_SPARE_BYTES = 1 << 30
_READ = 1 << 22


class DownloadCancelled(DownloadError):
    """The user stopped a download; it continues where it was when run again."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of the repository with what it can be checked by: sha256 of large files, git's blob id of small ones."""

    path: str
    size: int
    sha256: str | None
    blob_id: str

    @property
    def key(self) -> str:
        """Tells versions of a file apart in the name of its partial download."""
        return (self.sha256 or self.blob_id)[:12]


class Source(Protocol):
    """Where files come from: the hub, or a server of the tests."""

    def files(self) -> list[RemoteFile]: ...

    def address(self, path: str) -> str: ...

    def fetch(self, url: str, file: io.FileIO, done: int, size: int) -> None:
        """Append the bytes from `done` on to `file`."""


class Counter:
    """Bytes of all files together, reported as they arrive."""

    def __init__(self, progress: Progress, cancelled: Callable[[], bool], total: int) -> None:
        self.progress, self.cancelled, self.total = progress, cancelled, total
        self.before = 0
        """Bytes of the files that are finished."""

    def at(self, done: int, name: str) -> None:
        if self.cancelled():
            raise DownloadCancelled(f"The download was stopped in {name}; run it again to continue.")
        self.progress(self.before + done, self.total, name)


class _Growing(io.FileIO):
    """A partial file that tells how long it is after every write, and never becomes longer than the whole."""

    def __init__(self, path: Path, counter: Counter, file: RemoteFile) -> None:
        super().__init__(path, "a+b")
        self.counter, self.label, self.most = counter, file.path, file.size

    def write(self, data: bytes) -> int:  # type: ignore[override]
        rest = memoryview(data)
        if self.tell() + len(rest) > self.most:  # none of it can be trusted
            self.truncate(0)
            raise DownloadError(
                f"More arrived for {self.label} than its {self.most} bytes; run the download again later."
            )
        while rest:  # a raw file may take less than it is given
            rest = rest[super().write(rest) :]
        self.counter.at(self.tell(), self.label)
        return len(data)


def bring(source: Source, url: str, file: RemoteFile, target: Path, counter: Counter, verify: bool = False) -> None:
    """Make sure that `target` is the file: kept if its size is right, else fetched, checked and put in place.

    Args:
        verify: keep it only if its contents are right, too.

    Raises:
        DownloadError: no connection, cut, or damaged on the way; what arrived is kept unless it is damaged.
        OutputError: the disk refuses.
    """
    if not _is_there(target, file, verify):
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{file.key}.part")
        with _alone(partial, file, counter):
            if not _is_there(target, file, verify):  # another download may have brought it meanwhile
                _fetch(source, url, file, partial, counter)
                with writing(target):
                    partial.replace(target)
    counter.at(file.size, file.path)
    counter.before += file.size


def _is_there(target: Path, file: RemoteFile, verify: bool) -> bool:
    return target.is_file() and target.stat().st_size == file.size and (not verify or _intact(target, file))


@contextlib.contextmanager
def _alone(partial: Path, file: RemoteFile, counter: Counter) -> Iterator[None]:
    """Hold a partial file against other downloads: models share files, and two would write into each other's."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(alone(partial.with_name(f".{partial.name}.lock"), file.path, counter.cancelled))
        except Cancelled:
            raise DownloadCancelled(f"The download was stopped in {file.path}; run it again to continue.") from None
        except DiskError as error:
            raise OutputError(str(error)) from error
        yield


def _fetch(source: Source, url: str, file: RemoteFile, partial: Path, counter: Counter) -> None:
    """Let a partial file grow to the whole, and check it."""
    if os.path.lexists(partial) and not partial.is_file():  # a pipe would be waited for
        raise OutputError(f"{partial} is no ordinary file; remove it, then run the download again.")
    with writing(partial), _Growing(partial, counter, file) as growing:
        done = growing.seek(0, io.SEEK_END)
        if done > file.size:  # not a beginning of this file
            growing.truncate(0)
            done = growing.seek(0)
        counter.at(done, file.path)
        if done < file.size:
            cut = f"{file.path} was cut; what arrived is kept, run the download again to continue"
            none = f"{file.path} cannot be fetched; run the download again when there is a connection"
            try:
                with network(lambda: cut if growing.tell() else none):
                    source.fetch(url, growing, done, file.size)
            except DownloadError:
                if _begins_with_a_page(growing, file):  # of a network that wants a login; nothing goes on from it
                    growing.truncate(0)
                    raise DownloadError(
                        f"A web page arrived instead of {file.path}; log in to this network with a browser, "
                        "then run the download again."
                    ) from None
                raise
    _check(partial, file)


def _begins_with_a_page(growing: io.FileIO, file: RemoteFile) -> bool:
    growing.seek(0)
    start = growing.read(256) or b""
    growing.seek(0, io.SEEK_END)
    return not file.path.endswith(".txt") and start.lstrip()[:1] == b"<"


def _check(partial: Path, file: RemoteFile) -> None:
    """Refuse, and delete, contents other than the published ones."""
    size = partial.stat().st_size
    if size < file.size:
        raise DownloadError(
            f"{file.path} was cut after {size} of {file.size} bytes; run the download again to continue."
        )
    if not _intact(partial, file):
        partial.unlink()
        raise DownloadError(f"{file.path} arrived damaged (its hash is not the published one); run the download again.")


def _intact(path: Path, file: RemoteFile) -> bool:
    """Whether a file has the published contents."""
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(_READ):
            digest.update(piece)
    return digest.hexdigest() == (file.sha256 or file.blob_id)


def check_space(root: Path, files: list[RemoteFile], more: int = 0) -> None:
    """Refuse before the first byte what the disk cannot hold; `more`: bytes that are written besides the files."""
    missing = more
    for file in files:
        target = root / file.path
        partial = target.with_name(f"{target.name}.{file.key}.part")
        there = target if target.is_file() else partial
        missing += max(0, file.size - (there.stat().st_size if there.is_file() else 0))
    place = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if missing and missing + _SPARE_BYTES > free:
        raise OutputError(
            f"{missing / 1e9:.1f} GB are to be downloaded and {root} has {free / 1e9:.1f} GB free; "
            "free some space or choose another folder."
        )


@contextlib.contextmanager
def network(what: Callable[[], str]) -> Iterator[None]:
    """Turn the many errors of a transfer into one sentence, which `what` begins."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # its versions differ in whose it is

    try:
        yield
    except MagiLiteError:
        raise
    except (OSError, HTTPError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DownloadError(f"{what()} ({reason}).") from error


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn a disk's refusal into one sentence."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}; choose another folder.") from error
