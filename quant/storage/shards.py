"""A folder of safetensors as one table of tensors: what is there, in which file, and whether it is what was wanted.

A folder may hold a single file, shards with an index, shards without one, or zstd-compressed shards; this module finds
out which. Pickled weights are never opened here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quant.errors import Cancelled, DiskError, WeightsError
from quant.storage.files import is_denied, parse_json, read_small
from quant.storage.headers import FLOATS, Header, TensorInfo, read_header
from quant.storage.packing import SUFFIX, is_unpacked, packed_header, pieces, unpack

if TYPE_CHECKING:
    import torch

    from quant.storage.tensors import MappedFile

_PREFERRED = ("model", "diffusion_pytorch_model")
_PATTERNS = ("*.safetensors", "*.safetensors.zst", "*.safetensors.index.json")
NO_WEIGHTS = ("special_tokens.safetensors",)
"""Safetensors that may lie beside weights and are none."""
LARGEST_INDEX = 16 << 20
"""Bytes: a hundred thousand tensors."""
MOST_FILES = 10_000
"""Of one set of weights."""
LONGEST_NAME = 255 - len(SUFFIX)
"""Bytes of a file's name that nearly all systems allow, compressed or not."""
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors$")


@dataclass(frozen=True)
class Expected:
    """What a model wants of a tensor; several kinds (torch's names of types) where the file may choose."""

    shape: tuple[int, ...]
    kinds: tuple[str, ...] = FLOATS


@dataclass(frozen=True)
class Index:
    """The index of a sharded checkpoint: the file of each tensor, and the bytes of all (None: not given)."""

    weight_map: dict[str, str]
    total_size: int | None


