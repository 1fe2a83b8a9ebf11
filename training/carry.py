"""A transformer carried over to another autoencoder's latents, so that training goes on where it was.

Both autoencoders encode the same half seconds, and one linear fit says how the old latents become the new ones. The
first and the last linear of the transformer take it in. What comes in is latents mixed with noise, and noise must keep
its variance: there the nearest rotation stands for the fit.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from magi_lite.errors import InputError
from magi_lite.vae.model import ViTVAE
from training.diffusion import DemoModel
from training.export import AUTOENCODER, TEXT, TIED, TOKENS, WEIGHTS, no_model
from training.train_dit import make_model
from training.train_vae import make_vae


def read_autoencoder(folder: Path) -> ViTVAE:
    """The autoencoder of a model folder that `export` wrote.

    Raises:
        InputError: there is none, or one of another shape.
    """
    vae = make_vae()
    _load(vae, folder, load_file(_there(folder, AUTOENCODER)))
    return vae.eval()


def read_transformer(folder: Path) -> DemoModel:
    """Transformer, text encoder and special tokens of a model folder that `export` wrote.

    Raises:
        InputError: there are none, or some of another shape.
    """
    model = make_model()
    shards = sorted((folder / WEIGHTS).glob("*.safetensors"))
    if not shards:
        raise no_model(folder, WEIGHTS)
    _load(model.dit, folder, {name: tensor for shard in shards for name, tensor in load_file(shard).items()})
    text = load_file(_there(folder, TEXT))
    _load(model.text, folder, text | ({TIED: text["shared.weight"]} if "shared.weight" in text else {}))
    _load(model.tokens, folder, load_file(_there(folder, TOKENS)))
    return model


def fit(old: Tensor, new: Tensor) -> Tensor:
    """The matrix (C, C) with old @ matrix + a constant nearest to new in the least squares; both (N, C)."""
    ones = torch.ones(len(old), 1, dtype=torch.float64)
    return torch.linalg.lstsq(torch.cat([old.double(), ones], 1), new.double()).solution[:-1]


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The orthogonal matrix nearest to a square one (its polar factor)."""
    left, _, right = torch.linalg.svd(matrix)
    return left @ right


@torch.no_grad()
def carry_over(model: DemoModel, matrix: Tensor) -> None:
    """Have a transformer know the latents old @ matrix in place of the old ones; in place.

    `matrix` (C, C) float64, see `fit`.
    """
    into, out = model.dit.x_embedder, model.dit.final_linear.linear
    back = nearest_rotation(matrix).T  # new -> old
    into.weight.copy_(torch.einsum("hcxyz,nc->hnxyz", into.weight.double(), back))
    channels = len(matrix)
    velocities = out.weight.double().unflatten(0, (-1, channels))  # channels are the innermost of a patch's outputs
    out.weight.copy_(torch.einsum("pch,cn->pnh", velocities, matrix).flatten(0, 1))


@torch.no_grad()
def latents_of(vae: ViTVAE, clips: Tensor) -> Tensor:
    """(N, C) latents of half seconds (B, 3, 12, H, W) in [-1, 1], one row for every place and moment."""
    return vae.encode(clips).movedim(1, -1).flatten(0, -2)


def _load(module: torch.nn.Module, folder: Path, state: dict[str, Tensor]) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError:
        raise InputError(f"{folder} is no model folder of this training: its weights have other shapes.") from None


def _there(folder: Path, path: Path) -> Path:
    if not (folder / path).is_file():
        raise no_model(folder, path)
    return folder / path
