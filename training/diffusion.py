"""What one training example of the transformer is: noisy windows as the sampler makes them, and the flow loss.

Target: velocity = clean - noise, at x_t = (1 - t) noise + t clean (MAGI-1 report, section 2). Chunks of a window are
monotone in noise, a quarter of the way apart, as in the sampler's stages; clean chunks in front carry no text and up to
5 % of noise; a prefix (an image's latent frame, or the first latent frames of a clip) stays clean inside a noisy chunk.
The loss counts noisy chunks only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from magi_lite.dit.captions import CaptionContext
from magi_lite.dit.model import DiT
from magi_lite.models import CHUNK_LATENT_FRAMES
from magi_lite.sampling.schedule import kv_ranges
from training.checkpoint import draw_noise, sent
from training.latents import BODY_WEIGHT, Pool
from training.text_model import CAPTION_LENGTH, CHANNELS

RANGES = (5, 4, 3, 2)
CLEAN = -1
"""Marks a clean chunk in a pattern; other entries are quarters of the way, 0 the noisiest."""
ANY = 4
"""Marks a noisy chunk anywhere on its way (it sees what the first quarter sees: everything)."""
QUALITY_ROW, DURATION_ROW = 1, 7
"""Rows of the special-token table; duration counts from one remaining chunk."""
STEP_NUMBERS = (32.0, 16.0, 8.0, 4.0)
"""Step-size numbers of 64, 32, 16 and 8 steps."""
FIRST = 0.85
"""Share of the windows without clean chunks that are the first seconds of a clip, as the sampler has them."""
SINGLE = (((ANY,), 1.0),)
WINDOWS = (
    ((ANY,), 0.2),
    ((CLEAN, ANY), 0.35),
    ((1, 0), 0.05),
    ((2, 1), 0.05),
    ((3, 2), 0.05),
    ((CLEAN, 3, 2), 0.12),
    ((2, 1, 0), 0.08),
    ((CLEAN, CLEAN, ANY), 0.1),
)
"""Patterns of chunks, oldest first, and how often each is drawn."""
FULL_WINDOWS = (*WINDOWS, ((3, 2, 1, 0), 0.15), ((CLEAN, 3, 2, 1, 0), 0.25))


class SpecialTokens(nn.Module):
    """The learned table in the published shapes."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.caption_token = nn.Parameter(torch.randn(1, channels) * 0.5)
        self.logo_token = nn.Parameter(torch.randn(1, channels) * 0.5)
        self.other_tokens = nn.Parameter(torch.randn(100, channels) * 0.5)


class DemoModel(nn.Module):
    """Everything that is trained together: the transformer, the text encoder and the special tokens."""

    def __init__(self, dit: DiT, text: nn.Module) -> None:
        super().__init__()
        self.dit, self.text, self.tokens = dit, text, SpecialTokens(dit.config.caption_channels)

    def captions(
        self, ids: Tensor, remaining: Tensor | None, quality: bool, wordless: Tensor, dropped: Tensor
    ) -> CaptionContext:
        """Captions of B chunks as the sampler gives them.

        Args:
            ids: (B, L) word ids, padded with 0. remaining: (B,) chunks that remain, or None: no duration token.
            quality: with the quality token. wordless: (B,) bool, the null caption in place of the words.
            dropped: (B,) bool, which learned row the condition gets.
        """
        device = self.tokens.other_tokens.device
        lengths = (ids != 0).sum(1)
        ids = ids[:, : int(lengths.max())]
        unique, back = torch.unique(ids, dim=0, return_inverse=True)
        unique = sent(unique, device)
        encoded = self.text(input_ids=unique, attention_mask=(unique != 0).long()).last_hidden_state
        words = encoded.float()[sent(back, device)]
        parts, extra = [words], 0
        if quality:
            parts.insert(0, self.tokens.other_tokens[QUALITY_ROW].expand(len(ids), 1, -1))
            extra += 1
        if remaining is not None:
            duration_rows = sent(DURATION_ROW - 1 + remaining.clamp(1, 8), device)
            parts.insert(0, self.tokens.other_tokens[duration_rows][:, None])
            extra += 1
        rows = torch.cat(parts, dim=1)[:, :CAPTION_LENGTH]
        numbers = (lengths + extra).clamp(max=CAPTION_LENGTH)
        if wordless.any():
            null = self.dit.y_embedder.null_caption_embedding
            rows = nn.functional.pad(rows, (0, 0, 0, len(null) - rows.shape[1]))
            rows = torch.where(sent(wordless, device)[:, None, None], null, rows)
            numbers = torch.where(wordless, len(null), numbers)
        return self.dit.encode_captions(rows, numbers.tolist(), dropped=dropped)


