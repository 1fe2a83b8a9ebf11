"""What a conversion starts from: the weight files of a checkpoint, and which of their tensors become quantized."""

from __future__ import annotations

from pathlib import Path

from quant.errors import QuantError
from quant.schemes import detect
from quant.select import Selection
from quant.storage.headers import FLOATS, TensorInfo
from quant.storage.shards import Checkpoint


def open_source(source: Path, unpack_to: Path) -> Checkpoint:
    """The checkpoint to convert, whole: compressed shards are unpacked into `unpack_to`.

    Raises:
        QuantError: there are no weights, one is damaged, or the checkpoint's index names what is not there.
    """
    if not source.exists():
        raise QuantError(f"{source} does not exist; give a .safetensors file or a folder that has some.")
    checkpoint = Checkpoint.open(source, unpack_to)
    checkpoint.unpack()
    return checkpoint


def in_order(checkpoint: Checkpoint) -> list[TensorInfo]:
    """Its tensors in the order of the files and of the numbers in them: so they are read fastest."""
    return sorted(checkpoint.tensors.values(), key=lambda tensor: (tensor.file.name, tensor.start, tensor.name))


def choose_layers(tensors: list[TensorInfo], selection: Selection) -> frozenset[str]:
    """Names of the layers to quantize: matrices called `weight` that the selection takes."""
    if detect(tensor.name for tensor in tensors) is not None:
        raise QuantError("The checkpoint is quantized already; start from the bf16 or float32 one.")
    matrices = [
        tensor.name.removesuffix(".weight")
        for tensor in tensors
        if tensor.name.endswith(".weight") and len(tensor.shape) == 2 and tensor.kind in FLOATS
    ]
    chosen = selection.choose(matrices)
    if not chosen:
        raise QuantError(f"None of the {len(matrices)} matrices is selected; loosen --include and --exclude.")
    return chosen


def group_tensors(tensors: list[TensorInfo], shard_bytes: int) -> list[list[TensorInfo]]:
    """Tensors in their order, in groups of at most `shard_bytes` of source (a larger tensor goes alone)."""
    groups: list[list[TensorInfo]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.bytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.bytes
    return groups
