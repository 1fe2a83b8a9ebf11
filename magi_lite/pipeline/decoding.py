"""Pixels to latents and back, for the pipeline."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from magi_lite.finite import check_finite
from magi_lite.models import CHUNK_LATENT_FRAMES
from magi_lite.vae.model import ViTVAE
from magi_lite.vae.tiling import decode_tiled, encode_tiled, to_uint8

PREVIEW_SIDE = 256
"""Longest side of a preview in pixels."""


def encode_pixels(vae: ViTVAE, pixels: np.ndarray, device: torch.device | str, tile_batch: int = 1) -> Tensor:
    """(T, H, W, 3) uint8 to scaled latents (1, 16, T/4 or 1, H/8, W/8) float32."""
    frames = torch.from_numpy(np.ascontiguousarray(pixels))[None]
    latents = encode_tiled(vae, frames, tile_batch=tile_batch, device=device)
    check_finite(latents, "The autoencoder")
    return latents


def decode_chunk(vae: ViTVAE, latents: Tensor, tile_batch: int = 1) -> np.ndarray:
    """Scaled latents (1, 16, t, h, w) to frames (T, H, W, 3) uint8 in host memory."""
    check_finite(latents, "The transformer")
    pixels = decode_tiled(vae, latents, tile_batch=tile_batch)
    check_finite(pixels, "The autoencoder")
    return to_uint8(pixels)[0].cpu().numpy()


def decode_preview(vae: ViTVAE, latents: Tensor) -> np.ndarray:
    """One frame from the middle of unfinished latents, at most `PREVIEW_SIDE` pixels long: (H, W, 3) uint8."""
    middle = min(CHUNK_LATENT_FRAMES, latents.shape[2]) // 2
    frame = to_uint8(decode_tiled(vae, latents[:, :, middle : middle + 1]))[0, 0]
    stride = max(1, -(-max(frame.shape[:2]) // PREVIEW_SIDE))
    return frame[::stride, ::stride].cpu().numpy()


def psnr(made: np.ndarray, true: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 pictures in dB; equal ones give infinity."""
    error = ((made.astype(np.float64) - true.astype(np.float64)) ** 2).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
