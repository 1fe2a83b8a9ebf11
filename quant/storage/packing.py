"""Shards compressed with zstd, as some checkpoints are published.

Their safetensors header is read by unpacking only the first bytes, so that names and shapes are checked, and the size
is known, before anything is unpacked: a small file cannot fill memory or disk. Unpacking runs in pieces of bounded
size, into a file that appears when it is whole; a process that was killed leaves one that the next one takes up.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from quant.errors import Cancelled, DiskError, WeightsError
from quant.storage.files import disk_errors, open_plain, take_place
from quant.storage.headers import LENGTH, Header, check_start, header_length, parse_header
from quant.storage.lock import alone

SUFFIX = ".zst"
_PIECE = 1 << 22
_SPARE = 256 << 20
"""Bytes that unpacking leaves free on a disk."""


def packed_header(path: Path, unpacked: Path) -> Header:
    """The safetensors header inside `name.safetensors.zst`; its tensors lie in `unpacked`.

    Raises:
        WeightsError: not zstd, cut short, no safetensors inside, or the library is missing.
    """
    with _opened(path) as file:
        start = _read(file, LENGTH)
        length = header_length(start)
        start += _read(file, length or 256)
    if not start or (length and len(start) < LENGTH + length):
        raise WeightsError(f"{path} is cut short; download it again.")
    check_start(start, unpacked)
    return parse_header(start, unpacked, len(start))


def is_unpacked(path: Path, target: Path) -> bool:
    """Whether `target` is what unpacking `path` gave, here by its time, or beside it by somebody else."""
    try:
        made, packed = target.stat().st_mtime_ns, path.stat().st_mtime_ns
    except OSError:
        return False
    if made == packed or target.parent != path.parent:
        return made == packed
    try:
        return _begins_alike(path, target)
    except WeightsError:  # it cannot be looked into: no zstandard here, or it is damaged
        return made > packed


def _begins_alike(path: Path, target: Path) -> bool:
    """Whether a file has the length and the beginning of what is packed; times say little, for clocks are set."""
    size = packed_header(path, target).size
    with _opened(path) as packed, target.open("rb") as made:
        return target.stat().st_size == size and _read(packed, _PIECE) == made.read(_PIECE)


def unpack(path: Path, target: Path, size: int, cancelled: Callable[[], bool] = lambda: False) -> None:
    """The contents of `path` as the file `target`, of the same time; another process at it is waited for.

    Args:
        size: of the contents, as `packed_header` has it.

    Raises:
        WeightsError: damaged, cut short, or longer than `size`.
        DiskError: full, or `target` cannot be written.
        Cancelled: `cancelled()` in between.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with alone(target.with_name(f".{target.name}.lock"), target.name, cancelled):
        if is_unpacked(path, target):
            return
        _check_room(path, target.parent, size)
        unfinished = target.with_name(f".{target.name}.unfinished")
        try:
            with disk_errors(target):
                stat = path.stat()
                with unfinished.open("wb") as file:
                    for piece in pieces(path, size):
                        if cancelled():
                            raise Cancelled(f"Unpacking {path.name} was cancelled.")
                        file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
                os.utime(unfinished, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # what is made of it is known by its time
                take_place(unfinished, target)
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink()


def pieces(path: Path, size: int) -> Iterator[bytes]:
    """The `size` bytes inside, in pieces.

    Raises:
        WeightsError: damaged, cut short, or longer.
    """
    done = 0
    with _opened(path) as file:
        while piece := _read(file, _PIECE):
            done += len(piece)
            if done > size:
                raise WeightsError(f"{path} is longer than its header says; download it again.")
            yield piece
    if done < size:
        raise WeightsError(f"{path} is cut short; download it again.")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        import zstandard
    except ImportError as error:
        raise WeightsError(
            f"{path} is compressed: pip install zstandard, or unpack it first with: zstd -d {path}"
        ) from error
    try:
        with open_plain(path) as packed:
            yield zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
    except zstandard.ZstdError as error:
        raise WeightsError(f"{path} is damaged or not zstd-compressed; download it again.") from error


def _read(file: BinaryIO, count: int) -> bytes:
    """So many bytes, or all that are left."""
    parts = []
    while count and (part := file.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _check_room(path: Path, folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size + _SPARE > free:
        raise DiskError(
            f"{path.name} unpacks to {size / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free; free some space."
        )
