"""Clips of the world and of photographs as latents: made once, trained on many times.

A pool holds P clips of S seconds: latents as the transformer knows them, those of each second's first frame as an
image, a weight for every latent (more where a body is), caption ids per second, and which clips only make sense as the
continuation of a picture: photographs, and scenes that begin otherwise than their first sentence tells.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from magi_lite.files import write_tensors
from magi_lite.models import CHUNK_LATENT_FRAMES, SCALE_FACTOR
from magi_lite.text.cleaning import clean_prompt
from magi_lite.vae.model import ViTVAE
from training.checkpoint import sent
from training.photographs import draw_shot, film_shot
from training.precision import fast_products, half_is_faster
from training.reel import TILE, to_signed
from training.world import FRAMES, film_touched, make_scene

CAPTION_TOKENS = 28
BODY_WEIGHT = 8.0
"""How much more a latent counts that a body touches: the background is most of the picture and easy."""
SECONDS = 5
"""Of a pool's clips: a full window of four chunks and a clean one in front."""
CLIPS, POOLS = 500, 4
"""Clips of a pool, and pools; as many of single seconds, with as many seconds in all."""
PHOTOGRAPHS = 0.2
"""Share of a pool's clips that are photographs."""


@dataclass(frozen=True)
class Pool:
    """P clips of S seconds; tokens padded with 0.

    `latents` (P, 16, 6S, H, W), `images` (P, S, 16, H, W), `body` (P, 6S, H, W) bool, `tokens` (P, S, L) int64,
    `pictured` (P,) bool: clips that start from a picture. The last two are on the processor, the others where they are
    trained on.
    """

    latents: Tensor
    images: Tensor
    body: Tensor
    tokens: Tensor
    pictured: Tensor

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

    def cut(self, picks: Tensor, begins: Tensor, seconds: int) -> Pool:
        """Some seconds of some clips; picks (N,), begins (N,) count clips and seconds and are on the processor."""
        device, width = self.latents.device, CHUNK_LATENT_FRAMES
        clips, first = picks[:, None], begins[:, None]
        there = sent(clips, device)
        frames = sent(first * width + torch.arange(seconds * width), device)
        numbers = first + torch.arange(seconds)
        return Pool(
            latents=self.latents[there, :, frames].transpose(1, 2).contiguous(),
            images=self.images[there, sent(numbers, device)],
            body=self.body[there, frames],
            tokens=self.tokens[clips, numbers],
            pictured=self.pictured[picks],
        )

    @classmethod
    def cat(cls, pools: list[Pool]) -> Pool:
        return cls(**{n: torch.cat([getattr(pool, n) for pool in pools]) for n in cls.__dataclass_fields__})


@torch.no_grad()
def encode_clips(vae: ViTVAE, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Clips (P, 24S, H, W, 3) uint8 -> scaled latents (P, 16, 6S, h, w); each second's first frame (P, S, 16, h, w)."""
    clips, length = frames.shape[:2]
    x = to_signed(frames.to(next(vae.parameters()).device))
    tiles = x.unflatten(2, (length // TILE, TILE)).transpose(1, 2).flatten(0, 1)
    latents = vae.encode(tiles).unflatten(0, (clips, -1)).transpose(1, 2).flatten(2, 3)
    firsts = x[:, :, ::FRAMES].transpose(1, 2).flatten(0, 1)[:, :, None]
    images = vae.encode(firsts)[:, :, 0].unflatten(0, (clips, -1))
    return latents * SCALE_FACTOR, images * SCALE_FACTOR


def per_latent(pixels: Tensor) -> Tensor:
    """Latents of which any pixel is marked: (F, H, W) bool -> (F/4, H/8, W/8) bool."""
    frames, height, width = pixels.shape
    return pixels.view(frames // 4, 4, height // 8, 8, width // 8, 8).amax((1, 3, 5))


def token_rows(tokenizer: object, captions: tuple[str, ...]) -> Tensor:
    """(S, L) ids of cleaned captions, padded."""
    rows = [tokenizer(clean_prompt(caption))["input_ids"] for caption in captions]  # type: ignore[operator]
    return torch.tensor([row[:CAPTION_TOKENS] + [0] * (CAPTION_TOKENS - len(row)) for row in rows])


@dataclass(frozen=True)
class Filmed:
    """A clip: frames (24S, H, W, 3) uint8, one caption per second, which latents a body touches, (6S, h, w) bool.

    `pictured`: whether it only makes sense as the continuation of a picture.
    """

    frames: Tensor
    captions: tuple[str, ...]
    body: Tensor
    pictured: bool


def film_clip(
    seed: int, seconds: int, pictures: tuple[np.ndarray, ...], photographs: float, rng: np.random.Generator
) -> Filmed:
    """Film the scene of a seed, or, with chance `photographs` where there are pictures, a photograph."""
    if pictures and rng.random() < photographs:
        shot = draw_shot(pictures[int(rng.integers(len(pictures)))], seconds, rng)
        frames = film_shot(shot)
        body = torch.zeros(len(frames) // 4, frames.shape[1] // 8, frames.shape[2] // 8, dtype=torch.bool)
        return Filmed(frames, shot.captions, body, True)
    scene = make_scene(seed, seconds)
    frames, touched = film_touched(scene)
    return Filmed(frames, scene.captions, per_latent(touched), scene.begins_otherwise)


def make_pool(
    vae: ViTVAE,
    tokenizer: object,
    clips: int,
    seconds: int,
    seed: int,
    pictures: tuple[np.ndarray, ...] = (),
    photographs: float = PHOTOGRAPHS,
) -> Pool:
    """Film and encode clips; `photographs` is their share where there are pictures."""
    rng = np.random.default_rng((seed, 13))
    latents, images, bodies, tokens, pictured = [], [], [], [], []
    for number in range(clips):
        clip = film_clip(seed * 1_000_000 + number, seconds, pictures, photographs, rng)
        one, two = encode_clips(vae, clip.frames[None])
        latents.append(one.half())
        images.append(two.half())
        bodies.append(clip.body[None])
        tokens.append(token_rows(tokenizer, clip.captions)[None])
        pictured.append(clip.pictured)
    return Pool(torch.cat(latents), torch.cat(images), torch.cat(bodies), torch.cat(tokens), torch.tensor(pictured))


def make_pools(work: Path, vae: ViTVAE, pictures: tuple[np.ndarray, ...], share: float = 1.0) -> None:
    """Fill `work` with pools of seconds, `second-SEED.safetensors`, and of clips, `pool-SEED.safetensors`.

    Those that are there are kept.
    """
    from training.text_model import make_tokenizer

    tile = torch.zeros(2, 3, TILE, vae.config.video_size, vae.config.video_size)
    with fast_products([vae], half_is_faster(vae, lambda: vae.encode(tile))[0]):
        for kind, seconds, first in (("second", 1, 101), ("pool", SECONDS, 1)):
            for seed in range(first, first + POOLS):
                path, clips = work / f"{kind}-{seed}.safetensors", CLIPS * SECONDS // seconds
                if not path.is_file():
                    pool = make_pool(vae, make_tokenizer(), max(1, round(clips * share)), seconds, seed, pictures)
                    pool.save(path)
