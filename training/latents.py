"""Clips of the world as latents: made once, trained on many times.

A pool holds P clips of S seconds: latents of unit variance, the latents of each second's first frame as an image, a
weight for every latent (more where the body is), caption ids per second.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from magi_lite.files import write_tensors
from magi_lite.models import SCALE_FACTOR
from magi_lite.text.cleaning import clean_caption
from magi_lite.vae.model import ViTVAE
from training.looks import background
from training.world import FRAMES, Clip, make_clip, make_collision

TILE = 12
"""Frames that the autoencoder sees at once, as in `vae.tiling`."""
CAPTION_TOKENS = 20
BODY_WEIGHT = 3.0
"""How much more a latent counts that the body touches: the background is most of the picture and easy."""


@dataclass(frozen=True)
class Pool:
    """P clips of S seconds; tokens padded with 0.

    `latents` (P, 16, 6S, H, W), `images` (P, S, 16, H, W), `body` (P, 6S, H, W) bool, `tokens` (P, S, L) int64.
    """

    latents: Tensor
    images: Tensor
    body: Tensor
    tokens: Tensor

    @property
    def seconds(self) -> int:
        return self.tokens.shape[1]

    def __len__(self) -> int:
        return len(self.tokens)

    def save(self, path: Path) -> None:
        write_tensors(path, {n: getattr(self, n) for n in self.__dataclass_fields__})

    @classmethod
    def load(cls, path: Path) -> Pool:
        return cls(**load_file(path))

    @classmethod
    def cat(cls, pools: list[Pool]) -> Pool:
        return cls(**{n: torch.cat([getattr(pool, n) for pool in pools]) for n in cls.__dataclass_fields__})


def to_signed(frames: np.ndarray) -> Tensor:
    """(..., T, H, W, 3) uint8 -> (..., 3, T, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(frames).movedim(-1, -4).float() / 127.5 - 1.0


@torch.no_grad()
def encode_clips(vae: ViTVAE, frames: np.ndarray) -> tuple[Tensor, Tensor]:
    """Clips (P, 24S, H, W, 3) uint8 -> scaled latents (P, 16, 6S, h, w); each second's first frame (P, S, 16, h, w)."""
    clips, length = frames.shape[:2]
    x = to_signed(frames)
    tiles = x.unflatten(2, (length // TILE, TILE)).transpose(1, 2).flatten(0, 1)
    latents = vae.encode(tiles).unflatten(0, (clips, -1)).transpose(1, 2).flatten(2, 3)
    firsts = x[:, :, ::FRAMES].transpose(1, 2).flatten(0, 1)[:, :, None]
    images = vae.encode(firsts)[:, :, 0].unflatten(0, (clips, -1))
    return latents * SCALE_FACTOR, images * SCALE_FACTOR


def body_mask(clip: Clip) -> np.ndarray:
    """(6S, H/8, W/8) bool: latents whose 4 x 8 x 8 pixels hold more than background."""
    difference = np.abs(clip.frames.astype(np.int16) - background(clip.look.background).astype(np.int16)).max(-1) > 12
    frames, height, width = difference.shape
    return difference.reshape(frames // 4, 4, height // 8, 8, width // 8, 8).any(axis=(1, 3, 5))


def token_rows(tokenizer: object, captions: tuple[str, ...]) -> Tensor:
    """(S, L) ids of cleaned captions, padded."""
    rows = [tokenizer(clean_caption(caption))["input_ids"] for caption in captions]  # type: ignore[operator]
    return torch.tensor([row[:CAPTION_TOKENS] + [0] * (CAPTION_TOKENS - len(row)) for row in rows])


def make_pool(
    vae: ViTVAE, tokenizer: object, clips: int, seconds: int, seed: int, *, extended: float = 0.0, batch: int = 8
) -> Pool:
    """Film and encode clips; `extended` is the share from the wider world: half collisions, half its extra motions."""
    rng = np.random.default_rng(seed)
    latents, images, bodies, tokens = [], [], [], []
    for start in range(0, clips, batch):
        some = []
        for number in range(start, min(start + batch, clips)):
            wide = rng.random() < extended
            if wide and rng.random() < 0.5:
                some.append(make_collision(seed * 1_000_000 + number, seconds))
            else:
                some.append(make_clip(seed * 1_000_000 + number, seconds, extended=wide))
        one, two = encode_clips(vae, np.stack([clip.frames for clip in some]))
        latents.append(one.half())
        images.append(two.half())
        bodies.append(torch.from_numpy(np.stack([body_mask(clip) for clip in some])))
        tokens.append(torch.stack([token_rows(tokenizer, clip.captions) for clip in some]))
    return Pool(torch.cat(latents), torch.cat(images), torch.cat(bodies), torch.cat(tokens))
