"""A folder of safetensors as one table of tensors: what is there, in which file, and whether it is what was wanted.

A folder may hold a single file, shards with an index, shards without one, or zstd-compressed shards; this module finds
out which. Headers are read and checked by ourselves before a tensor is touched, because the common accidents (a cut
download, an HTML error page, a git-lfs pointer) deserve a sentence of their own. Tensors are memory-mapped: reading one
costs nothing until its values are used. Pickled weights are never opened here.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_bytes

from magi_lite.errors import CheckpointError
from magi_lite.weights.unpack import unpack

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
"""What a tensor that is not quantized may be stored as."""
_LARGEST_HEADER = 100_000_000
_PREFERRED = ("model", "diffusion_pytorch_model")
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors$")


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path


@dataclass(frozen=True)
class Expected:
    """What a model wants of a tensor; several dtypes where the file may choose."""

    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...] = FLOATS


class Checkpoint:
    """The tensors of one set of weights.

    Attributes:
        place: the folder or file it was opened from.
        tensors: name -> shape, dtype and file of every tensor.
        metadata: the text entries of the headers, merged.
    """

    def __init__(self, place: Path, tensors: dict[str, TensorInfo], metadata: dict[str, str]) -> None:
        self.place = place
        self.tensors = tensors
        self.metadata = metadata
        self._memory: dict[Path, dict[str, torch.Tensor]] = {}
        self._open: dict[Path, safe_open] = {}

    @classmethod
    def open(cls, place: Path) -> Checkpoint:
        """Find and check the safetensors of a folder, or of one file.

        Raises:
            CheckpointError: nothing there, a shard missing, or a file that is damaged or no safetensors; the message
                names the file.
        """
        place = Path(place)
        index, files = find_files(place)
        checkpoint = cls(place, {}, {})
        for file in files:
            checkpoint._add(file, None if index is None else {n for n, shard in index.items() if shard == file.name})
        if index is not None:
            absent = [name for name in index if name not in checkpoint.tensors]
            if absent:
                raise CheckpointError(
                    f"Tensor {absent[0]} is not in {place / index[absent[0]]} although the index of {place} says so; "
                    "download that file again."
                )
        return checkpoint

    def _add(self, file: Path, listed: set[str] | None) -> None:
        """Take in the header of a file; `listed` is what the index says it holds."""
        packed = file.with_name(file.name + ".zst")
        stored = packed if packed.is_file() else file
        if stored is packed:
            unpacked = unpack(stored)
            if isinstance(unpacked, bytes):
                metadata, tensors = parse_header(unpacked[: 8 + _LARGEST_HEADER], len(unpacked), stored)
                self._memory[stored] = _load_bytes(unpacked, stored)
            else:
                stored = unpacked
        if stored not in self._memory:
            metadata, tensors = read_header(stored)
        self.metadata |= metadata
        for name, info in tensors.items():
            if listed is not None and name not in listed:
                raise CheckpointError(
                    f"Tensor {name} {info.shape} in {stored} is not listed in the index of {self.place}; "
                    "the file belongs to another checkpoint."
                )
            if name in self.tensors:
                raise CheckpointError(
                    f"Tensor {name} is in both {self.tensors[name].file} and {stored}; "
                    "keep one set of weights in a folder."
                )
            self.tensors[name] = info

    def read(self, name: str) -> torch.Tensor:
        """One tensor on the CPU, memory-mapped and not to be written to."""
        file = self.tensors[name].file
        try:
            if file in self._memory:
                return self._memory[file][name]
            if file not in self._open:
                self._open[file] = safe_open(file, framework="pt")
            return self._open[file].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"Tensor {name} cannot be read from {file} ({error}); download the file again."
            ) from error

    def require(
        self,
        expected: Mapping[str, Expected],
        what: str = "this model",
        ignore: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """Refuse anything but the expected tensors.

        Args:
            expected: every tensor that must be there.
            what: the model, for the message.
            ignore: names of surplus tensors that do no harm.

        Raises:
            CheckpointError: a tensor is missing, unexpected, misshapen or of a wrong dtype; names it, both shapes and
                the file, and says how many more are wrong.
        """
        for name in expected:
            if name not in self.tensors:
                rest = _more(n for n in expected if n not in self.tensors)
                raise CheckpointError(
                    f"Tensor {name} {expected[name].shape} is missing from {self.place}{rest}; "
                    f"these are not the weights of {what}."
                )
        for name, info in self.tensors.items():
            if name not in expected and not ignore(name):
                rest = _more(n for n in self.tensors if n not in expected and not ignore(n))
                raise CheckpointError(
                    f"Tensor {name} {info.shape} in {info.file} is unexpected{rest}; "
                    f"these are not the weights of {what}."
                )
        for name, want in expected.items():
            info = self.tensors[name]
            if info.shape != tuple(want.shape):
                raise CheckpointError(
                    f"Tensor {name} in {info.file} has shape {info.shape} where {what} needs {tuple(want.shape)}; "
                    "weights and configuration belong to different models."
                )
            if info.dtype not in want.dtypes:
                allowed = " or ".join(_plain(dtype) for dtype in want.dtypes)
                raise CheckpointError(
                    f"Tensor {name} in {info.file} is {_plain(info.dtype)} where {what} needs {allowed}; "
                    "choose the model that these weights belong to."
                )


def find_files(place: Path) -> tuple[dict[str, str] | None, list[Path]]:
    """The weight map (tensor -> file name, None without an index) and the files that make one set of weights.

    A listed file may exist only with `.zst` behind its name.
    """
    if place.is_file():
        return None, [place]
    if not place.is_dir():
        raise CheckpointError(f"There is no folder {place} with weights; check the name or download the model.")
    index, files = _called_for(place)
    missing = [file for file in files if not _is_there(file)]
    if missing:
        rest = _more(file.name for file in missing)
        raise CheckpointError(
            f"The shard {missing[0].name} that belongs to the weights in {place} is missing{rest}; "
            "download the model again."
        )
    return index, files


def tensor_names(place: Path) -> frozenset[str]:
    """Names of all tensors, from the index or the headers; compressed files without an index are not opened for it.

    Raises:
        CheckpointError: as `Checkpoint.open`.
    """
    index, files = find_files(place)
    if index is not None:
        return frozenset(index)
    return frozenset(name for file in files if file.is_file() for name in read_header(file)[1])


def missing_files(place: Path) -> list[Path]:
    """Files that the index or the shards' names in a folder call for and that are not there.

    Raises:
        CheckpointError: there is nothing that calls for anything, or the index cannot be read.
    """
    return [file for file in _called_for(place)[1] if not _is_there(file)]


def _called_for(place: Path) -> tuple[dict[str, str] | None, list[Path]]:
    """What `find_files` returns, whether the files are there or not."""
    indexes = sorted(place.glob("*.safetensors.index.json"), key=_preference)
    if indexes:
        weight_map = _read_index(indexes[0])
        return weight_map, [place / name for name in sorted(set(weight_map.values()))]
    names = sorted({path.name.removesuffix(".zst") for path in place.iterdir() if _is_weights(path.name)})
    if not names:
        pickles = sorted(path.name for path in place.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        hint = f" (the pickled {pickles[0]} is not executed)" if pickles else ""
        raise CheckpointError(
            f"Found no weights in {place}{hint}: looked for *.safetensors, shards with *.safetensors.index.json and "
            "*.safetensors.zst; download the model again."
        )
    return None, [place / name for name in _one_set(place, names)]


def _is_there(file: Path) -> bool:
    return file.is_file() or file.with_name(file.name + ".zst").is_file()


def read_header(path: Path) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Metadata and tensors of a safetensors file, with every accident named.

    Raises:
        CheckpointError: not a safetensors file, cut short, or its header contradicts its size.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            start += file.read(length if length <= _LARGEST_HEADER else 256)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    return parse_header(start, size, path)


def parse_header(start: bytes, size: int, path: Path) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """As `read_header`, from the first bytes of a file that is `size` bytes long."""
    if size == 0:
        raise CheckpointError(f"{path} is empty; download it again.")
    if start.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} is a web page and not safetensors (a failed download); download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-lfs pointer and not the weights; fetch the file itself (git lfs pull).")
    length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else _LARGEST_HEADER + 1
    if length > _LARGEST_HEADER:
        raise CheckpointError(f"{path} is not a safetensors file (its header makes no sense); download it again.")
    if size < 8 + length:
        raise CheckpointError(f"{path} is cut short: it ends inside its header, after {size} bytes; download it again.")
    try:
        header = json.loads(start[8 : 8 + length])
        metadata = {str(k): str(v) for k, v in header.pop("__metadata__", {}).items()}
        tensors = {name: TensorInfo(tuple(e["shape"]), DTYPES[e["dtype"]], path) for name, e in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file (its header makes no sense); download it again."
        ) from error
    if size != 8 + length + end:
        how = "cut short" if size < 8 + length + end else "longer than its header says"
        raise CheckpointError(f"{path} is {how}: {size} bytes instead of {8 + length + end}; download it again.")
    return metadata, tensors


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"The index {path} cannot be read (no JSON with a weight_map); download it again."
        ) from error
    outside = [file for file in names.values() if Path(file).name != file]
    if outside:
        raise CheckpointError(
            f"The index {path} names {outside[0]}, which is not a file of its own folder; it is not trusted."
        )
    return {name: file.removesuffix(".zst") for name, file in names.items()}


def _one_set(folder: Path, names: list[str]) -> list[str]:
    """Of all weight files of a folder without an index, those that belong together."""
    if len(names) == 1 and not _SHARD.match(names[0]):
        return names
    preferred = [f"{stem}.safetensors" for stem in _PREFERRED if f"{stem}.safetensors" in names]
    if preferred:
        return preferred[:1]
    series = {(m["stem"], int(m["count"]), len(m["count"])) for m in map(_SHARD.match, names) if m}
    if len(series) == 1:
        stem, count, width = series.pop()
        return [f"{stem}-{number:0{width}}-of-{count:0{width}}.safetensors" for number in range(1, count + 1)]
    raise CheckpointError(
        f"{folder} holds several sets of weights ({', '.join(names[:4])}) and no index; keep one set in a folder."
    )


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".safetensors.zst"))


def _preference(path: Path) -> tuple[int, str]:
    stem = path.name.split(".")[0]
    return (_PREFERRED.index(stem) if stem in _PREFERRED else len(_PREFERRED), path.name)


def _load_bytes(data: bytes, path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_bytes(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); download it again.") from error


def _more(names: Iterable[str]) -> str:
    rest = sum(1 for _ in names) - 1
    return f" (and {rest} more)" if rest else ""


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
