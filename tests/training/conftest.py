"""Tiny models and random latents: enough to see whether training trains."""

import pytest
import torch

from magi_lite.models import DiTConfig, VAEConfig
from training.latents import Pool
from training.text_model import CAPTION_LENGTH, CHANNELS, vocabulary

TINY_DIT = DiTConfig(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=64,
    num_attention_heads=2,
    num_query_groups=2,
    head_dim=32,
    in_channels=16,
    out_channels=16,
    caption_channels=CHANNELS,
    caption_max_length=CAPTION_LENGTH,
    gated_linear_unit=False,
    half_channel_vae=False,
    x_rescale_factor=1,
)
TINY_VAE = VAEConfig(
    video_size=64, video_length=12, embed_dim=32, depth=1, num_heads=2, z_chans=16, use_final_proj=True
)


@pytest.fixture(autouse=True)
def one_thread():
    """A busy machine is slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_pool() -> Pool:
    """Twelve clips of three seconds whose latents are alike enough to be learned: 4 x 4 latents."""
    torch.manual_seed(torch.seed() % 1000)
    pattern = torch.randn(1, 16, 1, 4, 4)
    tokens = torch.zeros(12, 3, 20, dtype=torch.long)
    tokens[:, :, :7] = torch.randint(3, len(vocabulary()), (12, 3, 7))
    tokens[:, :, 7] = 1
    return Pool(
        latents=(pattern + 0.1 * torch.randn(12, 16, 18, 4, 4)).half(),
        images=(pattern[:, None, :, 0] + 0.1 * torch.randn(12, 3, 16, 4, 4)).half(),
        body=torch.rand(12, 18, 4, 4) < 0.2,
        tokens=tokens,
        pictured=torch.zeros(12, dtype=torch.bool),
    )
