"""What tells weights from others of the same shapes, without reading all of a large file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from magi_lite.errors import CheckpointError
from quant.storage.files import open_plain

_SAMPLE = 1 << 16
_WHOLE = 64 << 20
"""Files up to this many bytes are read whole."""


def sampled(path: Path) -> Iterator[bytes]:
    """A file's content; of a large one its start, middle and end: reading 19 GB to tell two apart costs too much."""
    size = path.stat().st_size
    with open_plain(path) as file:
        if size <= _WHOLE:
            yield file.read()
            return
        for offset in (0, size // 2, size - _SAMPLE):
            file.seek(offset)
            yield file.read(_SAMPLE)


def autoencoder_identity(folder: Path) -> str:
    """A checksum of an autoencoder's weights, whatever else lies in its folder.

    Raises:
        CheckpointError: a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted(folder.glob("*.safetensors")):
            digest.update(str(path.stat().st_size).encode())
            for part in sampled(path):
                digest.update(part)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or folder} cannot be read: {error.strerror or error}; make it readable, or remove it."
        ) from error
    return digest.hexdigest()
