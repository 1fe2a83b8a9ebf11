"""From files to models: built without memory, given the files' own tensors, converted where the plan says so.

Everything is strict: a checkpoint must hold exactly the tensors of its model. Tensors that are already of the wanted
type stay memory-mapped. Which linears may be quantized is decided here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from magi_lite.config_files import read_json
from magi_lite.dit.model import DiT, parameter_dtype
from magi_lite.errors import CheckpointError
from magi_lite.models import DiTConfig, VAEConfig
from magi_lite.planner.execution import Execution
from magi_lite.text.encoder import PromptEncoder
from magi_lite.text.special_tokens import SpecialTokenTable
from magi_lite.vae.model import ViTVAE
from magi_lite.weights.checkpoint import FLOATS, Checkpoint, Expected, tensor_names
from magi_lite.weights.layout import ModelFiles, find_model
from magi_lite.weights.t5 import load_t5

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ON_THE_FLY = ("fp8", "int8", "nf4")
"""Schemes to which unquantized weights are converted while loading."""
_LAYER_LINEAR = re.compile(
    r"^videodit_blocks\.layers\.(?P<layer>\d+)\."
    r"(self_attention\.linear_(qkv\.(q|qx|k|v)|proj)|mlp\.linear_fc[12])$"
)


def open_model(name_or_folder: str | Path, models_folder: Path | None = None) -> ModelFiles:
    """The files of a model: a published name, "demo", or a folder in the published layout.

    "demo" is the small model shipped in presets/demo; without it, tiny random weights are made from a seed in a cache
    folder and labelled `trained=False`. They go the same way through the loader as any others.

    Raises:
        InputError: no such name or folder.
        CheckpointError: a part is missing; says what was looked for and where.
    """
    if str(name_or_folder) == "demo":
        from magi_lite.weights.demo import open_demo

        return open_demo(models_folder)
    files = find_model(name_or_folder, models_folder)
    stored = stored_scheme(tensor_names(files.weights)) or ("published" if _still_packed(files) else None)
    return dataclasses.replace(files, stored_scheme=stored, quantized=stored == "published")


def _still_packed(files: ModelFiles) -> bool:
    """FP8 by its configuration, but in compressed files without an index, which are not opened for their names."""
    return files.quantized and not tensor_names(files.weights)


def quantizable(config: DiTConfig) -> Callable[[str], bool]:
    """Which linears of a DiT may be quantized, by name: those of every layer but the first and the last.

    Embedders, modulation, caption keys and values, norms and the final linear stay in high precision: together they are
    a few percent of the weights, and quantizing them is what visibly hurts.
    """

    def may(name: str) -> bool:
        match = _LAYER_LINEAR.match(name)
        return match is not None and 0 < int(match["layer"]) < config.num_layers - 1

    return may


def load_dit(files: ModelFiles, execution: Execution | None = None, device: torch.device | str | None = None) -> DiT:
    """The transformer of a model, ready to run.

    Args:
        execution: scheme, dtype and attention of the plan; None: the CPU, float32 where the files are not quantized.
        device: where the weights go; None: the plan's device, or the CPU when layers are streamed.

    Raises:
        CheckpointError: files are missing, damaged or of another model or scheme.
    """
    execution = execution or Execution(scheme=stored_scheme(tensor_names(files.weights)) or "float32")
    return load_dit_weights(files.weights, files.dit, execution, device)


def load_dit_weights(
    weights: Path, config: DiTConfig, execution: Execution, device: torch.device | str | None = None
) -> DiT:
    """As `load_dit`, from a weights folder and its configuration."""
    converting = device or execution.device
    if device is None:
        device = "cpu" if execution.layers == "streamed" else execution.device
    checkpoint = Checkpoint.open(weights)
    stored = stored_scheme(checkpoint.tensors)
    _check_scheme(stored, execution.scheme, weights)
    with torch.device("meta"):
        model = DiT(config)
    compute, may = DTYPES[execution.dtype], quantizable(config)
    convert_now = stored is None and execution.scheme in ON_THE_FLY

    def dtype_of(name: str) -> torch.dtype:
        if convert_now and may(name.rpartition(".")[0]):
            return checkpoint.tensors[name].dtype  # quantized from the file's own numbers, as offline conversion does
        return parameter_dtype(name, compute)

    fixed = _declare_quantized(model, checkpoint, stored, may) if stored else frozenset()
    what = f"this model ({weights.parent.name})"
    assign(model, checkpoint, dtype_of, "cpu" if convert_now else device, what, fixed=fixed)
    if convert_now:
        _convert_layers(model, execution.scheme, may, converting, device)
    model.mlp_slice, model.attention_slice = execution.mlp_slice, execution.attention_slice
    return model


def stored_scheme(names: Iterable[str]) -> str | None:
    """How a checkpoint with these tensors is quantized: published, fp8, int8, nf4, or None."""
    from quant import detect

    scheme = detect(names)
    return None if scheme is None else scheme.name


def _check_scheme(stored: str | None, wanted: str, weights: Path) -> None:
    if stored is None and wanted == "published":
        raise CheckpointError(
            f"The weights in {weights} are not published FP8 ones; choose scheme bf16, fp8, int8 or nf4."
        )
    # a plan that says fp8 is served by the published static scales, too
    if stored is not None and wanted != stored and (stored, wanted) != ("published", "fp8"):
        raise CheckpointError(
            f"The weights in {weights} are stored as {stored} and cannot be run as {wanted}; "
            f"choose scheme {stored} or unquantized weights."
        )


def _declare_quantized(model: DiT, checkpoint: Checkpoint, stored: str, may: Callable[[str], bool]) -> frozenset[str]:
    """Swap the linears that the files hold quantized, still without memory; returns names whose type is fixed."""
    from quant import QuantError, QuantizedLinear, convert_, read_manifest, scheme_named
    from quant.convert import quantized_names

    try:
        manifest = read_manifest(checkpoint.place)
        scheme = scheme_named(stored) if manifest is None else manifest.scheme
        there = quantized_names(checkpoint.tensors)
        convert_(model, scheme, may if manifest is None and stored == "published" else there.__contains__)
    except QuantError as error:
        raise CheckpointError(str(error)) from error
    return frozenset(
        f"{name}.{buffer}"
        for name, layer in model.named_modules()
        if isinstance(layer, QuantizedLinear)
        for buffer, _ in layer.named_buffers(recurse=False)
        if buffer != "bias"
    )


def _convert_layers(
    model: DiT, scheme: str, may: Callable[[str], bool], at: torch.device | str, home: torch.device | str
) -> None:
    """Quantize one layer after the other where it will compute, and bring it home: a card is faster at it by far.

    Never more than one layer is in memory twice.
    """
    from quant import QuantError, convert_, scheme_named

    for index, layer in enumerate(model.videodit_blocks.layers):
        path = f"videodit_blocks.layers.{index}."
        if any(may(path + name) for name, _ in layer.named_modules()):
            layer.to(at)
            try:
                convert_(layer, scheme_named(scheme), lambda name, path=path: may(path + name))
            except QuantError as error:
                raise CheckpointError(f"Layer {index} of the transformer cannot be run as {scheme}: {error}") from error
        layer.to(home)
    model.to(home)


def load_vae(folder: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> ViTVAE:
    """The autoencoder from a folder in diffusers layout (config.json with a ddconfig, safetensors).

    Raises:
        CheckpointError: files are missing, damaged or of another model.
    """
    with torch.device("meta"):
        model = ViTVAE(vae_config(folder))
    assign(model, Checkpoint.open(folder), lambda name: dtype, device, "the autoencoder")
    return model


def load_text_encoder(
    files: ModelFiles, execution: Execution | None = None, device: torch.device | str | None = None
) -> PromptEncoder:
    """The text encoder of a model in the plan's scheme and place; None: float32 on the CPU.

    Raises:
        CheckpointError, OutputError: as `t5.load_t5`.
    """
    execution = execution or Execution()
    place = execution.t5_device if device is None else device
    return load_t5(files.text_encoder, execution.t5, place, files.dit.caption_max_length)


def vae_config(folder: Path) -> VAEConfig:
    """The shape of an autoencoder: `ddconfig` of its config.json.

    Raises:
        CheckpointError: the file cannot be read or used.
    """
    path = Path(folder) / "config.json"
    what = "an autoencoder's configuration (JSON with a ddconfig)"
    content = read_json(path, what)
    if "ddconfig" not in content:
        raise CheckpointError(f"{path} is not {what}; download it again.")
    return VAEConfig.from_published(content["ddconfig"], f"The ddconfig in {path}")


def load_special_tokens(files: ModelFiles) -> SpecialTokenTable:
    """The learned prompt tokens of a model.

    Raises:
        CheckpointError: the file is missing, damaged or of another width than the model's captions.
    """
    table = SpecialTokenTable.load(files.special_tokens)
    if table.channels != files.dit.caption_channels:
        raise CheckpointError(
            f"The special tokens in {files.special_tokens} have {table.channels} channels where the model needs "
            f"{files.dit.caption_channels}; put the file of this model there."
        )
    return table


def assign(
    model: nn.Module,
    checkpoint: Checkpoint,
    dtype_of: Callable[[str], torch.dtype],
    device: torch.device | str,
    what: str,
    fixed: frozenset[str] = frozenset(),
) -> None:
    """Give a model built on the meta device a checkpoint's tensors, each in its type; frozen, in eval mode.

    Args:
        fixed: tensors that must be stored in the model's own type and stay in it (quantized numbers, their scales).

    Raises:
        CheckpointError: the checkpoint does not hold exactly the model's tensors.
    """
    wanted = model.state_dict()
    types = {name: (tensor.dtype,) if name in fixed else FLOATS for name, tensor in wanted.items()}
    checkpoint.require({name: Expected(tuple(t.shape), types[name]) for name, t in wanted.items()}, what)
    state = {
        name: checkpoint.read(name).to(device=device, dtype=tensor.dtype if name in fixed else dtype_of(name))
        for name, tensor in wanted.items()
    }
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:  # quantized layers refuse scales that make no sense
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"The weights in {checkpoint.place} cannot be used: {reason}") from error
    model.requires_grad_(False).eval()
