"""Convert a checkpoint on disk, shard by shard, so that a kill at any moment costs one shard and harms nothing.

    OUT.partial/job.json        what is being converted, how; another job starts over
    OUT.partial/records/*.json  one per finished, verified shard
    OUT.partial/model/          the future OUT: shards appear under their names only when verified; manifest last
    OUT.unpacked/               shards that came compressed, until OUT is there
    OUT                         appears by renaming the finished folder
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
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quant.calibrate import Recording, published_tensors
from quant.convert import dequantized_error, detect, quantized_tensors
from quant.errors import QuantError
from quant.manifest import FORMAT, MANIFEST, Manifest, ShardRecord, read_manifest, save_tensors
from quant.packed import SUFFIX, unpacked
from quant.schemes import Published, Scheme, scheme_to_dict
from quant.select import Selection

SHARD_BYTES = 2 << 30
"""Source bytes that go into one output shard: the peak of memory, about."""
WORST_ERROR = 0.5
"""A layer further than this from its source (relative, L2) was not quantized but destroyed."""
INDEX = "model.safetensors.index.json"
HALF_OR_SINGLE = {"F16": 2, "BF16": 2, "F32": 4}
_SIDE_FILE_BYTES = 64 << 20


@dataclass(frozen=True)
class SourceTensor:
    """Where a tensor lies and how large it is."""

    name: str
    file: Path
    shape: tuple[int, ...]
    kind: str
    bytes: int


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
        say: told one line per shard.

    Raises:
        QuantError: nothing to convert, already quantized, damaged, or `target` is taken.
    """
    spare = target.with_name(target.name + ".unpacked")
    files, tensors = read_source(source, spare)
    layers = choose_layers(tensors, selection or Selection())
    if isinstance(scheme, Published) != (recording is not None):
        raise QuantError("The published scheme needs a calibration recording, and no other scheme takes one.")
    job = _job(files, layers, scheme, shard_bytes, recording)
    partial = target.with_name(target.name + ".partial")
    if target.exists():
        finished = read_manifest(target)
        if finished is None or finished.source != job["source"]:
            raise QuantError(f"{target} exists and is not this conversion; remove it or choose another folder.")
        _remove(partial, spare)
        return finished
    _start(partial, job)
    model, groups = partial / "model", group_tensors(tensors, shard_bytes)
    records: list[ShardRecord] = []
    worst = 0.0
    for number, group in enumerate(groups, 1):
        shard, error, resumed = _shard(partial, number, len(groups), group, layers, scheme, recording)
        records.append(shard)
        worst = max(worst, error)
        say(f"{shard.file}: {len(shard.tensors)} tensors, {shard.bytes / 2**20:.0f} MiB{', kept' * resumed}")
    _copy_side_files(source, model)
    _write_index(model, records)
    manifest = Manifest(scheme, tuple(sorted(layers)), tuple(records), str(job["source"]), worst)
    _write_atomically(model / MANIFEST, manifest.to_json())
    _sync_folder(model)
    model.rename(target)
    _sync_folder(target.parent)
    _remove(partial, spare)
    return manifest


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


# --- reading --------------------------------------------------------------------------------------------------------


def read_source(source: Path, unpack_to: Path) -> tuple[list[Path], list[SourceTensor]]:
    """The weight files of a checkpoint and every tensor in them, in the files' order; reads headers only.

    Compressed shards (.safetensors.zst) without an uncompressed one beside them are unpacked into `unpack_to`.
    """
    found = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
    if source.is_dir():
        names = {file.name for file in found}
        packed = source.glob("*.safetensors" + SUFFIX)
        found += [file for file in packed if file.name.removesuffix(SUFFIX) not in names]
    if not found:
        raise QuantError(f"{source} holds no .safetensors; give a file or a folder that has some.")
    files = [unpacked(file, unpack_to) if file.suffix == SUFFIX else file for file in found]
    files.sort(key=lambda file: file.name)
    tensors: list[SourceTensor] = []
    for file in files:
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
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        raise QuantError(f"{source} holds a tensor twice; keep only the shards of one model in it.")
    return files, tensors


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


