"""The special-token file, looked at before anything of it is read: names, shapes and types by its headers. No torch.

An .npz says in each member's header how much memory reading it takes, which may be any number.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

from magi_lite.errors import CheckpointError
from magi_lite.weights.layout import SPECIAL_TOKENS_SHA256
from quant.errors import WeightsError
from quant.storage.files import open_plain, sha256
from quant.storage.headers import read_header

PARTS = {"caption_token": 1, "logo_token": 1, "other_tokens": 17}
"""The tensors of the file, and the rows that each has at least."""
PUBLISHED_CHANNELS = 4096
_LARGEST = 64 << 20
"""Bytes of a tensor; the published ones have 3 MB together."""
_KINDS = ("float16", "bfloat16", "float32", "float64")
_DAMAGE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError, RuntimeError,
           SyntaxError, MemoryError, OverflowError, zipfile.BadZipFile, zlib.error, WeightsError)  # fmt: skip
"""What archives and headers raise that are cut or changed."""


def check_token_file(path: Path, channels: int | None = None) -> None:
    """Refuse a special-token file that is damaged, lacks a tensor, or is not the published one although of its width.

    Args:
        channels: width of the model's captions; None: any.

    Raises:
        CheckpointError: one sentence.
    """
    try:
        found = _npz_tensors(path) if path.suffix == ".npz" else _tensors(path)
    except _DAMAGE as error:
        raise CheckpointError(f"The special-token file {path} cannot be read; download it again.") from error
    missing = [name for name in PARTS if name not in found]
    if missing:
        lacking = ", ".join(missing)
        raise CheckpointError(f"The special-token file {path} lacks {lacking}; it is not special_tokens.npz.")
    width = found["other_tokens"][1][-1:]
    for name, rows in PARTS.items():
        kind, shape = found[name]
        if kind not in _KINDS:
            kinds = " or ".join(_KINDS)
            raise CheckpointError(f"{name} in {path} is {kind} where {kinds} is needed; download it again.")
        if len(shape) != 2 or shape[0] < rows or shape[1:] != width or not width[0]:
            needed = f"(at least {rows}, {width[0] if width else channels or 'width'})"
            raise CheckpointError(f"{name} in {path} has shape {shape} where {needed} is needed; download it again.")
    if path.suffix == ".npz" and width == (PUBLISHED_CHANNELS,) and sha256(path) != SPECIAL_TOKENS_SHA256:
        raise CheckpointError(
            f"{path} is not the published special_tokens.npz (its sha256 differs); download it again."
        )
    if channels is not None and width != (channels,):
        raise CheckpointError(
            f"The special tokens in {path} have {width[0]} channels where the model needs {channels}; put the file of "
            "this model there."
        )


Found = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape by name."""


def _tensors(path: Path) -> Found:
    tensors = read_header(path).tensors
    if any(tensor.bytes > _LARGEST for tensor in tensors):
        raise ValueError("a tensor is too large")
    return {tensor.name: (tensor.kind, tensor.shape) for tensor in tensors}


def _npz_tensors(path: Path) -> Found:
    from numpy.lib import format as headers

    found: Found = {}
    with open_plain(path) as file, zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
        for name in PARTS:
            if f"{name}.npy" not in names:
                continue
            with archive.open(f"{name}.npy") as member:
                read: Any = {(1, 0): headers.read_array_header_1_0, (2, 0): headers.read_array_header_2_0}
                shape, _, kind = read[headers.read_magic(member)](member)
                size = kind.itemsize
                for side in shape:
                    size *= side
                if kind.hasobject or not 0 <= size <= _LARGEST:
                    raise ValueError("an array that is none of ours")
                if archive.getinfo(f"{name}.npy").file_size - member.tell() != size:
                    raise ValueError("an array that is cut")
            found[name] = (kind.name, tuple(shape))
    return found
