"""Headers of safetensors files, read and checked by ourselves before a tensor is touched.

The common accidents (a cut download, an HTML error page, a git-lfs pointer) deserve a sentence of their own.
Format: https://huggingface.co/docs/safetensors (8 bytes of header length, JSON header, numbers). No torch.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant.errors import WeightsError
from quant.storage.files import open_plain, parse_json, read_now

KINDS = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""The format's name of a type -> torch's name, bytes of a number."""
FLOATS = ("bfloat16", "float16", "float32")
"""What a tensor that is not quantized may be stored as."""
LARGEST_HEADER = 25_000_000
"""Bytes: two hundred thousand tensors in one file. What it is read into may take thirty times as much."""
MOST_SIDES = 16
"""Of a tensor; torch has no name for more."""
LENGTH = 8
"""Bytes in front of the header, which hold its length."""


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor.

    kind: torch's name of its type; file: where it lies (of a compressed shard: the file that unpacking makes);
    start: of its numbers, in bytes from the beginning of the file; bytes: their length.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    file: Path
    start: int
    bytes: int


@dataclass(frozen=True)
class Header:
    """A file's text entries, its tensors in the order of their numbers, and the bytes that the whole file has."""

    metadata: dict[str, str]
    tensors: tuple[TensorInfo, ...]
    size: int


def read_header(path: Path) -> Header:
    """The header of a safetensors file, every accident named.

    Raises:
        WeightsError: not a safetensors file, cut short, or its header contradicts itself or the file's size.
    """
    try:
        size = path.stat().st_size
        with open_plain(path) as file:
            start = read_now(file, LENGTH)
            start += read_now(file, header_length(start) or 256)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error
    header = parse_header(start, path, size)
    if size != header.size:
        how = "cut short" if size < header.size else "longer than its header says"
        raise WeightsError(f"{path} is {how}: {size} bytes instead of {header.size}; download it again.")
    return header


def header_length(start: bytes) -> int:
    """Length of the header by the first bytes of a file; 0 where they make no sense."""
    length = struct.unpack("<Q", start[:LENGTH])[0] if len(start) >= LENGTH else 0
    return length if length <= LARGEST_HEADER else 0


def check_start(start: bytes, path: Path) -> None:
    """Refuse the first bytes of a file that are plainly something else than weights."""
    if not start:
        raise WeightsError(f"{path} is empty; download it again.")
    if start.lstrip()[:1] == b"<":
        raise WeightsError(f"{path} is a web page and not weights (a failed download); download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a git-lfs pointer and not the weights; fetch the file itself (git lfs pull).")


def check_start_of(path: Path) -> bytes:
    """The first bytes of a file, refused as `check_start` does.

    Raises:
        WeightsError: also where it cannot be read.
    """
    try:
        with open_plain(path) as file:
            start = read_now(file, 256)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}; download it again.") from error
    check_start(start, path)
    return start


def parse_header(start: bytes, path: Path, size: int) -> Header:
    """As `read_header`, from the first bytes of a file; whether `size` bytes are right is left to the caller."""
    check_start(start, path)
    length = header_length(start)
    if not length:
        raise WeightsError(f"{path} is not a safetensors file (its header makes no sense); download it again.")
    if len(start) < LENGTH + length:
        raise WeightsError(f"{path} is cut short: it ends inside its header, after {size} bytes; download it again.")
    try:
        header = parse_json(start[LENGTH : LENGTH + length])
        metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        tensors = [_tensor(name, entry, path, LENGTH + length) for name, entry in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} is not a safetensors file (its header makes no sense); download it again."
        ) from error
    tensors.sort(key=lambda tensor: (tensor.start, tensor.bytes))
    end = LENGTH + length
    for tensor in tensors:  # one behind the other, as the format has it: no numbers are read twice or hidden
        if tensor.start != end:
            raise WeightsError(f"{path} is not a safetensors file (its tensors overlap); download it again.")
        end += tensor.bytes
    return Header(metadata, tuple(tensors), end)


def _tensor(name: str, entry: dict[str, Any], path: Path, offset: int) -> TensorInfo:
    """Raises ValueError, KeyError or TypeError where an entry makes no sense."""
    kind, width = KINDS[str(entry["dtype"])]
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or len(shape) > MOST_SIDES:
        raise ValueError(name)
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in (*shape, start, end)):  # the product of longer ones lasts
        raise ValueError(name)
    if end - start != math.prod(shape) * width:
        raise ValueError(name)
    return TensorInfo(name, tuple(shape), kind, path, offset + start, end - start)