# --- one shard -------------------------------------------------------------------------------------------------------


def _shard(
    partial: Path,
    number: int,
    count: int,
    group: list[SourceTensor],
    layers: frozenset[str],
    scheme: Scheme,
    recording: Recording | None,
) -> tuple[ShardRecord, float, bool]:
    """Make and verify a shard, or keep the one that an earlier run finished."""
    name = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
    path, record = partial / "model" / name, partial / "records" / f"{name}.json"
    if record.is_file() and path.is_file():
        data = json.loads(record.read_text(encoding="utf-8"))
        shard = ShardRecord(name, data["bytes"], data["sha256"], tuple(data["tensors"]))
        if path.stat().st_size == shard.bytes and _sha256(path) == shard.sha256:
            return shard, data["error"], True
    made, error = _quantize_group(group, layers, scheme, recording)
    unfinished = path.with_name(name + ".unfinished")
    save_tensors(made, unfinished, {"format": "pt"})  # one entry: their order in the file is random
    _sync_file(unfinished)
    _verify(unfinished, made)
    shard = ShardRecord(name, unfinished.stat().st_size, _sha256(unfinished), tuple(sorted(made)))
    unfinished.replace(path)
    _write_atomically(record, json.dumps({**asdict(shard), "error": error}))
    return shard, error, False


def _quantize_group(
    group: list[SourceTensor], layers: frozenset[str], scheme: Scheme, recording: Recording | None
) -> tuple[dict[str, Tensor], float]:
    """The output tensors of a group and the largest error of its layers."""
    made: dict[str, Tensor] = {}
    worst = 0.0
    for tensor in group:
        with safe_open(tensor.file, framework="pt") as opened:
            value = opened.get_tensor(tensor.name)
        layer = tensor.name.removesuffix(".weight")
        if layer not in layers or layer == tensor.name:
            made[tensor.name] = value.contiguous()
            continue
        if recording is not None and isinstance(scheme, Published):
            fitted = published_tensors(value, recording, layer, scheme)
            parts, error = fitted.tensors, fitted.error
        else:
            parts = quantized_tensors(value, scheme)
            error = dequantized_error(value, parts, scheme)
        if not error < WORST_ERROR:  # NaN too
            raise QuantError(f"{tensor.name} does not survive quantization (error {error:.2g}); exclude or mend it.")
        worst = max(worst, error)
        made.update({f"{layer}.{part}": data.contiguous() for part, data in parts.items()})
    return made, worst


def _verify(path: Path, made: dict[str, Tensor]) -> None:
    """What is on disk must be, bit for bit, what was meant to be written."""
    with safe_open(path, framework="pt") as opened:
        same = set(opened.keys()) == made.keys() and all(
            _same_bits(opened.get_tensor(name), tensor) for name, tensor in made.items()
        )
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


def _start(partial: Path, job: dict[str, object]) -> None:
    """Continue this very job, or clear away another one's remains."""
    note = partial / "job.json"
    if partial.exists():
        try:
            same = json.loads(note.read_text(encoding="utf-8")) == job
        except (OSError, ValueError):
            same = False
        if not same:
            shutil.rmtree(partial)
    for folder in ("model", "records"):
        (partial / folder).mkdir(parents=True, exist_ok=True)
    _write_atomically(note, json.dumps(job))


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
    _write_atomically(model / INDEX, json.dumps(index, indent=1, sort_keys=True))


def _write_atomically(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    _sync_file(unfinished)
    unfinished.replace(path)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make renames durable; Windows cannot open folders and needs no such thing."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: object) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 22):  # type: ignore[attr-defined]
        digest.update(block)
    return digest.hexdigest()