class Checkpoint:
    """The tensors of one set of weights.

    Attributes:
        place: the folder or file it was opened from.
        tensors: name -> shape, type and place of every tensor.
        metadata: the text entries of the headers, merged.
        mapped: the files of which something is mapped.
    """

    def __init__(self, place: Path, unpack_to: Path | None = None) -> None:
        self.place, self._unpack_to = place, unpack_to
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        self._packed: dict[Path, tuple[Path, int]] = {}
        """Unpacked file -> the compressed one that it is to be made of, and its size."""
        self._memory: dict[Path, bytes] = {}
        self._maps: dict[Path, torch.UntypedStorage] = {}
        self.mapped: dict[Path, MappedFile] = {}

    @classmethod
    def open(cls, place: Path, unpack_to: Path | None = None) -> Checkpoint:
        """Find and check the safetensors of a folder, or of one file; headers only.

        Args:
            unpack_to: folder for the contents of compressed shards; None: beside them.

        Raises:
            WeightsError: nothing there, a shard missing, or a file that is damaged or no safetensors; the message
                names the file.
        """
        place = Path(place)
        index, files = find_files(place)
        checkpoint = cls(place, unpack_to)
        listed: dict[str, set[str]] = {file.name: set() for file in files}
        for name, shard in () if index is None else index.weight_map.items():
            listed[shard].add(name)
        for file in files:
            checkpoint._add(file, index, None if index is None else listed[file.name])
        if index is not None:
            absent = [name for name in index.weight_map if name not in checkpoint.tensors]
            if absent:
                raise WeightsError(
                    f"Tensor {absent[0]} is not in {place / index.weight_map[absent[0]]} although the index of {place} "
                    "says so; download that file again."
                )
        return checkpoint

    @property
    def files(self) -> list[Path]:
        """The safetensors files, in the order of their names; of a compressed shard the one that unpacking makes."""
        return sorted({tensor.file for tensor in self.tensors.values()})

    def _add(self, file: Path, index: Index | None, listed: set[str] | None) -> None:
        """Take in the header of a file; `listed` is what the index says it holds."""
        header = self._header(file)
        if file in self._packed or index is not None:
            self._check_size(file, header, index)
        self.metadata |= header.metadata
        for tensor in header.tensors:
            if listed is not None and tensor.name not in listed:
                raise WeightsError(
                    f"Tensor {tensor.name} {tensor.shape} in {file} is not listed in the index of {self.place}; "
                    "the file belongs to another checkpoint."
                )
            if tensor.name in self.tensors:
                raise WeightsError(
                    f"Tensor {tensor.name} is in both {self.tensors[tensor.name].file} and {tensor.file}; "
                    "keep one set of weights in a folder."
                )
            self.tensors[tensor.name] = tensor

    def _header(self, file: Path) -> Header:
        packed = file if file.suffix == SUFFIX else file.with_name(file.name + SUFFIX)
        if not packed.is_file():
            return read_header(file)
        target = (self._unpack_to or packed.parent) / packed.name.removesuffix(SUFFIX)
        if is_unpacked(packed, target):
            return read_header(target)
        header = packed_header(packed, target)
        self._packed[target] = (packed, header.size)
        return header

    @staticmethod
    def _check_size(file: Path, header: Header, index: Index | None) -> None:
        total = None if index is None else index.total_size
        held = sum(tensor.bytes for tensor in header.tensors)
        if total is not None and held > total:
            raise WeightsError(
                f"{file} claims to hold {held} bytes of tensors and the index says {total} for all of them; "
                "download both again."
            )

    def unpack(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Unpack all compressed shards now, where their folder can be written.

        Raises:
            WeightsError: damaged. DiskError: full. Cancelled: `cancelled()` in between.
        """
        for file in list(self._packed):
            self._unpack(file, cancelled)

    def _unpack(self, file: Path, cancelled: Callable[[], bool] = lambda: False) -> None:
        packed, size = self._packed[file]
        try:
            unpack(packed, file, size, cancelled)
        except DiskError as error:
            if not is_denied(error):
                raise
            contents = bytearray()  # a folder that cannot be written: in memory
            for piece in pieces(packed, size):
                if cancelled():
                    raise Cancelled(f"Unpacking {packed.name} was cancelled.") from None
                contents += piece
            self._memory[file] = bytes(contents)
        else:
            if [t.start for t in read_header(file).tensors] != [
                t.start for t in sorted(self.tensors.values(), key=lambda t: t.start) if t.file == file
            ]:
                raise WeightsError(f"{packed} was changed while it was read; run again.") from None
        del self._packed[file]

    def read(self, name: str, *, own: bool = False) -> torch.Tensor:
        """One tensor on the CPU, its memory aligned to `tensors.ALIGNMENT` bytes.

        Args:
            own: in memory of its own, as a tensor should be that is dropped once something is made of it; else it is
                mapped from the file where it is aligned there, and not to be written to.

        Raises:
            WeightsError: the file was changed or removed.
        """
        from quant.storage import tensors

        info = self.tensors[name]
        if info.file in self._packed:
            self._unpack(info.file)
        try:
            if info.file in self._memory:
                return tensors.from_bytes(self._memory[info.file], info)
            if own or info.start % tensors.ALIGNMENT or not info.bytes:
                return tensors.read(info)
            if info.file not in self._maps:
                self.mapped[info.file] = tensors.MappedFile.of(info.file)
                self._maps[info.file] = tensors.map_file(info.file)
            return tensors.mapped(self._maps[info.file], info)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"Tensor {name} cannot be read from {info.file} ({error}); download the file again."
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
            WeightsError: a tensor is missing, unexpected, misshapen or of a wrong type; names it, both shapes and
                the file, and says how many more are wrong.
        """
        for name in expected:
            if name not in self.tensors:
                rest = _more(n for n in expected if n not in self.tensors)
                raise WeightsError(
                    f"Tensor {name} {expected[name].shape} is missing from {self.place}{rest}; "
                    f"these are not the weights of {what}."
                )
        for name, info in self.tensors.items():
            if name not in expected and not ignore(name):
                rest = _more(n for n in self.tensors if n not in expected and not ignore(n))
                raise WeightsError(
                    f"Tensor {name} {info.shape} in {info.file} is unexpected{rest}; "
                    f"these are not the weights of {what}."
                )
        for name, want in expected.items():
            info = self.tensors[name]
            if info.shape != tuple(want.shape):
                raise WeightsError(
                    f"Tensor {name} in {info.file} has shape {info.shape} where {what} needs {tuple(want.shape)}; "
                    "weights and configuration belong to different models."
                )
            if info.kind not in want.kinds:
                raise WeightsError(
                    f"Tensor {name} in {info.file} is {info.kind} where {what} needs {' or '.join(want.kinds)}; "
                    "choose the model that these weights belong to."
                )


def find_files(place: Path) -> tuple[Index | None, list[Path]]:
    """The index (None: there is none) and the files that make one set of weights.

    A listed file may exist only with `.zst` behind its name.

    Raises:
        WeightsError: nothing there, or a file is missing.
    """
    if place.is_file():
        return None, [place]
    if not place.is_dir():
        raise WeightsError(f"There is no folder {place} with weights; check the name or download the model.")
    index, files = _called_for(place)
    missing = [file for file in files if not is_there(file)]
    if missing:
        rest = _more(file.name for file in missing)
        raise WeightsError(
            f"The shard {missing[0].name} that belongs to the weights in {place} is missing{rest}; "
            "download the model again."
        )
    return index, files


def has_weights(folder: Path) -> bool:
    """Whether a folder holds safetensors, compressed ones or an index."""
    found = (path for pattern in _PATTERNS for path in folder.glob(pattern))
    return any(path.name not in NO_WEIGHTS and not path.name.startswith(".") for path in found)


def missing_files(place: Path) -> list[Path]:
    """Files that the index or the shards' names in a folder call for and that are not there.

    Raises:
        WeightsError: there is nothing that calls for anything, or the index cannot be read.
    """
    return [file for file in _called_for(place)[1] if not is_there(file)]


def is_there(file: Path) -> bool:
    """Whether a file, or its compressed form, exists."""
    return file.is_file() or file.with_name(file.name + SUFFIX).is_file()


def is_file_name(text: str) -> bool:
    """Whether a text can name a file of a folder, and nothing elsewhere."""
    plain = Path(text).name == text and text not in ("", "..") and not any(sign in text for sign in "\\\0")
    return plain and len(text.encode("utf-8", "surrogatepass")) <= LONGEST_NAME


def read_index(path: Path) -> Index:
    """The index of a sharded checkpoint; file names without `.zst`.

    Raises:
        WeightsError: it cannot be read, or names files of other folders.
    """
    try:
        content = parse_json(read_small(path, LARGEST_INDEX))
        names = {str(name): str(file) for name, file in content["weight_map"].items()}
        total = content.get("metadata", {}).get("total_size")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"The index {path} cannot be read (no JSON with a weight_map); download it again."
        ) from error
    outside = [file for file in names.values() if not is_file_name(file)]
    if outside:
        raise WeightsError(
            f"The index {path} names {outside[0][:80]}, which is not a file of its own folder; it is not trusted."
        )
    weight_map = {name: file.removesuffix(SUFFIX) for name, file in names.items()}
    if (count := len(set(weight_map.values()))) > MOST_FILES:
        raise WeightsError(f"The index {path} names {count} files; it is not trusted.")
    return Index(weight_map, total if type(total) is int and total > 0 else None)


