"""Tensors from and to safetensors files, in memory whose place does not change what is computed.

Matrix libraries give other bits for the same numbers at another alignment, and files put tensors anywhere. So what is
read lies at a multiple of `ALIGNMENT` bytes: mapped from the file where the file has it so, as ours do, else copied
into memory of its own, which replaces the mapping and is no second copy. The library's own reader maps tensors
wherever they lie; its writers hide the disk's error inside one of their own, or hold all bytes a second time.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quant.errors import WeightsError
from quant.storage.files import disk_errors, replacing
from quant.storage.headers import KINDS, LENGTH, TensorInfo

ALIGNMENT = 64
"""Bytes: the widest vector registers and the cache lines; also where torch's own allocations begin."""
_NAMES = {getattr(torch, kind): name for name, (kind, _) in KINDS.items()}


def torch_type(info: TensorInfo) -> torch.dtype:
    """The type of a tensor that a header describes."""
    return getattr(torch, info.kind)


def kind_of(dtype: torch.dtype) -> str:
    """A type's name, as `TensorInfo.kind` has it."""
    return str(dtype).removeprefix("torch.")


def type_name(dtype: torch.dtype) -> str:
    """A type's name, as a file's header has it."""
    return _NAMES[dtype]


# --- reading ---------------------------------------------------------------------------------------------------------


def read(info: TensorInfo) -> Tensor:
    """A tensor in memory of its own; raises OSError."""
    tensor = _empty(info)
    if info.bytes:
        view = _bytes_of(tensor)
        with info.file.open("rb", buffering=0) as file:
            file.seek(info.start)
            while view:
                count = file.readinto(view)  # a raw read may give less than is asked, and at most 2 GB
                if not count:
                    raise OSError("the file ends too early")
                view = view[count:]
    return tensor


@dataclass(frozen=True)
class MappedFile:
    """A file that was mapped, and what the system knew of it then: its number, size in bytes and time of change."""

    path: Path
    number: tuple[int, int]
    bytes: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> MappedFile:
        """The file as it is now; raises OSError."""
        found = path.stat()
        return cls(path, (found.st_dev, found.st_ino), found.st_size, found.st_mtime_ns)

    def check(self) -> None:
        """Refuse a file that was written to since. One that was deleted or replaced by another stays mapped, whole.

        Raises:
            WeightsError: its numbers may be others than when it was checked, and what is behind its end is fatal.
        """
        try:
            now = MappedFile.of(self.path)
        except OSError:
            return
        if now != self and now.number == self.number:
            how = "cut short" if now.bytes < self.bytes else "changed"
            raise WeightsError(
                f"{self.path} was {how} while it was in use; download the model again, then go on from what is "
                "finished."
            )


def map_file(path: Path) -> torch.UntypedStorage:
    """The bytes of a file as memory: read when used, never written back. Raises OSError, RuntimeError."""
    return torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)  # type: ignore[return-value]


def mapped(storage: torch.UntypedStorage, info: TensorInfo) -> Tensor:
    """A tensor inside a mapped file; it must lie at a multiple of its type's width."""
    dtype = torch_type(info)
    if info.start + info.bytes > storage.nbytes():
        raise OSError("the file was cut")
    made = torch.empty(0, dtype=dtype)
    return made.set_(storage, info.start // dtype.itemsize, info.shape)  # type: ignore[call-overload]


def from_bytes(data: bytes, info: TensorInfo) -> Tensor:
    """A tensor of a file that is in memory, copied."""
    tensor = _empty(info)
    if info.bytes:
        _bytes_of(tensor)[:] = data[info.start : info.start + info.bytes]
    return tensor


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, byte by byte."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _empty(info: TensorInfo) -> Tensor:
    tensor = torch.empty(info.shape, dtype=torch_type(info), device="cpu")
    assert tensor.data_ptr() % ALIGNMENT == 0, "torch aligns its allocations"
    return tensor


# --- writing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Declared:
    """A tensor that is still to be made: its shape and type."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Length of its numbers."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that after any crash holds all of `tensors`, or what it held before.

    Args:
        tensors: of any device and layout; one at a time is copied where it is not contiguous and on the CPU.
        metadata: text entries of the header.

    Raises:
        DiskError: folder missing, no permission, disk full.
    """
    declared = {name: Declared(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    write_made(path, declared, tensors.__getitem__, metadata)


def write_made(
    path: Path,
    declared: Mapping[str, Declared],
    make: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """As `write_tensors`, of tensors that are made one after the other, each when its turn comes.

    Raises:
        DiskError: as `write_tensors`; and whatever `make` raises.
    """
    ordered = dict(sorted(declared.items(), key=lambda item: _order(item[0], item[1])))
    header = _header(ordered, metadata)
    with disk_errors(path), replacing(path) as temporary, temporary.open("xb") as file:
        file.write(header)
        for piece in _pieces(ordered, make):
            file.write(piece)


def _order(name: str, tensor: Declared) -> tuple[bool, int, str]:
    """The format knows no gaps: what fills whole multiples of the alignment goes first, then the widest types."""
    return tensor.bytes % ALIGNMENT != 0, -tensor.dtype.itemsize, name


def _header(tensors: Mapping[str, Declared], metadata: Mapping[str, str] | None) -> bytes:
    """Length and JSON, padded with spaces, so that the numbers begin aligned."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.bytes
        entries[name] = {"dtype": type_name(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(LENGTH + len(header)) % ALIGNMENT)
    return struct.pack("<Q", len(header)) + header


def _pieces(tensors: Mapping[str, Declared], make: Callable[[str], Tensor]) -> Iterator[memoryview]:
    for name, declared in tensors.items():
        tensor = make(name)
        assert (tuple(tensor.shape), tensor.dtype) == (declared.shape, declared.dtype), name
        yield _bytes_of(tensor.detach().cpu().contiguous())
