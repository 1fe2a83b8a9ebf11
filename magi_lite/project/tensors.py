"""Tensors of a run on disk, with a checksum in the header, so that damage is seen and not computed with."""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magi_lite.errors import MagiLiteError
from quant.storage.files import open_plain, parse_json

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUM = "checksum"
"""Entry of the header: see `_digest`. Files of earlier versions have none and are taken as they are."""
_MAX_HEADER = 1 << 20


class Damaged(MagiLiteError):
    """A file is missing, cannot be read, or does not hold what was written."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is missing or damaged.")
        self.path = path


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all, with its checksum.

    Raises:
        OutputError: the disk refuses.
    """
    import torch

    from magi_lite.files import write_tensors

    metadata = metadata or {}
    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    parts = ((name, list(t.shape), t.reshape(-1).view(torch.uint8).numpy().data) for name, t in plain.items())
    write_tensors(path, plain, {**metadata, CHECKSUM: _digest(metadata, parts)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header entries of a file that `save_tensors` wrote.

    Raises:
        Damaged: see there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    metadata = read_metadata(path)
    try:
        return load_file(path), metadata
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise Damaged(path) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Header entries of a file whose numbers are those that were written; needs no torch.

    Raises:
        Damaged: see there.
    """
    try:
        with open_plain(path) as file:
            length = int(struct.unpack("<Q", file.read(8))[0])
            if length > _MAX_HEADER:
                raise Damaged(path)
            header = parse_json(file.read(length))
            metadata = dict(header.pop("__metadata__", {}))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                sizes = {entry["data_offsets"][1] for entry in header.values()}
                if len(content) != 8 + length + max(sizes, default=0):
                    raise Damaged(path)
                written = metadata.pop(CHECKSUM, None)
                if written is not None and written != _digest(metadata, _parts(header, content, 8 + length)):
                    raise Damaged(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise Damaged(path) from error
    return metadata


def _parts(header: dict[str, Any], content: mmap.mmap, start: int) -> Iterable[tuple[str, list[int], bytes]]:
    for name in sorted(header):
        begin, end = header[name]["data_offsets"]
        yield name, header[name]["shape"], content[start + begin : start + end]


def _digest(metadata: Mapping[str, str], parts: Iterable[tuple[str, list[int], bytes | memoryview]]) -> str:
    """SHA-256 over the header's other entries, and name, shape and numbers of every tensor in order of names."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, shape, numbers in parts:
        digest.update(f"{name} {shape}".encode())
        digest.update(numbers)
    return digest.hexdigest()
