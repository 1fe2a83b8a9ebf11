"""The autoencoder of MAGI-1: a ViT that squeezes 4 x 8 x 8 pixels into one latent of 16 channels, and back.

Latents here are as the network makes them; the factor 0.18215 is `tiling`'s business. Both halves follow the dtype of
their weights. Source: MAGI-1 report; names of the published `ckpt/vae`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from magi_lite.models import VAEConfig
from magi_lite.vae.layers import NORM_EPSILON, FrameConvolution, PatchConvolution, Transformer


class PatchEmbed(nn.Module):
    """Frames (N, 3, T, H, W) to patch vectors (N, D, T/4, H/8, W/8)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        patch = (config.patch_length, config.patch_size, config.patch_size)
        self.proj = PatchConvolution(config.in_chans, config.embed_dim, kernel_size=patch, stride=patch)

    def forward(self, frames: Tensor) -> Tensor:
        return self.proj(frames)


class ViTEncoder(Transformer):
    """Frames to the mean and log variance of their latents."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        self.patch_embed = PatchEmbed(config)
        self.last_layer = nn.Linear(config.embed_dim, config.z_chans * (2 if config.double_z else 1))

    def forward(self, frames: Tensor) -> Tensor:
        patches = self.patch_embed(frames)
        grid = (patches.shape[2], patches.shape[3], patches.shape[4])
        x = self.last_layer(self.transform(patches.flatten(2).transpose(1, 2), grid))
        return x.transpose(1, 2).unflatten(2, grid)


class ViTDecoder(Transformer):
    """Latents to frames; a last 3x3x3 convolution smooths the seams between patches."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        self.patch = (config.patch_length, config.patch_size, config.patch_size)
        patch_volume = self.patch[0] * self.patch[1] * self.patch[2]
        self.channels = 4 if config.use_final_proj else config.embed_dim // patch_volume
        if self.channels * patch_volume != config.embed_dim and not config.use_final_proj:
            raise ValueError(f"embed_dim {config.embed_dim} is not a multiple of {patch_volume}; set use_final_proj.")
        self.proj_in = nn.Linear(config.z_chans, config.embed_dim)
        width, final = self.channels * patch_volume, config.use_final_proj
        self.final_proj: nn.Module = nn.Linear(config.embed_dim, width) if final else nn.Identity()
        self.final_norm: nn.Module = nn.LayerNorm(width, eps=NORM_EPSILON) if final else nn.Identity()
        self.last_layer = FrameConvolution(self.channels, config.in_chans, kernel_size=3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        grid = (latents.shape[2], latents.shape[3], latents.shape[4])
        x = self.transform(self.proj_in(latents.flatten(2).transpose(1, 2)), grid)
        x = self.final_norm(self.final_proj(x))
        x = x.unflatten(2, (*self.patch, self.channels)).unflatten(1, grid)  # N, T, H, W, pT, pH, pW, C
        x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)  # N, C, T, pT, H, pH, W, pW
        return self.last_layer(x.flatten(6, 7).flatten(4, 5).flatten(2, 3))


class ViTVAE(nn.Module):
    """Encoder and decoder with the published single-frame rule: one frame is seen as four alike, and one comes back."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ViTEncoder(config)
        self.decoder = ViTDecoder(config)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, which inputs are cast to."""
        return next(self.parameters()).dtype

    def moments(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior.

        Args:
            frames: (N, 3, T, H, W) in [-1, 1]; T a multiple of 4, H and W of 8.

        Returns:
            Two tensors (N, 16, T/4, H/8, W/8).
        """
        mean, log_variance = self.encoder(frames.to(self.dtype)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, frames: Tensor) -> Tensor:
        """The posterior's mode: (N, 3, T, H, W) in [-1, 1] -> (N, 16, T/4, H/8, W/8). T = 1 gives one latent frame."""
        single = frames.shape[2] == 1
        if single:
            frames = frames.expand(-1, -1, self.config.patch_length, -1, -1)
        mean, _ = self.moments(frames)
        return mean[:, :, :1] if single else mean

    def decode(self, latents: Tensor) -> Tensor:
        """(N, 16, T, H, W) -> (N, 3, 4T, 8H, 8W), about [-1, 1]. A single latent frame gives a single frame."""
        frames = self.decoder(latents.to(self.dtype))
        return frames[:, :, :1] if latents.shape[2] == 1 else frames
