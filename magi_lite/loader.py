"""From files to models: built without memory, given the files' own tensors, converted where the plan says so.

Everything is strict: a checkpoint must hold exactly the tensors of its model. Tensors that are already of the wanted
type stay memory-mapped. Which linears may be quantized is decided here and nowhere else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from torch import nn

from magi_lite.checkpoint import Checkpoint, Expected
from magi_lite.config import DiTConfig, Execution, VAEConfig
from magi_lite.dit.model import DiT, parameter_dtype
from magi_lite.errors import CheckpointError
from magi_lite.layout import ModelFiles, find_model
from magi_lite.t5 import load_t5
from magi_lite.text.encoder import PromptEncoder
from magi_lite.text.special_tokens import SpecialTokenTable
from magi_lite.vae.model import ViTVAE

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
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
        from magi_lite.demo import open_demo

        return open_demo(models_folder)
    return find_model(name_or_folder, models_folder)


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
        execution: scheme, dtype and attention of the plan; None: float32 on the CPU (or the published FP8 layers with
            everything else float32).
        device: where the weights go; None: the plan's device, or the CPU when layers are streamed.

    Raises:
        CheckpointError: files are missing, damaged or of another model or scheme.
    """
    execution = execution or Execution(scheme="published" if files.quantized else "float32")
    return load_dit_weights(files.weights, files.dit, execution, device)


def load_dit_weights(
    weights: Path, config: DiTConfig, execution: Execution, device: torch.device | str | None = None
) -> DiT:
    """As `load_dit`, from a weights folder and its configuration."""
    if device is None:
        device = "cpu" if execution.layers == "streamed" else execution.device
    checkpoint = Checkpoint.open(weights)
    compute = DTYPES[execution.dtype]
    with torch.device("meta"):
        model = DiT(config)
    assign(
        model, checkpoint, lambda name: parameter_dtype(name, compute), device, f"this model ({weights.parent.name})"
    )
    model.mlp_slice, model.attention_slice = execution.mlp_slice, execution.attention_slice
    return model


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
    """The shape of an autoencoder: `ddconfig` of its config.json."""
    path = Path(folder) / "config.json"
    try:
        given = json.loads(path.read_text(encoding="utf-8"))["ddconfig"]
        return VAEConfig(**{field.name: given[field.name] for field in fields(VAEConfig) if field.name in given})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not an autoencoder's configuration (JSON with a ddconfig).") from error


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
    ignore: Callable[[str], bool] = lambda name: False,
) -> None:
    """Give a model built on the meta device a checkpoint's tensors, each in its type; frozen, in eval mode.

    Raises:
        CheckpointError: the checkpoint does not hold exactly the model's tensors.
    """
    wanted = model.state_dict()
    checkpoint.require({name: Expected(tuple(tensor.shape)) for name, tensor in wanted.items()}, what, ignore)
    state = {name: checkpoint.read(name).to(device=device, dtype=dtype_of(name)) for name in wanted}
    model.load_state_dict(state, strict=True, assign=True)
    model.requires_grad_(False).eval()
