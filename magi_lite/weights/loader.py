"""From files to models: built without memory, given the files' own tensors, converted where the plan says so.

Everything is strict: a checkpoint must hold exactly the tensors of its model. Tensors that are already of the wanted
type stay memory-mapped. Which linears of the transformer may be quantized: `models.quantizable`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import nn

from magi_lite.dit.model import DiT, parameter_dtype
from magi_lite.errors import CheckpointError
from magi_lite.files import storage_errors
from magi_lite.models import DiTConfig, quantizable
from magi_lite.planner.execution import Execution, Scheme
from magi_lite.text.encoder import PromptEncoder
from magi_lite.text.special_tokens import SpecialTokenTable
from magi_lite.vae.model import ViTVAE
from magi_lite.weights.assign import Conversion, assign, expected_of
from magi_lite.weights.contents import check_text_contents
from magi_lite.weights.layout import ModelFiles, scheme_of, vae_config
from magi_lite.weights.pickles import Progress
from magi_lite.weights.t5 import load_t5
from magi_lite.weights.token_files import check_token_file
from quant import QuantError, QuantizedLinear, convert_, read_manifest, scheme_named
from quant.schemes import quantized_names
from quant.storage.shards import Checkpoint

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ON_THE_FLY = ("fp8", "int8", "nf4")
"""Schemes to which unquantized weights are converted while loading."""


def load_dit(
    files: ModelFiles,
    execution: Execution | None = None,
    device: torch.device | str | None = None,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> DiT:
    """The transformer of a model, ready to run.

    Args:
        execution: scheme, dtype and attention of the plan; None: the CPU, float32 where the files are not quantized.
        device: where the weights go; None: the plan's device, or the CPU when layers are streamed.
        cancelled: asked between tensors.

    Raises:
        CheckpointError: files are missing, damaged or of another model or scheme.
        LoadCancelled: `cancelled()`.
    """
    execution = execution or Execution(scheme=cast(Scheme, files.spec.stored_scheme or "float32"))
    return load_dit_weights(files.weights, files.spec.dit, execution, device, cancelled=cancelled)


@storage_errors()
def check_model(files: ModelFiles) -> None:
    """Refuse a model whose files do not hold exactly its networks' tensors; reads headers only.

    Raises:
        CheckpointError: names the tensor, the file and what is wrong.
    """
    _declared(files.weights, files.spec.dit)
    vae = build_vae(files.vae)
    Checkpoint.open(files.vae).require(expected_of(vae.state_dict()), "the autoencoder")
    check_text_contents(files.text_encoder)
    check_token_file(files.special_tokens, files.spec.dit.caption_channels)


def _declared(weights: Path, config: DiTConfig) -> tuple[DiT, Checkpoint, str | None, frozenset[str]]:
    """The transformer without numbers as its files hold it, the files, their scheme, and names of fixed types.

    Raises:
        CheckpointError, WeightsError: the files are of another model.
    """
    checkpoint = Checkpoint.open(weights)
    stored = scheme_of(checkpoint.tensors)
    with torch.device("meta"):
        model = DiT(config)
    fixed = _declare_quantized(model, checkpoint, stored, quantizable(config)) if stored else frozenset()
    checkpoint.require(expected_of(model.state_dict(), fixed), f"this model ({weights.parent.name})")
    return model, checkpoint, stored, fixed


def build_vae(folder: Path) -> ViTVAE:
    """The autoencoder that a folder's configuration describes, without numbers."""
    with torch.device("meta"):
        return ViTVAE(vae_config(folder))


@storage_errors()
def load_dit_weights(
    weights: Path,
    config: DiTConfig,
    execution: Execution,
    device: torch.device | str | None = None,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> DiT:
    """As `load_dit`, from a weights folder and its configuration."""
    converting = device or execution.device
    if device is None:
        device = "cpu" if execution.layers == "streamed" else execution.device
    _check_scheme(scheme_of(Checkpoint.open(weights).tensors), execution.scheme, weights)
    model, checkpoint, stored, fixed = _declared(weights, config)
    compute, may = DTYPES[execution.dtype], quantizable(config)
    conversion = None
    if stored is None and execution.scheme in ON_THE_FLY:
        linears = frozenset(name for name, part in model.named_modules() if isinstance(part, nn.Linear) and may(name))
        if linears:  # a model of two layers has none
            conversion = Conversion(scheme_named(execution.scheme), linears, converting, _layer)
    assign(
        model,
        checkpoint,
        lambda name: parameter_dtype(name, compute),
        device,
        f"this model ({weights.parent.name})",
        fixed=fixed,
        conversion=conversion,
        cancelled=cancelled,
    )
    model.mlp_slice, model.attention_slice = execution.mlp_slice, execution.attention_slice
    return model


def _layer(name: str) -> str:
    return f"Layer {name.split('.')[2]} of the transformer"


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


@storage_errors()
def load_vae(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> ViTVAE:
    """The autoencoder from a folder in diffusers layout (config.json with a ddconfig, safetensors).

    Raises:
        CheckpointError: files are missing, damaged or of another model.
    """
    model = build_vae(folder)
    assign(model, Checkpoint.open(folder), lambda name: dtype, device, "the autoencoder", cancelled=cancelled)
    return model


def load_text_encoder(
    files: ModelFiles,
    execution: Execution | None = None,
    device: torch.device | str | None = None,
    *,
    progress: Progress = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> PromptEncoder:
    """The text encoder of a model in the plan's scheme and place; None: float32 on the CPU.

    Raises:
        CheckpointError, OutputError: as `t5.load_t5`.
    """
    execution = execution or Execution()
    place = execution.t5_device if device is None else device
    return load_t5(
        files.text_encoder,
        execution.t5,
        place,
        files.spec.dit.caption_max_length,
        progress=progress,
        cancelled=cancelled,
    )


def load_special_tokens(files: ModelFiles) -> SpecialTokenTable:
    """The learned prompt tokens of a model.

    Raises:
        CheckpointError: the file is missing, damaged or of another width than the model's captions.
    """
    check_token_file(files.special_tokens, files.spec.dit.caption_channels)
    return SpecialTokenTable.load(files.special_tokens)
