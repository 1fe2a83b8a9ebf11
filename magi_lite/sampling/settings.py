"""How noise becomes video: the sampler's settings, free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from magi_lite.models import CHUNK_LATENT_FRAMES


@dataclass(frozen=True)
class Guidance:
    """Three-pass guidance of the base model: v = (1-p) v_uncond + (p-w) v_prev + w v_full, by the chunk's t."""

    t_ranges: tuple[float, ...] = (0.0, 0.0217, 0.1, 0.3, 0.999)
    prev_scales: tuple[float, ...] = (1.5, 1.5, 1.5, 1.0, 1.0)
    text_scales: tuple[float, ...] = (7.5, 7.5, 7.5, 0.0, 0.0)


@dataclass(frozen=True)
class SamplerSettings:
    """How noise becomes video. Defaults are the published distilled schedule."""

    steps: int = 8
    window: int = 4
    shortcut: Literal["8,16,16", "16,16,8"] = "8,16,16"
    distilled: bool = True
    guidance: Guidance | None = None
    """Three-pass guidance; None: one pass (distilled models)."""
    nearly_clean: bool = True
    """Distilled models: blend in the oldest chunk seen alone once its t is above `nearly_clean_threshold`."""
    nearly_clean_threshold: float = 0.3
    nearly_clean_scale: float = 0.7
    noise_to_clean_ranges: tuple[int, ...] = (5, 4, 3, 2)
    clean_range: int = 1
    clean_t: float = 0.9999
    chunk_width: int = CHUNK_LATENT_FRAMES
