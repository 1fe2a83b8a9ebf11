"""Tensors of a run on disk, with a checksum in the header, so that damage is seen and not computed with."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from magi_lite.errors import MagiLiteError
from quant.storage.files import open_plain, parse_json

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUM = "checksum"
"""Entry of the header: see `_digest`. Files of earlier versions have none and are taken as they are."""
_COMPLETE = "2:"
"""In front of a checksum that covers the file's place in the run and the tensors' types, too; earlier ones did not."""
_MAX_HEADER = 1 << 20
_LARGEST = 4 << 30
"""Bytes; a state of the largest video has 0.5 GB."""
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error, RecursionError, MemoryError)
"""What a file that is cut or changed makes its readers stumble over."""


def short_digest(data: bytes) -> str:
    """48 bits of SHA-256, in eight letters: against what is mixed up, not against who forges."""
    return base64.b64encode(hashlib.sha256(data).digest()[:6]).decode()


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
    from quant.storage.tensors import type_name

    metadata = metadata or {}
    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    forms = {name: [type_name(tensor.dtype), *tensor.shape] for name, tensor in plain.items()}
    parts = ((name, forms[name], t.reshape(-1).view(torch.uint8).numpy().data) for name, t in plain.items())
    write_tensors(path, plain, {**metadata, CHECKSUM: _COMPLETE + _digest(metadata, parts, _place(path))})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header entries of a file that `save_tensors` wrote.

    Raises:
        Damaged: see there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    metadata, content = _read(path)
    try:
        return {name: tensor.clone() for name, tensor in load(content).items()}, metadata  # aligned as torch does it
    except (SafetensorError, ValueError, KeyError) as error:
        raise Damaged(path) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Header entries of a file whose numbers are those that were written; needs no torch.

    Raises:
        Damaged: see there.
    """
    return _read(path)[0]


def read_numbers(path: Path, name: str) -> tuple[dict[str, str], bytes]:
    """Header entries of a file, and the bytes of one of its tensors; needs no torch.

    Raises:
        Damaged: see there, or there is no such tensor.
    """
    metadata, content = _read(path)
    try:
        header, _, start = _read_header(io.BytesIO(content))
        begin, end = header[name]["data_offsets"]
        return metadata, content[start + begin : start + end]
    except _DAMAGE as error:
        raise Damaged(path) from error


def read_start(path: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Header entries and shapes, as the header has them; the numbers are not looked at. Needs no torch.

    Raises:
        Damaged: the header is missing or cannot be read.
    """
    try:
        with open_plain(path) as file:
            header, metadata, _ = _read_header(file)
            return metadata, {name: tuple(entry["shape"]) for name, entry in header.items()}
    except _DAMAGE as error:
        raise Damaged(path) from error


def _read(path: Path) -> tuple[dict[str, str], bytes]:
    """Header entries, and the whole file, whose numbers are those that were written.

    It is not mapped: who cuts a mapped file ends the program that reads it.
    """
    try:
        with open_plain(path) as file:
            header, metadata, start = _read_header(file)
            size = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
            if size != os.fstat(file.fileno()).st_size or size > _LARGEST:
                raise Damaged(path)
            file.seek(0)
            content = file.read()
            written = metadata.pop(CHECKSUM, None)
            if len(content) != size:
                raise Damaged(path)
            if written is not None:
                complete = written.startswith(_COMPLETE)
                parts = _parts(header, memoryview(content), start, types=complete)
                found = _COMPLETE + _digest(metadata, parts, _place(path)) if complete else _digest(metadata, parts)
                if written != found:
                    raise Damaged(path)
    except _DAMAGE as error:
        raise Damaged(path) from error
    return metadata, content


def _place(path: Path) -> str:
    """Folder and name in the run, so that no file passes for another one."""
    return f"{path.parent.name}/{path.name}"


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], dict[str, str], int]:
    """Entries of the tensors, the header's other entries, and where the numbers begin."""
    length = int(struct.unpack("<Q", file.read(8))[0])
    if length > _MAX_HEADER:
        raise ValueError("no header of ours")
    header = parse_json(file.read(length))
    return header, dict(header.pop("__metadata__", {})), 8 + length


def _parts(
    header: dict[str, Any], content: memoryview, start: int, *, types: bool
) -> Iterable[tuple[str, list[Any], memoryview]]:
    for name in sorted(header):
        entry = header[name]
        begin, end = entry["data_offsets"]
        form = [entry["dtype"], *entry["shape"]] if types else entry["shape"]
        yield name, form, content[start + begin : start + end]


def _digest(
    metadata: Mapping[str, str], parts: Iterable[tuple[str, list[Any], bytes | memoryview]], place: str = ""
) -> str:
    """SHA-256 over the header's other entries, and name, form and numbers of every tensor in order of names."""
    digest = hashlib.sha256(place.encode() + json.dumps(dict(metadata), sort_keys=True).encode())
    for name, form, numbers in parts:
        digest.update(f"{name} {form}".encode())
        digest.update(numbers)
    return digest.hexdigest()
