"""Files as the program writes and checks them: `quant.storage` does the work, its errors become this program's."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from magi_lite.errors import CheckpointError, LoadCancelled, MediaError, OutputError
from quant.errors import Cancelled, DiskError, WeightsError
from quant.storage import files

if TYPE_CHECKING:
    from torch import Tensor


_PIECE = 1 << 20


def output_error(error: OSError, path: Path) -> OutputError:
    """The error for a file or folder that could not be written."""
    return OutputError(files.disk_sentence(error, path))


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Turn the errors of `quant.storage` inside into this program's; also a decorator."""
    try:
        yield
    except WeightsError as error:
        raise CheckpointError(str(error)) from error
    except DiskError as error:
        raise OutputError(str(error)) from error
    except Cancelled as error:
        raise LoadCancelled(str(error)) from error
    except PermissionError as error:  # even of whether a file is there, in a folder that may not be entered
        what = error.filename or "A file of the model"
        raise CheckpointError(f"There is no permission to look at {what}; make its folder readable.") from error


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` inside into an `OutputError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise output_error(error, path) from error


check_working_folder = storage_errors()(files.check_working_folder)
"""`files.check_working_folder`; OutputError where it is gone."""


@storage_errors()
def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that after any crash holds either all of `data` or what it held before.

    Raises:
        OutputError: folder missing, no permission, disk full.
    """
    files.write_atomic(path, data)


@storage_errors()
def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that after any crash holds all of `tensors`, or what it held before.

    Raises:
        OutputError: as `write_atomic`.
    """
    from quant.storage import tensors as storage

    storage.write_tensors(path, tensors, metadata)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """As `quant.storage.files.replacing`, with errors that name `path` and not what is written beside it.

    Raises:
        OutputError: the disk refuses.
    """
    with output_errors(path), files.replacing(path) as temporary:
        try:
            yield temporary
        except OutputError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__
            raise cause or error from None


def copy_source(source: Path, target: Path, sha256: str | None) -> None:
    """Copy a picture or clip, whole or not at all, that is still what it was when it was looked at.

    Args:
        sha256: what it was, in hexadecimal; None: whatever it is.

    Raises:
        MediaError: it cannot be read, or was changed meanwhile.
        OutputError: the disk refuses.
    """
    digest = hashlib.sha256()
    with _opened(source) as reader, replacing(target) as temporary:
        with temporary.open("xb") as writer:
            while block := _read(reader, source):
                digest.update(block)
                writer.write(block)
        if sha256 not in (None, digest.hexdigest()):
            raise MediaError(f"{source.name} was changed meanwhile; give it again.")


@contextlib.contextmanager
def _source_errors(source: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MediaError(f"{source} cannot be read ({error.strerror or error}); use another copy.") from None


def _opened(source: Path) -> BinaryIO:
    with _source_errors(source):
        return files.open_plain(source)


def _read(reader: BinaryIO, source: Path) -> bytes:
    with _source_errors(source):
        return reader.read(_PIECE)


def is_file(path: Path | str) -> bool:
    """Whether a file is there; False also of a text that no disk can have as a name, where pathlib raises."""
    return _looked(Path.is_file, path)


def is_folder(path: Path | str) -> bool:
    """Whether a folder is there; see `is_file`."""
    return _looked(Path.is_dir, path)


def is_there(path: Path | str) -> bool:
    """Whether anything is there; see `is_file`."""
    return _looked(Path.exists, path)


def _looked(look: Callable[[Path], bool], path: Path | str) -> bool:
    try:
        return look(Path(path))
    except (OSError, ValueError):  # too long, or with characters that no name has
        return False


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
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{str(path)[:80]} cannot be read ({reason}); give the path of {kind}.") from None
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
        OutputError: no such folder, no permission, or a folder, device or pipe of that name.
    """
    with output_errors(path):
        if not stat.S_ISDIR(path.parent.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "")
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is a device or a pipe, which a file would replace; give another name.")
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