def _called_for(place: Path) -> tuple[Index | None, list[Path]]:
    """What `find_files` returns, whether the files are there or not."""
    indexes = sorted(place.glob("*.safetensors.index.json"), key=_preference)
    if indexes:
        index = read_index(indexes[0])
        return index, [place / name for name in sorted(set(index.weight_map.values()))]
    names = sorted({path.name.removesuffix(SUFFIX) for path in place.iterdir() if _is_weights(path)})
    if not names:
        pickles = sorted(path.name for path in place.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        hint = f" (the pickled {pickles[0]} is not executed)" if pickles else ""
        raise WeightsError(
            f"Found no weights in {place}{hint}: looked for *.safetensors, shards with *.safetensors.index.json and "
            "*.safetensors.zst; download the model again."
        )
    return None, [place / name for name in _one_set(place, names)]


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
        if count <= MOST_FILES:
            return [f"{stem}-{number:0{width}}-of-{count:0{width}}.safetensors" for number in range(1, count + 1)]
    raise WeightsError(
        f"{folder} holds several sets of weights ({', '.join(names[:4])}) and no index; keep one set in a folder."
    )


def _is_weights(path: Path) -> bool:
    weights = path.name.endswith((".safetensors", ".safetensors" + SUFFIX))
    return weights and not path.name.startswith(".") and path.name not in NO_WEIGHTS


def _preference(path: Path) -> tuple[int, str]:
    stem = path.name.split(".")[0]
    return (_PREFERRED.index(stem) if stem in _PREFERRED else len(_PREFERRED), path.name)


def _more(names: Iterable[str]) -> str:
    rest = sum(1 for _ in names) - 1
    return f" (and {rest} more)" if rest else ""
