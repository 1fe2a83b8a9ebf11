"""What a converted folder says about itself, and loading it.

`quantization.json` is written last, into a folder that gets its final name only when complete: no manifest, no load.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quant.errors import QuantError, brief
from quant.schemes import Scheme, scheme_from_dict, scheme_to_dict
from quant.storage.files import parse_json, read_small
from quant.storage.shards import Checkpoint, is_file_name

if TYPE_CHECKING:
    import torch
    from torch import nn

    from quant.convert import Report

MANIFEST = "quantization.json"
FORMAT = 1


@dataclass(frozen=True)
class ShardRecord:
    """One weights file of a converted folder."""

    file: str
    bytes: int
    sha256: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """The scheme of a converted folder, the layers it holds quantized, its files, and what it was made from."""

    scheme: Scheme
    layers: tuple[str, ...]
    shards: tuple[ShardRecord, ...]
    source: str
    """SHA-256 over the headers, sizes and times of the source files."""
    worst_error: float
    """Largest |dequantized - weight| / |weight| of a layer."""

    def to_json(self) -> str:
        """The text of `quantization.json`."""
        data = {**asdict(self), "scheme": scheme_to_dict(self.scheme), "format": FORMAT}
        return json.dumps(data, indent=1)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a converted folder; None: the folder was not made by this package.

    Raises:
        QuantError: the manifest is damaged or of a later format, or a file that it names is missing or cut.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    try:
        data: dict[str, Any] = parse_json(read_small(path))
        if data["format"] != FORMAT:
            found = str(data["format"])[:20]
            raise QuantError(f"{path} has format {found}, this version reads {FORMAT}; convert again.")
        shards = tuple(ShardRecord(**{**shard, "tensors": tuple(shard["tensors"])}) for shard in data["shards"])
        scheme, layers = scheme_from_dict(data["scheme"]), tuple(data["layers"])
        manifest = Manifest(scheme, layers, shards, data["source"], data["worst_error"])
        _check_kinds(manifest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QuantError(f"{path} is damaged ({brief(error)}); convert again.") from error
    for shard in manifest.shards:
        if not is_file_name(shard.file):
            raise QuantError(f"{path} names {shard.file[:80]}, which is no file of its folder; convert again.")
        file = path.parent / shard.file
        if not file.is_file() or file.stat().st_size != shard.bytes:
            raise QuantError(f"{file} is missing or not complete; convert again.")
    return manifest


def _check_kinds(manifest: Manifest) -> None:
    """Raises ValueError where something is not of the kind that its field says."""
    shards = manifest.shards
    texts = [manifest.source, *manifest.layers, *(text for s in shards for text in (s.file, s.sha256, *s.tensors))]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a text is none")
    if not all(type(shard.bytes) is int for shard in shards) or not isinstance(manifest.worst_error, int | float):
        raise ValueError("a number is none")


def load_converted_(module: nn.Module, folder: Path, device: torch.device | str = "cpu") -> Report:
    """Convert `module` (best built on the meta device) as a converted folder says and load it, strictly, by shards.

    What files never hold (buffers that are not persistent) keeps its numbers and moves to `device`.

    Raises:
        QuantError: the folder holds no complete conversion, or one of another model (the module is unchanged then
            unless only tensors are missing or differ).
    """
    from torch import nn

    from quant.convert import assign_, check_, convert_

    manifest = read_manifest(folder)
    if manifest is None:
        raise QuantError(f"{folder} holds no complete conversion ({MANIFEST} is absent); run python -m quant.")
    there = {name for name, part in module.named_modules(remove_duplicate=False) if isinstance(part, nn.Linear)}
    missing = set(manifest.layers) - there
    if missing:
        raise QuantError(f"The model has no linear {min(missing)[:80]}; {folder} is of another model.")
    empty_(module, device)
    report = convert_(module, manifest.scheme, frozenset(manifest.layers).__contains__)
    for shard in manifest.shards:
        stored = Checkpoint.open(Path(folder) / shard.file)
        assign_(module, {name: stored.read(name).to(device) for name in stored.tensors})
    check_(module)
    return report


def empty_(module: nn.Module, device: torch.device | str) -> None:
    """Put on the meta device what a state dict holds, and on `device` what it does not, unless that is empty too."""
    from torch import Tensor

    stored = {id(tensor) for tensor in module.state_dict(keep_vars=True).values() if isinstance(tensor, Tensor)}
    for owner in module.modules():
        for name, tensor in owner._buffers.items():
            if tensor is not None and id(tensor) not in stored and not tensor.is_meta:
                owner._buffers[name] = tensor.to(device)
    module._apply(lambda tensor: tensor.to("meta") if id(tensor) in stored else tensor)
