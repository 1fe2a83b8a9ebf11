"""What goes into a sampler and what it yields: frozen, and referring to tensors rather than copying them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Caption:
    """What one chunk is conditioned on: embeddings (L, C), valid tokens only, special tokens included."""

    embeddings: Tensor

    def or_null(self, null: Caption) -> Caption:
        """This caption, or the null one in place of a caption that no token is valid of (as published)."""
        return self if len(self.embeddings) else null


@dataclass(frozen=True, eq=False)
class StepDone:
    """One denoising step of the whole window is made.

    `oldest_chunk` and `stage` count from the video's beginning, seconds and the stages in which they enter;
    `steps_done` and `steps_total` (None when endless) count the shot's steps. `latents` and `velocity` are
    (1, C, chunks * chunk_width, H, W), oldest chunk first, and hold until the sampler goes on.
    """

    stage: int
    step: int
    steps_in_stage: int
    oldest_chunk: int
    steps_done: int
    steps_total: int | None
    latents: Tensor
    velocity: Tensor
    remaining: tuple[float, ...]
    """1 - t of each chunk after this step."""
    chunk_width: int

    @property
    def preview(self) -> Tensor:
        """What the oldest chunk would be, were the velocity to stay: its latents taken straight to t = 1.

        (1, C, chunk_width, H, W), computed when asked for.
        """
        return self.forecast(0)

    def forecast(self, place: int) -> Tensor:
        """The same of the chunk at a place in the window, the oldest at 0."""
        part = slice(place * self.chunk_width, (place + 1) * self.chunk_width)
        return self.latents[:, :, part] + max(0.0, self.remaining[place]) * self.velocity[:, :, part]


@dataclass(frozen=True)
class StageDone:
    """A stage is finished: `Sampler.state()` now holds all that was made so far."""

    stage: int


@dataclass(frozen=True, eq=False)
class CleanChunk:
    """Second `index` of the video is clean: latents (1, C, t, H, W), scaled; t is short where a prefix fills it."""

    index: int
    latents: Tensor


@dataclass(frozen=True, eq=False)
class SamplerState:
    """A sampler at a stage boundary: `position` is JSON-able, `tensors` are contiguous and on the CPU."""

    position: dict[str, Any]
    tensors: dict[str, Tensor]