def grid_time(progress: Tensor) -> Tensor:
    """Progress through the steps (0..1) -> t, as the sampler's grid: squared, then shifted by 3."""
    squared = progress.square()
    return squared / 3 / (1 - 2 / 3 * squared)


def draw_progress(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Progress of chunks anywhere on their way: logit-normal, with a quarter drawn evenly in t for the last details.

    The published logit-normal (0, 0.5) never visits the first tenth of the steps, which a small model needs trained.
    """
    logit_normal = torch.sigmoid(torch.randn(shape, generator=generator) + 0.3)
    t = torch.rand(shape, generator=generator)
    even = (3 * t / (1 + 2 * t)).sqrt()
    return torch.where(torch.rand(shape, generator=generator) < 0.25, even, logit_normal)


@dataclass(frozen=True)
class Example:
    """A batch of N windows of K chunks, ready for a forward.

    `clean`, `noisy` (N, C, 6K, H, W); `times` (N, K); `weight` (N, 1, 6K, H, W) of the loss; captions' inputs, rows in
    (n, k) order, which are always on the processor: how long they are decides shapes.
    """

    clean: Tensor
    noisy: Tensor
    noise: Tensor
    times: Tensor
    weight: Tensor
    ids: Tensor
    remaining: Tensor | None
    quality: bool
    wordless: Tensor
    dropped: Tensor
    ranges: tuple[tuple[int, int], ...]
    pattern: tuple[int, ...]
    progress: Tensor
    fixed: Tensor
    """(N, 1, 6K, H, W) bool: latents that stay clean (clean chunks and prefixes)."""


def pattern_ranges(pattern: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """KV ranges of a pattern, by the published reach of each quarter."""
    made = tuple(4 if q == CLEAN else 0 if q == ANY else q for q in pattern)
    return kv_ranges(0, made, 4, RANGES)


def draw_pattern(table: tuple, longest: int, generator: torch.Generator) -> tuple[int, ...]:
    """One pattern of at most `longest` chunks."""
    fitting = [(p, w) for p, w in table if len(p) <= longest]
    weights = torch.tensor([w for _, w in fitting])
    return fitting[int(torch.multinomial(weights, 1, generator=generator))][0]


def draw_example(
    pool: Pool,
    pattern: tuple[int, ...],
    batch: int,
    generator: torch.Generator,
    *,
    text_drop: float = 0.1,
    progress: Tensor | None = None,
    prefixes: bool = True,
    picks: Tensor | None = None,
) -> Example:
    """Draw a batch of windows of one pattern from a pool, on its device.

    Args:
        progress: (N, K) in place of the drawn one. picks: (N,) clips in place of drawn ones.
    """
    n, k, width, device = batch, len(pattern), CHUNK_LATENT_FRAMES, pool.latents.device
    picks = torch.randint(len(pool), (n,), generator=generator) if picks is None else picks
    begins = torch.randint(pool.seconds - k + 1, (n,), generator=generator)
    if pattern[0] != CLEAN:  # nothing is before them: mostly a video's first seconds
        begins = torch.where(torch.rand(n, generator=generator) < FIRST, 0, begins)
    part = pool.cut(picks, begins, k)
    clean, body, ids = part.latents.float(), part.body[:, None], part.tokens.flatten(0, 1)
    if progress is None:
        progress = _progress(pattern, n, generator)
    is_clean = torch.tensor([q == CLEAN for q in pattern]).expand(n, k)
    times = torch.where(is_clean, 0.9999, grid_time(progress))
    level = sent(torch.where(is_clean, 1 - 0.05 * torch.rand(n, k, generator=generator), times), device)
    fixed = sent(is_clean.repeat_interleave(width, 1), device)[:, None, :, None, None]
    fixed = fixed.expand(-1, -1, -1, *clean.shape[3:]).clone()
    noise = draw_noise(clean.shape, generator, device)
    mix = level.repeat_interleave(width, 1)[:, None, :, None, None]
    noisy = (1 - mix) * noise + mix * clean
    if prefixes and pattern[0] != CLEAN:
        _put_prefixes(part, begins, clean, noisy, fixed, generator)
    weight = torch.where(fixed, 0.0, 1 + (BODY_WEIGHT - 1) * body.float())
    drop = torch.rand(n, generator=generator) < text_drop
    wordless = is_clean | drop[:, None]
    dropped = torch.where(is_clean, torch.rand(n, k, generator=generator) < 0.3, drop[:, None])
    kind = float(torch.rand((), generator=generator))
    last = torch.randint(1, 9, (n,), generator=generator)
    remaining = (last[:, None] + torch.arange(k - 1, -1, -1)).clamp(max=8).flatten() if kind < 0.93 else None
    return Example(
        clean, noisy, noise, sent(times, device), weight, ids, remaining, kind < 0.9 or kind > 0.95,
        wordless.flatten(), dropped.flatten(), pattern_ranges(pattern), pattern, sent(progress, device), fixed,
    )  # fmt: skip


def _progress(pattern: tuple[int, ...], n: int, generator: torch.Generator) -> Tensor:
    """(N, K): one place within the quarter for the whole window, or anywhere for `ANY`."""
    within = torch.rand((n, 1), generator=generator)
    quarters = torch.tensor([max(q, 0) for q in pattern]).expand(n, -1)
    staged = (quarters + within) / 4
    return torch.where(quarters == ANY, draw_progress((n, 1), generator), staged)


def _put_prefixes(
    part: Pool, begins: Tensor, clean: Tensor, noisy: Tensor, fixed: Tensor, generator: torch.Generator
) -> None:
    """Give a seventh of the windows an image to start from, and a ninth the first frames of a clip; in place.

    Windows that their words do not tell get one in any case: clips that only make sense as the continuation of a
    picture, and those that are not seen from their start.
    """
    device = clean.device
    kinds = torch.rand(len(part), generator=generator)
    lengths = torch.randint(1, CHUNK_LATENT_FRAMES, (len(part),), generator=generator)
    kinds = torch.where(part.pictured | (begins > 0), 0.25 * kinds, kinds)
    lengths = sent(torch.where(kinds < 0.14, 1, torch.where(kinds < 0.25, lengths, 0)), device)
    pictured = sent(kinds < 0.14, device)[:, None, None, None]
    clean[:, :, 0] = torch.where(pictured, part.images[:, 0].float(), clean[:, :, 0])
    given = torch.arange(clean.shape[2], device=device) < lengths[:, None]
    fixed |= given[:, None, :, None, None]
    noisy.copy_(torch.where(given[:, None, :, None, None], clean, noisy))


def predict(
    model: DemoModel,
    example: Example,
    step_size: float | None,
    noisy: Tensor | None = None,
    times: Tensor | None = None,
    without_words: bool = False,
) -> Tensor:
    """The model's velocity for an example; other latents or times may be put in, or the words left out."""
    everything = torch.ones_like(example.wordless)
    captions = model.captions(
        example.ids,
        example.remaining,
        example.quality,
        everything if without_words else example.wordless,
        everything if without_words else example.dropped,
    )
    return model.dit(
        example.noisy if noisy is None else noisy,
        example.times if times is None else times,
        captions,
        first_chunk=0,
        kv_ranges=example.ranges,
        step_size=step_size,
    )


def weighted_error(velocity: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean square error, weighted by latent."""
    return (weight * (velocity - target).square().mean(1, keepdim=True)).sum() / weight.sum()


def flow_loss(model: DemoModel, example: Example, step_size: float | None) -> Tensor:
    """Flow matching: the velocity from noise to clean."""
    return weighted_error(predict(model, example, step_size), example.clean - example.noise, example.weight)
