"""What a conversion starts from: the weight files of a checkpoint, and which of their tensors become quantized."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from quant.convert import detect
from quant.errors import QuantError
from quant.packed import SUFFIX, unpacked
from quant.select import Selection

HALF_OR_SINGLE = {"F16": 2, "BF16": 2, "F32": 4}


@dataclass(frozen=True)
class SourceTensor:
    """Where a tensor lies and how large it is."""

    name: str
    file: Path
    shape: tuple[int, ...]
    kind: str
    bytes: int

    def read(self) -> Tensor:
        """Its numbers.

        Raises:
            QuantError: the file was changed or taken away since it was listed.
        """
        try:
            with safe_open(self.file, framework="pt") as opened:
                return opened.get_tensor(self.name)
        except (SafetensorError, OSError) as error:
            raise QuantError(f"{self.file} cannot be read any more ({error}); leave IN alone and run again.") from error


def read_source(source: Path, unpack_to: Path) -> tuple[list[Path], list[SourceTensor]]:
    """The weight files of a checkpoint and every tensor in them, in the files' order; reads headers only.

    Compressed shards (.safetensors.zst) without an uncompressed one beside them are unpacked into `unpack_to`.

    Raises:
        QuantError: there are none, one is damaged, or the checkpoint's index names what is not there.
    """
    if not source.exists():
        raise QuantError(f"{source} does not exist; give a .safetensors file or a folder that has some.")
    found = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
    if source.is_dir():
        names = {file.name for file in found}
        packed = source.glob("*.safetensors" + SUFFIX)
        found += [file for file in packed if file.name.removesuffix(SUFFIX) not in names]
    if not found:
        raise QuantError(f"{source} holds no .safetensors; give a file or a folder that has some.")
    indexes = [_read_index(file) for file in sorted(source.glob("*.safetensors.index.json"))]
    for index in indexes:
        _check_complete(source, set(index.values()), {file.name.removesuffix(SUFFIX) for file in found})
    files = [unpacked(file, unpack_to) if file.suffix == SUFFIX else file for file in found]
    files.sort(key=lambda file: file.name)
    tensors = [tensor for file in files for tensor in _tensors_of(file)]
    names = {tensor.name for tensor in tensors}
    if len(names) != len(tensors):
        raise QuantError(f"{source} holds a tensor twice; keep only the shards of one model in it.")
    for index in indexes:
        _check_complete(source, index, names)
    return files, tensors


def _tensors_of(file: Path) -> list[SourceTensor]:
    tensors = []
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                part = opened.get_slice(name)
                shape, kind = tuple(part.get_shape()), part.get_dtype()
                count = 1
                for size in shape:
                    count *= size
                tensors.append(SourceTensor(name, file, shape, kind, count * HALF_OR_SINGLE.get(kind, 8)))
    except (SafetensorError, OSError) as error:
        raise QuantError(f"{file} is not a complete safetensors file ({error}); download it again.") from error
    return tensors


def _read_index(file: Path) -> dict[str, str]:
    """File by tensor, as a sharded checkpoint's index tells."""
    try:
        index = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(shard) for name, shard in index.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise QuantError(f"{file} is damaged ({type(error).__name__}: {error}); download it again.") from error


def _check_complete(source: Path, wanted: Iterable[str], there: set[str]) -> None:
    missing = sorted(set(wanted) - there)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise QuantError(f"{source} lacks {missing[0]}{more}, which its index names; finish the download.")


def choose_layers(tensors: list[SourceTensor], selection: Selection) -> frozenset[str]:
    """Names of the layers to quantize: matrices called `weight` that the selection takes."""
    if detect(tensor.name for tensor in tensors) is not None:
        raise QuantError("The checkpoint is quantized already; start from the bf16 or float32 one.")
    matrices = [
        tensor.name.removesuffix(".weight")
        for tensor in tensors
        if tensor.name.endswith(".weight") and len(tensor.shape) == 2 and tensor.kind in HALF_OR_SINGLE
    ]
    chosen = selection.choose(matrices)
    if not chosen:
        raise QuantError(f"None of the {len(matrices)} matrices is selected; loosen --include and --exclude.")
    return chosen


def group_tensors(tensors: list[SourceTensor], shard_bytes: int) -> list[list[SourceTensor]]:
    """Tensors in their order, in groups of at most `shard_bytes` of source (a larger tensor goes alone)."""
    groups: list[list[SourceTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.bytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.bytes
    return groups
