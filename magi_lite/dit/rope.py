"""Rotary positions over (time, height, width), with learned bands (MAGI-1 report, section 2).

Time counts absolute latent frames, so a chunk's stored keys stay right when the window moves on. Height and width are
centred and stretched so that every picture size spans about the range of a square of 256 patches.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from magi_lite.dit.slicing import CACHED_TABLES

REFERENCE_PATCHES = 256
"""Patches of the picture whose positions are not stretched."""


def centred_positions(size: int, reference: float, device: torch.device) -> Tensor:
    """Positions of a picture's side (size,), float32: centred, stretched to span `reference` (a side of 1 is not)."""
    positions = torch.arange(size, dtype=torch.float32, device=device) - (size - 1) / 2
    return positions * ((reference - 1) / (size - 1)) if size > 1 else positions


def rope_table(bands: Tensor, start: int, frames: int, height: int, width: int) -> Tensor:
    """[sin | cos] of the angles of a pass's tokens.

    Args:
        bands: (b,) angular frequencies, float32, radians per position.
        start: absolute latent frame of the first token.
        frames, height, width: the pass's grid, in latent frames and patches.

    Returns:
        (frames * height * width, 6 * b), tokens in T, H, W order, angles in t, h, w order.
    """
    scale = (height * width / REFERENCE_PATCHES) ** 0.5
    axes = (
        torch.arange(start, start + frames, dtype=torch.float32, device=bands.device),
        centred_positions(height, height / scale, bands.device),
        centred_positions(width, width / scale, bands.device),
    )
    angles = [positions[:, None] * bands for positions in axes]
    grid = (frames, height, width, bands.numel())
    t, h, w = (angle.view([-1 if i == axis else 1 for i in range(3)] + [grid[3]]) for axis, angle in enumerate(angles))
    flat = torch.cat([t.expand(grid), h.expand(grid), w.expand(grid)], dim=-1).flatten(0, 2)
    return torch.cat([flat.sin(), flat.cos()], dim=-1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the first 2 * r of the last axis by halves (GPT-NeoX style); the rest passes.

    Args:
        x: (..., tokens, heads, head_dim); where autograd is off it is rotated in place.
        table: (..., tokens, 2 * r), [sin | cos].
    """
    sin, cos = table.unsqueeze(-2).chunk(2, dim=-1)
    r = sin.shape[-1]
    first, second, rest = x[..., :r], x[..., r : 2 * r], x[..., 2 * r :]
    if not torch.is_grad_enabled():
        turned = first * sin
        first.mul_(cos).addcmul_(second, sin, value=-1)
        second.mul_(cos).add_(turned)
        return x
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


class Rope(nn.Module):
    """The learned bands and the tables made of them, each made once.

    The road not taken: a table over the whole timeline, of which a pass takes its rows. It grows with the video.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        count = head_dim // 8
        self.bands = nn.Parameter(10000.0 ** -(torch.arange(count, dtype=torch.float32) / count))
        self._tables: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()

    def forward(self, start: int, frames: int, height: int, width: int) -> Tensor:
        """`rope_table` of the pass; kept for the passes that share its place, unless the bands are being trained."""
        if torch.is_grad_enabled() and self.bands.requires_grad:
            return rope_table(self.bands, start, frames, height, width)
        # A parameter that was replaced, moved or written to must not meet an old table, and a table made in inference
        # mode cannot serve autograd.
        bands = self.bands
        written = (bands.device, id(bands), None if bands.is_inference() else bands._version)
        key = (start, frames, height, width, *written, torch.is_inference_mode_enabled())
        if key not in self._tables:
            self._tables[key] = rope_table(bands, start, frames, height, width)
            while len(self._tables) > CACHED_TABLES:
                self._tables.popitem(last=False)
        return self._tables[key]
