"""A sampler that keeps everything: no store, no separate passes, the last seconds' clean chunks in every forward.

Written down again from docs/architecture.md (sections 3 to 5 of the model), to compare the real one with. Only the time
grid is shared, because its float32 values are a test of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from magi_lite.dit.captions import CaptionContext
from magi_lite.dit.model import DiT
from magi_lite.models import SamplerSettings
from magi_lite.sampling.schedule import time_grid

WIDTH = 6


def plain_chunks(
    dit: DiT,
    chosen: SamplerSettings,
    chunks: int,
    noise: Callable[[int], Tensor],
    words: Callable[[int], Tensor],
    null: Tensor,
    prefix: Tensor | None = None,
) -> list[Tensor]:
    """The new chunks as the published program emits them.

    Args:
        noise, words: absolute chunk -> its noise (1, C, 6, H, W) and caption embeddings (L, channels).
        null: the null caption (L, channels).
    """
    steps, window, base = chosen.steps, chosen.window, chosen.guidance is not None
    per_stage, t = steps // window, time_grid(steps, chosen.shortcut)
    offset = 0 if prefix is None else prefix.shape[2] // WIDTH
    total = offset + chunks
    x = {c: noise(c).clone() for c in range(offset, total)}
    known = {} if prefix is None else {c: prefix[:, :, WIDTH * c : WIDTH * (c + 1)] for c in range(offset + 1)}
    x |= {c: known[c] for c in range(offset)}
    captions = {c: dit.encode_captions(words(c)[None]) for c in range(offset, total)}
    quiet, dropped = (dit.encode_captions(null[None], dropped=flag) for flag in (False, True))
    finer = [2, 1, 1] if chosen.shortcut == "8,16,16" else [1, 1, 2]
    sizes = [8 / finer[step % 3] if steps == 12 else steps / 2 for step in range(steps)]
    finished: dict[int, Tensor] = {}

    def paste(c: int) -> None:
        if c in known:
            x[c][:, :, : known[c].shape[2]] = known[c]

    ranges = chosen.noise_to_clean_ranges
    behind = max(ranges) - 1 if ranges else total

    def sees(c: int, made: dict[int, int]) -> int:
        """Chunks that chunk c sees, itself included."""
        if not ranges:
            of_prefix = chosen.clean_range if chosen.clean_range > 0 else 8
            return of_prefix if c < offset else c + 1
        return ranges[made[c] * len(ranges) // steps] if c in made else 1

    def forward(
        present: Sequence[int], made: dict[int, int], contexts: list[CaptionContext], step: int
    ) -> list[Tensor]:
        reach = [sees(c, made) for c in present]
        ranges = [(max(present[0], c - r + 1), c + 1) for c, r in zip(present, reach, strict=True)]
        # A clean chunk's step size is that of the first step of a stage, whenever its keys are made.
        told = torch.tensor([[sizes[step] if c in made else sizes[0] for c in present]])
        times = torch.tensor([[t[made[c]] if c in made else 0.9999 for c in present]])
        velocity = dit(
            torch.cat([x[c] for c in present], 2), times, CaptionContext.cat(contexts), first_chunk=present[0],
            kv_ranges=ranges, step_size=told if chosen.distilled else None,
        )  # fmt: skip
        return list(velocity.split(WIDTH, 2))

    for stage in range(chunks + window - 1):
        active = [c for c in range(offset, total) if 0 <= stage - (c - offset) < window]
        for step in range(per_stage):
            made = {c: (stage - (c - offset)) * per_stage + step for c in active}
            for c in active:
                paste(c)
            present = [*range(max(0, active[0] - behind), active[0]), *active]
            if base:
                # The first pass after a chunk became clean sees it as not dropped; all stored keys are of dropped ones.
                fresh = active[0] - 1 if step == 0 and active[0] > offset else None
                mixed = [captions[c] if c in made else quiet if c == fresh else dropped for c in present]
                full = dict(zip(present, forward(present, made, mixed, step), strict=True))
                without = dict(zip(present, forward(present, made, [dropped] * len(present), step), strict=True))
                v = {}
                for c in active:
                    early = t[made[c]] < 0.3
                    p, w = (1.5, 7.5) if early else (1.0, 0.0)
                    alone = forward([c], made, [dropped], step)[0]
                    v[c] = (1 - p) * alone + (p - w) * without[c] + w * full[c]
            else:
                contexts = [captions[c] if c in made else quiet for c in present]
                v = dict(zip(present, forward(present, made, contexts, step), strict=True))
                oldest = active[0]
                if t[made[oldest]] > 0.3 and chosen.nearly_clean:
                    v[oldest] = 0.7 * v[oldest] + 0.3 * forward([oldest], made, [captions[oldest]], step)[0]
            for c in active:
                x[c] = x[c] + v[c] * (t[made[c] + 1] - t[made[c]])
                if made[c] + 1 == steps:
                    finished[c] = x[c].clone()
                    paste(c)
    cut = {c: known[c].shape[2] for c in known if c >= offset and (c > 0 or known[c].shape[2] > 1)}
    return [finished[c][:, :, cut.get(c, 0) :] for c in range(offset, total)]
