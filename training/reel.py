"""Filmed seconds for the autoencoder: a store that begins small, grows and renews itself while training goes on.

Drawing all clips first would cost minutes, drawing each batch anew a good part of every step. The store is filled with
a few clips, every step adds one of each kind until it is full, and then replaces the oldest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from training.photographs import draw_shot, film_shot
from training.world import film_many, make_scene

TILE = 12
"""Frames that the autoencoder sees at once, as in `vae.tiling`."""
HELD_OUT = 900_000
"""Seeds from here on are never trained on."""


def to_signed(frames: np.ndarray | Tensor) -> Tensor:
    """(..., T, H, W, 3) uint8 -> (..., 3, T, H, W) float32 in [-1, 1]."""
    return torch.as_tensor(frames).movedim(-1, -4).float() / 127.5 - 1.0


@dataclass
class Reel:
    """Seconds of the world and, if there are pictures, of photographs: (24, H, W, 3) uint8 each.

    Args:
        pictures: photographs for training. most: seconds of each kind that are kept. first: with which it begins.
        seed: of everything that is drawn.
    """

    pictures: tuple[np.ndarray, ...]
    most: int = 1200
    first: int = 120
    seed: int = 0
    photograph_share: float = 0.4
    world: list[Tensor] = field(default_factory=list)
    photographs: list[Tensor] = field(default_factory=list)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _made: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng((self.seed, 5))
        for _ in range(self.first):
            self.renew()

    def renew(self) -> None:
        """Film one more second of each kind; a full store forgets its oldest."""
        number = self._made
        self._made += 1
        made = film_many([make_scene(self.seed + number)])[0]
        put(self.world, made, number, self.most)
        if self.pictures:
            picture = self.pictures[int(self._rng.integers(len(self.pictures)))]
            put(self.photographs, film_shot(draw_shot(picture, 1, self._rng)), number, self.most)

    def some(self, number: int) -> Tensor:
        """The first seconds of each kind, (at most number, 24, H, W, 3) uint8."""
        half = number // 2
        return torch.stack([*self.world[:half], *self.photographs[:half]])

    def batch(self, size: int, image: bool, generator: torch.Generator) -> Tensor:
        """Half seconds (B, 3, 12, H, W), or images as (B, 3, 4, H, W) of four frames alike, in [-1, 1]."""
        share = round(size * self.photograph_share) if self.photographs else 0
        clips = []
        for store, number in ((self.world, size - share), (self.photographs, share)):
            picks = torch.randint(len(store) or 1, (number,), generator=generator).tolist()
            starts = torch.randint(24 - TILE + 1, (number,), generator=generator).tolist()
            for pick, start in zip(picks, starts, strict=True):
                clip = store[pick]
                clips.append(clip[start : start + 1].expand(4, -1, -1, -1) if image else clip[start : start + TILE])
        return to_signed(torch.stack(clips))


T = TypeVar("T")


def put(store: list[T], clip: T, number: int, most: int) -> None:
    """Put clip `number` into a store; a full one forgets its oldest."""
    if len(store) < most:
        store.append(clip)
    else:
        store[number % most] = clip
