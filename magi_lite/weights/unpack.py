"""Undo the zstd compression of published shards, in pieces, into a file that appears only when it is whole."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from magi_lite.errors import CheckpointError, OutputError

_PIECE = 1 << 22


def unpack(path: Path) -> Path | bytes:
    """The contents of `name.safetensors.zst`: the file `name.safetensors` beside it, made once.

    A file beside it that is at least as new is reused. Where the folder cannot be written, the contents are returned in
    memory.

    Raises:
        CheckpointError: not zstd, or cut short.
        OutputError: the disk is full.
    """
    target = path.with_suffix("")
    if target.is_file() and target.stat().st_mtime >= path.stat().st_mtime:
        return target
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{target.name}.", suffix=".part")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OutputError(f"The disk is full: {path} cannot be unpacked beside itself; free some space.") from error
        return b"".join(_pieces(path))
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in _pieces(path):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except OSError as error:
        raise OutputError(f"{path} cannot be unpacked beside itself: {error.strerror}; free some space.") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target


def _pieces(path: Path) -> Iterator[bytes]:
    """Decompressed pieces. zstandard's own readers end silently where a file is cut, so the frame's end is checked."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor().decompressobj()
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                if decompressor.eof:
                    decompressor = zstandard.ZstdDecompressor().decompressobj()
                yield decompressor.decompress(piece)
                while decompressor.eof and decompressor.unused_data:  # several frames, one after the other
                    rest = decompressor.unused_data
                    decompressor = zstandard.ZstdDecompressor().decompressobj()
                    yield decompressor.decompress(rest)
    except zstandard.ZstdError as error:
        raise CheckpointError(f"{path} is damaged or not zstd-compressed; download it again.") from error
    if not decompressor.eof:
        raise CheckpointError(f"{path} is cut short; download it again.")
