"""Checkpoint folders through the real loader: strict, and every tensor equal to what the files hold."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from magi_lite.errors import MagiLiteError
from magi_lite.models import DiTConfig
from magi_lite.planner.execution import Execution
from magi_lite.weights.layout import is_fp8, parse_config, sampler_settings
from magi_lite.weights.loader import load_dit_weights, load_vae
from quant.storage.shards import find_files, has_weights
from tests.parity.report import CaseResult, exact, unclaimed

KIND = "ckpt"
Tensors = dict[str, torch.Tensor]


def run(folder: Path, root: Path) -> Iterator[CaseResult]:
    """Every configuration with its weights folder, the override, the listed names, and the autoencoder's folder."""
    claimed = {"weights.json"}
    listed = json.loads((folder / "weights.json").read_text()) if (folder / "weights.json").is_file() else {}
    base: tuple[DiTConfig, Tensors] | None = None
    for path in sorted(folder.glob("*.json")):
        if path.name == "weights.json":
            continue
        config = parse_config(path)
        weights = folder / _weights_name(config)
        claimed |= {path.name} | _files_of(weights, folder)
        if not has_weights(weights):
            yield CaseResult(KIND, path.name, False, {}, {}, f"its weights folder {weights.name} is not there")
            continue
        dit = DiTConfig.from_published(config["model_config"])
        yield from _loads(path.stem, weights, dit, is_fp8(config))
        raw = _raw(weights)
        if not is_fp8(config):
            base = base or (dit, raw)
        for names in [
            name for name in ("main", "fp8_changed") if name in listed and (name == "main" or is_fp8(config))
        ]:
            skip = set(listed["fp8_changed"]) if names == "main" and is_fp8(config) else set()
            yield exact(KIND, f"{path.stem} names of {names}", _as_listed(raw, listed[names], skip))
    for path in sorted(folder.glob("*override*.safetensors")):
        claimed.add(path.name)
        yield from _overridden(path, base, listed)
    yield from unclaimed(KIND, folder, claimed)
    if (root / "vae" / "ckpt").is_dir():
        yield from _autoencoder(root / "vae" / "ckpt")


def _files_of(weights: Path, folder: Path) -> set[str]:
    """What the loader takes of a weights folder: the index and the files that it lists."""
    if not has_weights(weights):
        return set()
    files = [*find_files(weights)[1], *weights.glob("*.safetensors.index.json")]
    return {path.relative_to(folder).as_posix() + end for path in files for end in ("", ".zst")}


def _weights_name(config: dict[str, Any]) -> str:
    """The official program's name for the weights folder of a configuration."""
    fp8, distilled = is_fp8(config), sampler_settings(config).distilled
    return "inference_weight" + (".fp8" if fp8 else "") + (".distill" if distilled else "")


def _loads(name: str, weights: Path, dit: DiTConfig, fp8: bool) -> Iterator[CaseResult]:
    raw = _raw(weights)
    for dtype, plain in (("float32", "float32"), ("bfloat16", "bf16")):
        execution = Execution(dtype=dtype, scheme="published" if fp8 else plain)
        try:
            model = load_dit_weights(weights, dit, execution)
        except MagiLiteError as error:
            yield CaseResult(KIND, f"{name} {dtype}", False, {}, {}, str(error))
            continue
        yield _equal(f"{name} {dtype}", model, raw)


def _overridden(path: Path, base: tuple[DiTConfig, Tensors] | None, listed: dict[str, Any]) -> Iterator[CaseResult]:
    """The base checkpoint with some tensors replaced, written as one file and loaded as another model."""
    variant = path.name.split("_")[0]
    if base is None or variant not in listed:
        yield CaseResult(KIND, path.stem, False, {}, {}, f"no base checkpoint, or weights.json does not list {variant}")
        return
    merged = base[1] | load_file(path)
    tensors = {name: merged[name].contiguous() for name in listed[variant]}
    yield exact(KIND, f"{path.stem} names of {variant}", _as_listed(tensors, listed[variant], set()))
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "inference_weight"
        weights.mkdir()
        save_file(tensors, weights / "model.safetensors")
        yield from _loads(path.stem, weights, _config_of(tensors, base[0]), fp8=False)


def _config_of(tensors: Tensors, base: DiTConfig) -> DiTConfig:
    """A configuration read off the tensors' shapes, for a variant that has no file of its own."""
    patch = base.t_patch_size * base.patch_size**2
    first, second = (tensors[f"videodit_blocks.layers.0.mlp.linear_fc{n}.weight"] for n in (1, 2))
    channels = tensors["x_embedder.weight"].shape[1]
    layers = {name.split(".")[2] for name in tensors if name.startswith("videodit_blocks.layers.")}
    return dataclasses.replace(
        base,
        num_layers=len(layers),
        in_channels=channels,
        out_channels=tensors["final_linear.linear.weight"].shape[0] // patch,
        ffn_hidden_size=second.shape[1],
        gated_linear_unit=first.shape[0] == 2 * second.shape[1],
        half_channel_vae=channels == 2 * base.latent_channels,
    )


def _autoencoder(folder: Path) -> Iterator[CaseResult]:
    for dtype in (torch.float32, torch.bfloat16):
        yield _equal(f"vae {dtype}", load_vae(folder, dtype), _raw(folder))


def _raw(weights: Path) -> Tensors:
    """Everything in the folder's files, read without our code."""
    tensors: Tensors = {}
    for path in sorted(weights.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def _equal(name: str, model: nn.Module, raw: Tensors) -> CaseResult:
    """Names, shapes and numbers: each tensor is the file's, in the type that the model keeps it in."""
    ours = model.state_dict()
    if set(ours) != set(raw):
        odd = sorted(set(ours) ^ set(raw))
        return CaseResult(KIND, name, False, {}, {}, f"{len(odd)} names differ, {odd[0]} first")
    for key, tensor in raw.items():
        kept = ours[key].dtype
        same_kind = kept == tensor.dtype or (tensor.element_size() > 1 and kept.itemsize > 1)
        if not same_kind or tensor.shape != ours[key].shape or not _same(ours[key], tensor.to(kept)):
            return CaseResult(KIND, name, False, {}, {}, f"{key} differs")
    return CaseResult(KIND, name, True, {}, {}, f"{len(raw)} tensors equal")


def _same(ours: torch.Tensor, golden: torch.Tensor) -> bool:
    return torch.equal(ours.view(torch.uint8), golden.view(torch.uint8)) if ours.ndim else ours.item() == golden.item()


def _as_listed(tensors: Tensors, listed: dict[str, Any], skip: set[str]) -> bool:
    """Whether all listed names are there in the listed shape and type."""
    return all(
        name in tensors and [list(tensors[name].shape), str(tensors[name].dtype).removeprefix("torch.")] == entry
        for name, entry in listed.items()
        if name not in skip
    )
