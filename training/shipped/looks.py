"""What the small world looks like: shapes, colours and backgrounds, drawn anti-aliased on 64x64 pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from magi_lite.errors import InputError

SIZE = 64
"""Width and height of a frame in pixels."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 35),
    "green": (35, 190, 60),
    "blue": (45, 85, 235),
    "yellow": (240, 215, 40),
    "white": (245, 245, 245),
    "purple": (175, 50, 200),
}
SHAPES = ("ball", "square", "triangle")
SIZES = {"small": 8.0, "large": 13.0}
"""Radius in pixels."""
BACKGROUNDS = ("dark", "gray", "checkered")

_FLOOR_TONES = {"dark": (28, 28, 34), "gray": (112, 112, 116)}
_CHECKER_TONES = ((20, 82, 90), (36, 118, 122))
_CHECKER = 8
"""Side of a checker in pixels: one latent, so that the texture is no harder than it has to be."""


@dataclass(frozen=True)
class Look:
    """What a body looks like and stands on; names from the tables above."""

    colour: str
    shape: str
    size: str
    background: str

    def __post_init__(self) -> None:
        for value, table, what in (
            (self.colour, COLOURS, "colour"),
            (self.shape, SHAPES, "shape"),
            (self.size, SIZES, "size"),
            (self.background, BACKGROUNDS, "background"),
        ):
            if value not in table:
                raise InputError(f"The world has no {what} '{value}'; choose one of {', '.join(table)}.")


@lru_cache(maxsize=8)
def background(name: str) -> np.ndarray:
    """The empty stage: (64, 64, 3) float32."""
    if name in _FLOOR_TONES:
        return np.broadcast_to(np.array(_FLOOR_TONES[name], np.float32), (SIZE, SIZE, 3))
    cells = np.add.outer(np.arange(SIZE) // _CHECKER, np.arange(SIZE) // _CHECKER) % 2
    return np.array(_CHECKER_TONES, np.float32)[cells]


def coverage(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """How much of each pixel a body covers, anti-aliased over one pixel: F states -> (F, 64, 64) float32 in [0, 1]."""
    centres = np.arange(SIZE, dtype=np.float32) + 0.5
    dx = centres[None, None, :] - np.asarray(x, np.float32)[:, None, None]
    dy = centres[None, :, None] - np.asarray(y, np.float32)[:, None, None]
    r = np.asarray(radius, np.float32)[:, None, None]
    if shape == "ball":
        distance = np.sqrt(dx * dx + dy * dy) - r
    else:
        turn = np.asarray(angle, np.float32)
        if np.any(turn):
            cos, sin = np.cos(turn)[:, None, None], np.sin(turn)[:, None, None]
            dx, dy = cos * dx + sin * dy, cos * dy - sin * dx
        if shape == "square":
            distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.9 * r
        else:
            slopes = 0.866 * np.abs(dx) - 0.5 * dy - 0.6 * r
            distance = np.maximum(dy - 0.8 * r, slopes)
    return np.clip(0.5 - distance, 0.0, 1.0)


def paint(stage: np.ndarray, cover: np.ndarray, colour: str) -> np.ndarray:
    """Lay a colour over a stage: (..., 64, 64, 3) float32 with cover (F, 64, 64)."""
    alpha = cover[..., None]
    return stage + alpha * (np.array(COLOURS[colour], np.float32) - stage)
