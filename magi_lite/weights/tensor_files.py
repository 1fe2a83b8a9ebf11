"""Tensors to safetensors files, whole or not at all.

The library's own writer hides what the disk said inside an error of its own, and its other one holds all bytes a second
time. The format is a header and the numbers behind it, so it is written here, one tensor after the other.
Format: https://huggingface.co/docs/safetensors (8 bytes of header length, JSON header, numbers).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from magi_lite.files import output_errors, replacing
from magi_lite.weights.checkpoint import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8
"""Numbers begin at a multiple of this many bytes, the widest type's, so that files can be mapped."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that after any crash holds all of `tensors`, or what it held before.

    Args:
        tensors: of any device and layout; one at a time is copied where it is not contiguous and on the CPU.
        metadata: text entries of the header.

    Raises:
        OutputError: folder missing, no permission, disk full.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))
    with output_errors(path), replacing(path) as temporary, temporary.open("xb") as file:
        file.write(_header(ordered, metadata))
        for piece in _pieces(ordered):
            file.write(piece)


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> bytes:
    """Length and JSON, padded with spaces; wide types stand first, so every tensor is aligned to its own width."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return struct.pack("<Q", len(header)) + header


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    for tensor in tensors.values():
        yield memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
