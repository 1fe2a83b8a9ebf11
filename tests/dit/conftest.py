"""Small random models and inputs for the transformer's tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from magi_lite.dit.captions import CaptionContext
from magi_lite.dit.model import DiT
from magi_lite.models import DiTConfig

SMALL = DiTConfig(
    num_layers=3,
    hidden_size=48,
    ffn_hidden_size=80,
    num_attention_heads=6,
    num_query_groups=2,
    head_dim=16,
    in_channels=4,
    out_channels=4,
    caption_channels=20,
    caption_max_length=9,
    gated_linear_unit=False,
    half_channel_vae=False,
    x_rescale_factor=1.0,
)
LARGE_SWITCHES = replace(
    SMALL, gated_linear_unit=True, half_channel_vae=True, x_rescale_factor=0.1, in_channels=8, out_channels=8
)
"""The switches of the 24B model."""
CHUNK_FRAMES = 2


class DictStore:
    """A KV store of plain dictionaries, which also counts what is asked of it."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.reads: list[tuple[int, int, int]] = []
        self.prefetched: list[int] = []

    def write(self, layer: int, first_chunk: int, key: Tensor, value: Tensor) -> None:
        for i, pair in enumerate(zip(key.split(self.tokens, 1), value.split(self.tokens, 1), strict=True)):
            self.kept[layer, first_chunk + i] = (pair[0].clone(), pair[1].clone())

    def read(self, layer: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        self.reads.append((layer, first, last))
        pairs = [self.kept[layer, chunk] for chunk in reversed(range(first, last))]  # any order will do
        return torch.cat([k for k, _ in pairs], 1), torch.cat([v for _, v in pairs], 1)

    def prefetch(self, layer: int) -> None:
        self.prefetched.append(layer)


@dataclass
class Inputs:
    """Arguments of one forward."""

    latents: Tensor
    timesteps: Tensor
    words: Tensor
    lengths: list[int]

    def captions(self, dit: DiT, dropped: bool | Tensor = False) -> CaptionContext:
        return dit.encode_captions(self.words, self.lengths, dropped)


def randomize(dit: DiT, seed: int) -> DiT:
    """Every parameter random, norms included, so that none can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in dit.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "rope.bands":
                parameter.mul_(1 + 0.1 * noise)
            elif parameter.ndim == 1:
                plain_norm = name.endswith(("linear_qkv.layer_norm.weight", "mlp.layer_norm.weight"))
                parameter.copy_(0.2 * noise + (1 if plain_norm else 0))
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return dit


def make_inputs(config: DiTConfig, seed: int, n: int, chunks: int, height: int = 4, width: int = 6) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    frames = chunks * CHUNK_FRAMES
    lengths = torch.randint(1, config.caption_max_length + 1, (n * chunks,), generator=generator).tolist()
    return Inputs(
        torch.randn(n, config.latent_channels, frames, height, width, generator=generator),
        torch.rand(n, chunks, generator=generator),
        torch.randn(n * chunks, config.caption_max_length, config.caption_channels, generator=generator),
        lengths,
    )


@pytest.fixture
def small() -> DiT:
    return randomize(DiT(SMALL), 1).requires_grad_(False)


@pytest.fixture
def inputs() -> Callable[..., Inputs]:
    return make_inputs
