"""From a training run to a model folder in the published layout, which the ordinary loader reads.

The transformer is trained on latents of zero mean and chosen size. What makes them so is folded into the
autoencoder's own linears here, so that encode(frames) * 0.18215 is what the transformer knows, and neither loader nor
sampler needs to hear of it. Matrices are stored as bfloat16, what the published program keeps in float32 stays so.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from magi_lite.dit.model import parameter_dtype
from magi_lite.errors import InputError
from magi_lite.models import SCALE_FACTOR, DiTConfig, VAEConfig
from training import checkpoint
from training.text_model import vocabulary_file

WEIGHTS = Path("ckpt/magi/demo/inference_weight.distill")
AUTOENCODER = Path("ckpt/vae/diffusion_pytorch_model.safetensors")
TEXT = Path("ckpt/t5/demo/model.safetensors")
TOKENS = Path("special_tokens.safetensors")
WITHOUT_EXTRA_PASS = 1.0
"""No chunk's t is above this, so none is seen alone once it is nearly clean: that copy knows nothing of the second
before, and a small model then draws where a first second would begin (over a border between seconds the picture moved
4.0 times as far as within them, 2.7 times without)."""
LARGEST_FILE = 15_000_000
"""Bytes of one file of the transformer's weights."""
LEARNED_ROWS = (1, *range(7, 15))
"""Rows of the special-token table that training used: quality, and one to eight seconds remaining."""
TOKEN_ROWS = 100
TIED = "encoder.embed_tokens.weight"
"""The second name of the T5's one embedding table."""


@dataclass(frozen=True)
class TrainedModel:
    """Everything that a model folder holds. State dicts have the names of `DiT`, `ViTVAE` and T5EncoderModel.

    `tokens` (100, C): special vectors by row. `text_config`: of transformers' T5Config. `tokenizer`: a fast tokenizer.
    """

    dit: dict[str, Tensor]
    dit_config: DiTConfig
    vae: dict[str, Tensor]
    vae_config: VAEConfig
    text: dict[str, Tensor]
    text_config: dict[str, Any]
    tokens: Tensor
    tokenizer: Any


def fold_statistics(vae: dict[str, Tensor], mean: Tensor, deviation: Tensor) -> dict[str, Tensor]:
    """An autoencoder that draws the same pictures, whose latents * SCALE_FACTOR are (old latents - mean) / deviation.

    Args:
        vae: state dict. mean, deviation: (z,) of the old, unscaled latents, by channel.
    """
    z, folded = len(mean), dict(vae)
    scale = deviation.double() * SCALE_FACTOR
    weight, bias = (vae[f"encoder.last_layer.{part}"].double().clone() for part in ("weight", "bias"))
    weight[:z] /= scale[:, None]
    bias[:z] = (bias[:z] - mean.double()) / scale
    bias[z:] -= 2 * scale.log()  # the log variance
    inward, offset = (vae[f"decoder.proj_in.{part}"].double() for part in ("weight", "bias"))
    changed = {
        "encoder.last_layer.weight": weight,
        "encoder.last_layer.bias": bias,
        "decoder.proj_in.weight": inward * scale,
        "decoder.proj_in.bias": offset + inward @ mean.double(),
    }
    return folded | {name: tensor.to(vae[name].dtype) for name, tensor in changed.items()}


