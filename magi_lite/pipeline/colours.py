"""Moving previews of unfinished seconds: latents become colours by a linear map, fitted on the run's finished seconds.

A latent of 16 numbers stands for 4 frames of 8 by 8 pixels, and their mean colour is nearly a linear function of it.
The least-squares map needs 17 by 17 sums, little beside a step. The road not taken, decoding every second of the
window, costs as much as the finished seconds do, several times over.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from magi_lite.models import FRAMES_PER_LATENT, PIXELS_PER_LATENT

SIDE = 160
"""Longest side of a preview in pixels."""
_RIDGE = 1e-4
"""Added to the diagonal, as a share of its mean: a picture of one colour fixes no map."""


class ColourMap:
    """The map from latents (16 channels) to colours; nothing until a second was shown to it."""

    def __init__(self) -> None:
        self._left: Tensor | None = None
        self._right: Tensor | None = None
        self._map: Tensor | None = None

    @property
    def ready(self) -> bool:
        return self._left is not None

    def learn(self, latents: Tensor, frames: np.ndarray) -> None:
        """Take a finished second into account.

        Args:
            latents: (1, C, t, h, w), as they were decoded.
            frames: (T, H, W, 3) uint8; left out of account unless they are 4 t frames of 8 h by 8 w pixels.
        """
        _, _, t, h, w = latents.shape
        if frames.shape != (t * FRAMES_PER_LATENT, h * PIXELS_PER_LATENT, w * PIXELS_PER_LATENT, 3):
            return
        # One side after the other, whole rows first: the sums over all three at once take 17 times as long.
        lines = frames.reshape(t, FRAMES_PER_LATENT, h, PIXELS_PER_LATENT, -1).sum(1, dtype=np.uint16)
        blocks = lines.sum(2, dtype=np.uint16).reshape(t, h, w, PIXELS_PER_LATENT, 3).sum(3, dtype=np.uint16)
        pixels = FRAMES_PER_LATENT * PIXELS_PER_LATENT**2  # 256, whose sum fits
        colours = torch.from_numpy(blocks / pixels).reshape(-1, 3)  # (t h w, 3)
        rows = _rows(latents).cpu().double()
        left, right = rows.T @ rows, rows.T @ colours
        self._left = left if self._left is None else self._left + left
        self._right = right if self._right is None else self._right + right
        self._map = None

    def pictures(self, latents: Tensor) -> np.ndarray:
        """Small pictures of latents (1, C, t, h, w): (t, h', w', 3) uint8, a step apart so that no side is too long."""
        assert self._left is not None and self._right is not None
        if self._map is None:
            ridge = _RIDGE * self._left.diagonal().mean()
            size = len(self._left)
            self._map = torch.linalg.solve(self._left + ridge * torch.eye(size, dtype=torch.float64), self._right)
        apart = max(1, -(-max(latents.shape[3:]) // SIDE))
        small = latents[:, :, :, ::apart, ::apart]
        colours = _rows(small) @ self._map.to(small.device, torch.float32)
        shape = (small.shape[2], small.shape[3], small.shape[4], 3)
        return colours.round().clamp(0, 255).to(torch.uint8).reshape(shape).cpu().numpy()


def _rows(latents: Tensor) -> Tensor:
    """(1, C, t, h, w) to (t h w, C + 1) float32, the last column 1."""
    rows = latents[0].float().permute(1, 2, 3, 0).reshape(-1, latents.shape[1])
    return torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
