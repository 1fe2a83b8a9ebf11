"""Guidance: how several velocities of one chunk become one. Pure maths, for tensors or plain numbers.

Base models: v = (1-p) v_uncond + (p-w) v_prev + w v_full, where v_prev has no caption and v_uncond neither caption nor
previous chunks; p and w go by the chunk's own t (MAGI-1 report, guidance section; reference section 3).
Distilled models: the oldest chunk leans on a copy of itself that sees no other chunk, once it is nearly clean.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from magi_lite.models import Guidance
from magi_lite.sampling.schedule import f32

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GuidanceWeights:
    """What each pass counts for one chunk: v = uncond * v_uncond + prev * v_prev + full * v_full. They sum to 1."""

    uncond: float
    prev: float
    full: float


def guidance_scales(guidance: Guidance, t: float) -> tuple[float, float]:
    """(p, w) for a chunk at time t. A range begins 1e-7 below its stated t, in float32."""
    starts = [f32(f32(start) - 1e-7) for start in guidance.t_ranges]
    index = bisect_left(starts, f32(t)) - 1
    return guidance.prev_scales[index], guidance.text_scales[index]


def guidance_weights(guidance: Guidance, t: float) -> GuidanceWeights:
    """The three weights for a chunk at time t."""
    prev_scale, text_scale = guidance_scales(guidance, t)
    return GuidanceWeights(1 - prev_scale, prev_scale - text_scale, text_scale)


def blend_nearly_clean(velocity: Tensor, alone: Tensor, scale: float) -> Tensor:
    """scale * velocity + (1 - scale) * alone: the oldest chunk leans on its copy that sees only itself."""
    return scale * velocity + (1 - scale) * alone
