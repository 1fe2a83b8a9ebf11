"""Pixels to latents and back for the pipeline: what comes before the first second, and the seconds themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from magi_lite.config import CHUNK_LATENT_FRAMES, FPS, FRAMES_PER_LATENT, GenerationRequest
from magi_lite.errors import MediaError
from magi_lite.vae.model import ViTVAE
from magi_lite.vae.tiling import decode_tiled, encode_tiled, to_signed, to_uint8

REACH = 4
"""Chunks before the first new one that the model can see: what of a clip is read."""
PREVIEW_SIDE = 256
"""Longest side of a preview in pixels."""


def prefix_pixels(request: GenerationRequest) -> np.ndarray | None:
    """The picture (1 frame) or the tail of the clip that a request starts from: (T, H, W, 3) uint8, or None.

    A clip is read from its end, whole seconds where it has them (so that every new second is whole too), as many as the
    model can see; one shorter than a second in whole latent frames.

    Raises:
        MediaError: the file cannot be read, or the clip is too short.
    """
    from magi_lite.video.clips import load_tail
    from magi_lite.video.images import load_image

    size = (request.width, request.height)
    if request.image is not None:
        return load_image(Path(request.image), size, request.fit)[None]
    if request.video is None:
        return None
    frames = load_tail(Path(request.video), size, request.fit, REACH * FPS)
    unit = FPS if len(frames) >= FPS else FRAMES_PER_LATENT
    usable = len(frames) // unit * unit
    if usable == 0:
        raise MediaError(f"{Path(request.video).name} has {len(frames)} frames; a clip to continue needs at least 4.")
    return frames[len(frames) - usable :]


def encode_prefix(vae: ViTVAE, pixels: np.ndarray, device: torch.device | str, tile_batch: int = 1) -> Tensor:
    """(T, H, W, 3) uint8 to scaled latents (1, 16, T/4 or 1, H/8, W/8) float32."""
    frames = to_signed(torch.from_numpy(np.ascontiguousarray(pixels))[None].to(device))
    return encode_tiled(vae, frames, tile_batch=tile_batch)


def decode_chunk(vae: ViTVAE, latents: Tensor, tile_batch: int = 1) -> np.ndarray:
    """Scaled latents (1, 16, t, h, w) to frames (T, H, W, 3) uint8 in host memory."""
    return to_uint8(decode_tiled(vae, latents, tile_batch=tile_batch))[0].cpu().numpy()


def decode_preview(vae: ViTVAE, latents: Tensor) -> np.ndarray:
    """One frame from the middle of unfinished latents, at most `PREVIEW_SIDE` pixels long: (H, W, 3) uint8."""
    middle = min(CHUNK_LATENT_FRAMES, latents.shape[2]) // 2
    frame = to_uint8(decode_tiled(vae, latents[:, :, middle : middle + 1]))[0, 0]
    stride = max(1, -(-max(frame.shape[:2]) // PREVIEW_SIDE))
    return frame[::stride, ::stride].cpu().numpy()
