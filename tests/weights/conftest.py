"""A small DiT checkpoint on disk, and a complete untrained model, made afresh."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magi_lite.dit.model import DiT
from magi_lite.models import DiTConfig
from magi_lite.weights.demo import random_weights

SMALL = DiTConfig(
    num_layers=3,
    hidden_size=128,
    ffn_hidden_size=192,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=32,
    in_channels=16,
    out_channels=16,
    caption_channels=24,
    caption_max_length=20,
    gated_linear_unit=False,
    half_channel_vae=False,
    x_rescale_factor=1,
)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """Fresh random weights of a small DiT, as bf16 numbers where the published files have them."""
    weights = random_weights(DiT(SMALL))
    return {name: tensor.to(torch.bfloat16).to(torch.float32) for name, tensor in weights.items()}


@pytest.fixture
def weights(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    """The same as a weights folder with one file."""
    folder = tmp_path / "small" / "inference_weight.distill"
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors")
    return folder
