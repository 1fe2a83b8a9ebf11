"""Convert a checkpoint on disk, shard by shard, so that a kill at any moment costs one shard and harms nothing.

All work is done in a folder beside OUT (`quant.workplace`), which becomes OUT by renaming when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from quant.calibrate import Recording, published_tensors
from quant.convert import dequantized_error, quantized_tensors
from quant.errors import QuantError, WeightsError
from quant.manifest import FORMAT, MANIFEST, Manifest, ShardRecord, read_manifest
from quant.schemes import Published, Scheme, scheme_to_dict
from quant.select import Selection
from quant.source import choose_layers, group_tensors, in_order, open_source
from quant.storage.files import parse_json, read_small, sha256, sync_file, sync_folder, write_atomic
from quant.storage.headers import TensorInfo, read_header
from quant.storage.shards import Checkpoint
from quant.storage.tensors import write_tensors
from quant.workplace import start, workplace

SHARD_BYTES = 2 << 30
"""Source bytes that go into one output shard: the peak of memory, about."""
WORST_ERROR = 0.5
"""A layer further than this from its source (relative, L2) was not quantized but destroyed."""
INDEX = "model.safetensors.index.json"
_SIDE_FILE_BYTES = 64 << 20
_LAYOUT = 2
"""How tensors are put into shards: an unfinished conversion of another layout starts over."""


def convert_folder(
    source: Path,
    target: Path,
    scheme: Scheme,
    selection: Selection | None = None,
    *,
    recording: Recording | None = None,
    shard_bytes: int = SHARD_BYTES,
    say: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Quantize the chosen linears of a safetensors checkpoint into a new folder; resumes what a kill interrupted.

    Args:
        source: a folder with *.safetensors or *.safetensors.zst, or one such file.
        target: a folder that does not exist yet (or holds this very conversion, finished: nothing is done then).
        selection: which layers; the defaults of `Selection` if None.
        recording: calibration, needed by and only by the published scheme.
        say: called with one line per shard.

    Raises:
        QuantError: nothing to convert, already quantized, damaged, `target` is taken or cannot be written, or another
            process is at this very conversion.
    """
    target = Path(os.path.realpath(target))  # which `resolve` does not bear where links lead in a circle
    if os.path.lexists(target) and _manifest(target) is None:
        raise QuantError(f"{target} exists and is not this conversion; remove it or choose another folder.")
    if isinstance(scheme, Published) != (recording is not None):
        raise QuantError(
            "The published scheme needs a recorded calibration (--calibration FILE), and no other scheme takes one."
        )
    with workplace(source, target) as partial:
        checkpoint = open_source(source, partial / "unpacked")
        tensors = in_order(checkpoint)
        layers = choose_layers(tensors, selection or Selection())
        job = _job(checkpoint.files, layers, scheme, shard_bytes, recording)
        finished = _manifest(target)
        if finished is None:
            start(partial, job | {"layout": _LAYOUT})
            groups = group_tensors(tensors, shard_bytes)
            task = _Task(checkpoint, scheme, layers, recording)
            finished = _convert(partial, groups, task, str(job["source"]), source, say)
            (partial / "model").rename(target)
            sync_folder(target.parent)
        elif finished.source != job["source"]:
            raise QuantError(f"{target} exists and is not this conversion; remove it or choose another folder.")
        else:
            _verify_finished(target, finished)
        shutil.rmtree(partial, ignore_errors=True)
    return finished


def _manifest(target: Path) -> Manifest | None:
    """That of a finished conversion; None: there is none.

    Raises:
        QuantError: its files are not all there.
    """
    try:
        return read_manifest(target)
    except QuantError as error:
        raise QuantError(f"{target} was damaged after its conversion; remove it and convert again.") from error


def _verify_finished(target: Path, manifest: Manifest) -> None:
    """Converting again reports success only if every byte is as it was written."""
    for shard in manifest.shards:
        if sha256(target / shard.file) != shard.sha256:
            raise QuantError(f"{target / shard.file} was changed after its conversion; remove {target} and try again.")


@dataclass(frozen=True)
class _Task:
    """What is done to every group of tensors."""

    checkpoint: Checkpoint
    scheme: Scheme
    layers: frozenset[str]
    recording: Recording | None


def _convert(
    partial: Path, groups: list[list[TensorInfo]], task: _Task, job: str, source: Path, say: Callable[[str], None]
) -> Manifest:
    """Fill `partial`/model with all shards, the index and the manifest."""
    model, records, worst = partial / "model", [], 0.0
    for number, group in enumerate(groups, 1):
        shard, error, resumed = _shard(partial, number, len(groups), group, task)
        records.append(shard)
        worst = max(worst, error)
        say(f"{shard.file}: {len(shard.tensors)} tensors, {shard.bytes / 2**20:.0f} MiB{', kept' * resumed}")
    _copy_side_files(source, model)
    _write_index(model, records)
    manifest = Manifest(task.scheme, tuple(sorted(task.layers)), tuple(records), job, worst)
    write_atomic(model / MANIFEST, manifest.to_json().encode())
    sync_folder(model)
    return manifest


