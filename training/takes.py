"""What the transformer makes of seconds whose picture is known: pairs for the decoder.

A true second is covered with noise as it is some steps before the end, and the distilled model takes it from there.
What the second shows is settled by then, and stays; what the last steps draw wrongly is what the decoder, which sees
all latents of half a second at once, can put right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from magi_lite.models import CHUNK_LATENT_FRAMES, SCALE_FACTOR
from magi_lite.sampling.schedule import step_size_number
from magi_lite.vae.model import ViTVAE
from training import checkpoint
from training.diffusion import ANY, CLEAN, DemoModel, draw_example, predict
from training.distill import advanced, per_latent
from training.footage import Footage
from training.latents import Pool, encode_clips, film_clip, token_rows
from training.reel import TILE, put, to_signed
from training.world import FRAMES

STEPS = 8
LEFT = ((4, 0.2), (3, 0.3), (2, 0.3), (1, 0.2))
"""Steps that the transformer makes, of `STEPS`, and how often; before its last four a thing's place is still open."""
PHOTOGRAPHS = 0.3
CONTINUED = 0.6
"""Share of the seconds that follow a clean one, and of those that are photographs."""


@dataclass
class Takes:
    """Seconds as the transformer makes them, unscaled latents (16, 6, h, w), and what they show, (24, H, W, 3) uint8.

    Args:
        student: the distilled model. vae: whose encoder made its latents. tokenizer: of the captions.
        pictures: photographs. first: seconds with which it begins. most: that are kept. seed: of everything drawn.
        footage: what is filmed already, in place of clips filmed one by one. together: seconds that are made at once.
    """

    student: DemoModel
    vae: ViTVAE
    tokenizer: object
    pictures: tuple[np.ndarray, ...]
    first: int
    most: int = 1200
    seed: int = 2_000_000
    footage: Footage | None = None
    together: int = 1
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _made: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng((self.seed, 21))
        self._generator = checkpoint.generators(self.seed)
        while self._made < self.first:
            self.renew()

    def renew(self) -> None:
        """Make more seconds; a full store forgets its oldest."""
        for made in self._take():
            put(self.kept, made, self._made, self.most)
            self._made += 1

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Half seconds: unscaled latents (B, 16, 3, h, w), and what they should show (B, 3, 12, H, W) in [-1, 1]."""
        picks = torch.randint(len(self.kept), (size,), generator=generator).tolist()
        halves = torch.randint(2, (size,), generator=generator).tolist()
        width = CHUNK_LATENT_FRAMES // 2
        latents, frames = [], []
        for pick, half in zip(picks, halves, strict=True):
            made, shown = self.kept[pick]
            latents.append(made[:, half * width : (half + 1) * width].float())
            frames.append(shown[half * TILE : (half + 1) * TILE])
        return torch.stack(latents), to_signed(torch.stack(frames))

    @torch.no_grad()
    def _take(self) -> list[tuple[Tensor, Tensor]]:
        seconds = 2 if self._rng.random() < CONTINUED else 1
        pool, frames = self._filmed(seconds) if self.footage is None else self._found(self.footage, seconds)
        left = int(self._rng.choice([n for n, _ in LEFT], p=[share for _, share in LEFT]))
        return list(zip(self._finish(pool, left).half(), frames[:, -FRAMES:], strict=True))

    def _filmed(self, seconds: int) -> tuple[Pool, Tensor]:
        """New clips, (N, 24 * seconds, H, W, 3) uint8, and their latents."""
        parts, frames = [], []
        for number in range(self._made, self._made + self.together):
            clip = film_clip(self.seed + number, seconds, self.pictures, PHOTOGRAPHS, self._rng)
            latents, images = encode_clips(self.vae, clip.frames[None])
            tokens = token_rows(self.tokenizer, clip.captions)[None]
            parts.append(
                Pool(latents, images, clip.body[None].to(latents.device), tokens, torch.tensor([clip.pictured]))
            )
            frames.append(clip.frames)
        return Pool.cat(parts), torch.stack(frames)

    def _found(self, footage: Footage, seconds: int) -> tuple[Pool, Tensor]:
        """The same out of clips that are there; alone, a clip's first second."""
        pool = footage.pool(self.vae)
        picks = torch.randint(len(pool), (self.together,), generator=self._generator)
        begins = torch.randint(pool.seconds - seconds + 1, (self.together,), generator=self._generator)
        begins = begins if seconds > 1 else torch.zeros_like(begins)
        return pool.cut(picks, begins, seconds), footage.cut(picks, begins, seconds)

    def _finish(self, pool: Pool, left: int) -> Tensor:
        """The last second of every clip after the last `left` steps, unscaled (N, 16, 6, h, w)."""
        pattern = (CLEAN, ANY) if pool.seconds == 2 else (ANY,)
        clips = len(pool)
        begun = torch.tensor([[(STEPS - left) / STEPS if quarter == ANY else 0.0 for quarter in pattern]])
        begun, picks = begun.repeat(clips, 1), torch.arange(clips)
        example = draw_example(pool, pattern, clips, self._generator, text_drop=0.0, progress=begun, picks=picks)
        made, number = example.noisy, step_size_number(STEPS, 1.0)
        for step in range(left):
            times, after = (advanced(example, n / STEPS) for n in (step, step + 1))
            velocity = predict(self.student, example, number, noisy=made, times=times)
            made = torch.where(example.fixed, made, made + per_latent(after - times, velocity) * velocity)
        return made[:, :, -CHUNK_LATENT_FRAMES:] / SCALE_FACTOR