def export(folder: Path, model: TrainedModel, *, steps: int = 8) -> None:
    """Write a model folder; what lay in its `ckpt` before is replaced once everything new is written.

    Args:
        folder: root of the published layout. steps: noted in the configuration as the usual number.
    Raises:
        InputError: the special vectors do not fit the transformer.
    """
    width = model.dit_config.caption_channels
    if tuple(model.tokens.shape) != (TOKEN_ROWS, width):
        raise InputError(f"Special vectors are {tuple(model.tokens.shape)}; this model needs ({TOKEN_ROWS}, {width}).")
    folder.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder, prefix=".new-"))
    try:
        _write_dit(new / WEIGHTS, model, steps)
        _write_vae(new / AUTOENCODER, model)
        _write_text(new / TEXT, model)
        save_file(token_table(model.tokens), new / TOKENS)
        shutil.rmtree(folder / "ckpt", ignore_errors=True)
        for part in new.iterdir():
            part.replace(folder / part.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def average_with(folder: Path, other: Path) -> None:
    """Make every weight of a model folder but the autoencoder's the mean of it and another's; in place.

    For a model and what it has become by training on: in between both forget less of what the other does better
    (model soups, arXiv 2203.05482).

    Raises:
        InputError: the other is no model of this kind, or draws with another autoencoder.
    """
    averaged = (*(path.relative_to(folder) for path in sorted((folder / WEIGHTS).glob("*.safetensors"))), TEXT, TOKENS)
    for path in (AUTOENCODER, *averaged):
        if not (other / path).is_file():
            raise no_model(other, path)
    if _encoder(folder) != _encoder(other):
        raise InputError(f"{other} has another autoencoder than {folder}; their weights mean different things.")
    for path in averaged:
        mine, theirs = load_file(folder / path), load_file(other / path)
        if {name: tensor.shape for name, tensor in mine.items()} != {n: t.shape for n, t in theirs.items()}:
            raise InputError(f"{other / path} has other weights than {folder / path}.")
        means = {name: ((tensor.float() + theirs[name].float()) / 2).to(tensor.dtype) for name, tensor in mine.items()}
        with safe_open(folder / path, "pt") as file:
            noted = file.metadata()
        save_file(means, folder / path, metadata=noted)


def no_model(folder: Path, path: Path) -> InputError:
    """The error for a folder without a part that `export` writes."""
    return InputError(f"{folder} is no model folder of this training: it has no {path}.")


def _encoder(folder: Path) -> dict[str, bytes]:
    """What makes a model's latents, to be compared; the decoder may have been trained on alone."""
    encoder = {name: tensor for name, tensor in load_file(folder / AUTOENCODER).items() if name.startswith("encoder.")}
    return {name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in encoder.items()}


def token_table(vectors: Tensor) -> dict[str, Tensor]:
    """The table in its published shapes. Rows that training never used are zero, so that they say nothing."""
    rows = torch.zeros(vectors.shape, dtype=torch.float32)
    rows[list(LEARNED_ROWS)] = vectors[list(LEARNED_ROWS)].float()
    nothing = torch.zeros(1, vectors.shape[1])
    return {"caption_token": nothing, "logo_token": nothing.clone(), "other_tokens": rows}


def _write_dit(path: Path, model: TrainedModel, steps: int) -> None:
    path.mkdir(parents=True)
    state = {n: t.to(parameter_dtype(n, torch.bfloat16)).contiguous() for n, t in model.dit.items()}
    save_torch_state_dict(state, path, max_shard_size=LARGEST_FILE)
    fields = dataclasses.asdict(model.dit_config)
    published = {("kv_channels" if name == "head_dim" else name): value for name, value in fields.items()}
    _write_json(
        path.parent / "config.json",
        {
            "model_config": published,
            "runtime_config": {"cfg_number": 1, "num_steps": steps, "window_size": 4, "chunk_width": 6},
            "engine_config": {
                "distill": True,
                "fp8_quant": False,
                "shortcut_mode": "8,16,16",
                "distill_nearly_clean_chunk_threshold": WITHOUT_EXTRA_PASS,
            },
        },
    )


def _write_vae(path: Path, model: TrainedModel) -> None:
    path.parent.mkdir(parents=True)
    save_file({n: _matrix_half(t) for n, t in model.vae.items()}, path)
    config = {"_class_name": "ViTVAE", "ddconfig": dataclasses.asdict(model.vae_config)}
    _write_json(path.parent / "config.json", config)


def _write_text(path: Path, model: TrainedModel) -> None:
    folder = path.parent
    folder.mkdir(parents=True)
    model.tokenizer.save_pretrained(folder)
    save_file({n: t.float().contiguous() for n, t in model.text.items() if n != TIED}, path)
    _write_json(folder / "config.json", model.text_config)
    _write_json(folder / "vocabulary.json", vocabulary_file())


def _matrix_half(tensor: Tensor) -> Tensor:
    """Matrices in bfloat16; biases, norms and position tables, which are small and count for more, in float32."""
    big = tensor.ndim == 2
    return tensor.to(torch.bfloat16 if big else torch.float32).contiguous()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def from_work(work: Path, distilled: bool = True) -> TrainedModel:
    """The model of a training run in `work`, distilled or as it was before; its averaged weights.

    Raises:
        CheckpointError: a stage of the training is missing.
    """
    from training.text_model import make_tokenizer
    from training.train_dit import DEMO_DIT, TRANSFORMER, make_model
    from training.train_vae import DEMO_VAE

    decoders = (work / f"vae_{name}.safetensors" for name in ("tuned", "folded"))
    groups, _ = checkpoint.load(work / ("distilled.safetensors" if distilled else TRANSFORMER))
    newest = next((path for path in decoders if path.is_file()), work / "vae_folded.safetensors")
    autoencoder, _ = checkpoint.load(newest)
    model = make_model()
    model.load_state_dict(groups["average"], strict=False)
    return TrainedModel(
        dit=model.dit.state_dict(),
        dit_config=DEMO_DIT,
        vae=autoencoder["model"],
        vae_config=DEMO_VAE,
        text=model.text.state_dict(),
        text_config=model.text.config.to_dict(),
        tokens=model.tokens.other_tokens.detach(),
        tokenizer=make_tokenizer(),
    )