# --- one shard -------------------------------------------------------------------------------------------------------


def _shard(
    partial: Path, number: int, count: int, group: list[TensorInfo], task: _Task
) -> tuple[ShardRecord, float, bool]:
    """Make and verify a shard, or keep the one that an earlier run finished."""
    name = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
    path, record = partial / "model" / name, partial / "records" / f"{name}.json"
    kept = _kept(path, record)
    if kept is not None:
        return *kept, True
    made, error = _quantize_group(group, task)
    unfinished = path.with_name(name + ".unfinished")
    write_tensors(unfinished, made, {"format": "pt"})
    sync_file(unfinished)
    _verify(unfinished, made)
    shard = ShardRecord(name, unfinished.stat().st_size, sha256(unfinished), tuple(sorted(made)))
    unfinished.replace(path)
    write_atomic(record, json.dumps({**asdict(shard), "error": error}).encode())
    return shard, error, False


def _kept(path: Path, record: Path) -> tuple[ShardRecord, float] | None:
    """A shard that an earlier run finished, with its error, if it is still what was verified then."""
    if not path.is_file():
        return None
    try:
        data = parse_json(read_small(record))
        shard = ShardRecord(path.name, data["bytes"], data["sha256"], tuple(data["tensors"]))
        error = float(data["error"])
        held = tuple(sorted(tensor.name for tensor in read_header(path).tensors))
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, WeightsError):
        return None
    same = path.stat().st_size == shard.bytes and held == shard.tensors and sha256(path) == shard.sha256
    return (shard, error) if same and 0 <= error < WORST_ERROR else None


def _quantize_group(group: list[TensorInfo], task: _Task) -> tuple[dict[str, Tensor], float]:
    """The output tensors of a group and the largest error of its layers."""
    made: dict[str, Tensor] = {}
    worst = 0.0
    for tensor in group:
        value = task.checkpoint.read(tensor.name, own=True)
        layer = tensor.name.removesuffix(".weight")
        if layer not in task.layers or layer == tensor.name:
            made[tensor.name] = value.contiguous()
            continue
        if task.recording is not None and isinstance(task.scheme, Published):
            fitted = published_tensors(value, task.recording, layer, task.scheme)
            parts, error = fitted.tensors, fitted.error
        else:
            parts = quantized_tensors(value, task.scheme)
            error = dequantized_error(value, parts, task.scheme)
        if not error < WORST_ERROR:  # NaN too
            raise QuantError(f"{tensor.name} does not survive quantization (error {error:.2g}); exclude or mend it.")
        worst = max(worst, error)
        made.update({f"{layer}.{part}": data.contiguous() for part, data in parts.items()})
    return made, worst


def _verify(path: Path, made: dict[str, Tensor]) -> None:
    """What is on disk must be, bit for bit, what was meant to be written."""
    try:
        written = Checkpoint.open(path)
        same = written.tensors.keys() == made.keys() and all(
            _same_bits(written.read(name, own=True), tensor) for name, tensor in made.items()
        )
    except WeightsError:
        same = False
    if not same:
        raise QuantError(f"{path} reads back differently from what was written; the disk may be failing.")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


# --- the folder ------------------------------------------------------------------------------------------------------


def _job(
    files: list[Path], layers: frozenset[str], scheme: Scheme, shard_bytes: int, recording: Recording | None
) -> dict[str, object]:
    """What decides the result; its digest tells one job from another."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(int.from_bytes(opened.read(8), "little")))
    settings = {"format": FORMAT, "scheme": scheme_to_dict(scheme), "layers": sorted(layers), "shard": shard_bytes}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    if recording is not None:
        digest.update(recording.digest().encode())
    return {"source": digest.hexdigest()}


def _copy_side_files(source: Path, model: Path) -> None:
    """Configurations, tokenizers and the like; weights and indexes of the source stay behind."""
    if source.is_file():
        return
    for file in sorted(source.iterdir()):
        weights = ".safetensors" in file.name or file.suffix in (".bin", ".pt", ".pth", ".ckpt")
        if file.is_file() and not weights and file.stat().st_size <= _SIDE_FILE_BYTES and file.name != MANIFEST:
            shutil.copyfile(file, model / file.name)


def _write_index(model: Path, records: list[ShardRecord]) -> None:
    index = {
        "metadata": {"total_size": sum(shard.bytes for shard in records)},
        "weight_map": {name: shard.file for shard in records for name in shard.tensors},
    }
    write_atomic(model / INDEX, json.dumps(index, indent=1, sort_keys=True).encode())
