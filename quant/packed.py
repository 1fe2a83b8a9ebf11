"""Shards compressed with zstd, as some checkpoints are published: unpacked in pieces, into files that appear whole."""

from __future__ import annotations

import os
from pathlib import Path

from quant.errors import QuantError

SUFFIX = ".zst"
_PIECE = 1 << 22


def unpacked(path: Path, folder: Path) -> Path:
    """The contents of `name.zst` as the file `name` in `folder`, of the same time; one made before is kept.

    Raises:
        QuantError: not zstd, cut short, or the library is missing.
    """
    target = folder / path.name.removesuffix(SUFFIX)
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    if target.is_file() and target.stat().st_mtime_ns == times[1]:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".unfinished")
    try:
        _unpack(path, unfinished)
        os.utime(unfinished, ns=times)  # what is made of it is known again by its time
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def _unpack(path: Path, target: Path) -> None:
    try:
        import zstandard
    except ImportError as error:
        raise QuantError(
            f"{path} is compressed: pip install zstandard, or unpack it first with: zstd -d {path}"
        ) from error
    reader = zstandard.ZstdDecompressor().decompressobj()
    try:
        with path.open("rb") as packed, target.open("wb") as file:
            while piece := packed.read(_PIECE):
                while piece:
                    if reader.eof:  # several frames, one after the other
                        reader = zstandard.ZstdDecompressor().decompressobj()
                    file.write(reader.decompress(piece))
                    piece = reader.unused_data if reader.eof else b""
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        what = f"{path} cannot be unpacked to {target.parent} ({error.strerror})"
        raise QuantError(f"{what}; free some space or choose another OUT.") from error
    except zstandard.ZstdError as error:
        raise QuantError(f"{path} is not a zstd file ({error}); download it again.") from error
    if not reader.eof:
        raise QuantError(f"{path} is cut short; download it again.")
