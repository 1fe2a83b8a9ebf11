"""A transformer of two narrow layers, and samplers around it whose every input is a function of a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from magi_lite.dit.model import DiT
from magi_lite.models import DiTConfig, Guidance, SamplerSettings
from magi_lite.sampling.results import Caption, CleanChunk
from magi_lite.sampling.sampler import Sampler

CONFIG = DiTConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=16,
    in_channels=4,
    out_channels=4,
    caption_channels=12,
    caption_max_length=10,
    gated_linear_unit=False,
    half_channel_vae=False,
    x_rescale_factor=1.0,
)
SIZE = (4, 6)
"""Latent height and width: not square, so that a swap shows."""
BASE = Guidance()


def settings(steps: int = 8, window: int = 4, **named: Any) -> SamplerSettings:
    return SamplerSettings(steps=steps, window=window, **named)


def base_settings(steps: int = 8, window: int = 2) -> SamplerSettings:
    """A base model: three passes, no step size, no copy."""
    return replace(settings(steps, window), distilled=False, guidance=BASE, nearly_clean=False)


def words(seed: int, length: int) -> Caption:
    generator = torch.Generator().manual_seed(seed)
    return Caption(torch.randn(length, CONFIG.caption_channels, generator=generator))


def caption_of(chunk: int, remaining: int | None) -> Caption:
    """Another caption, of another length, for every chunk; the remaining number does not matter."""
    return words(100 + chunk, 3 + chunk % 5)


def latents(seed: int, frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, CONFIG.latent_channels, frames, *SIZE, generator=generator)


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """These networks are so small that a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def dit() -> DiT:
    torch.manual_seed(3)
    model = DiT(CONFIG).requires_grad_(False)
    for parameter in model.parameters():  # norms and biases too, so that nothing is left at 0 or 1
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def make(dit: DiT) -> Callable[..., Sampler]:
    def build(chosen: SamplerSettings, chunks: int | None, **named: Any) -> Sampler:
        named = {"caption": caption_of, "null_caption": words(1, 4), "seed": 5, "latent_size": SIZE} | named
        return Sampler(named.pop("dit", dit), chosen, chunks=chunks, **named)

    return build


def clean_chunks(sampler: Sampler) -> list[Tensor]:
    """Everything that a sampler still has to emit, in order."""
    return [event.latents for event in sampler.run() if isinstance(event, CleanChunk)]


def same_bits(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
