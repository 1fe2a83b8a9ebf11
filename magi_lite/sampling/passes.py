"""What the network is asked at a step: velocities of a window of chunks, and the keys and values of clean ones.

A clean chunk is a forward of its own, and so is the copy of the oldest chunk that sees only itself. (The published
program puts the one in front of the window and the other behind it, in one pass. That is mathematically equal, and
takes the memory of up to two more chunks.) Source: docs/architecture.md, sections 3 to 5 of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from magi_lite.dit.captions import CaptionContext
from magi_lite.models import SamplerSettings
from magi_lite.sampling.guidance import GuidanceWeights, blend_nearly_clean, guidance_weights
from magi_lite.sampling.kv_store import KVRing
from magi_lite.sampling.results import Caption
from magi_lite.sampling.schedule import Schedule, Stage, f32

if TYPE_CHECKING:
    from magi_lite.dit.model import DiT


@dataclass(frozen=True, eq=False)
class Window:
    """The chunks in flight at a step of a stage, oldest first."""

    stage: Stage
    step: int
    latents: Tensor
    """(1, C, chunks * chunk_width, H, W)."""
    times: Tensor
    """(1, chunks)."""
    context: CaptionContext
    clean: Tensor | None
    """Latents of chunk `stage.clean` where it is to be run before this step."""

    def oldest(self, count: int, width: int) -> Window:
        """The same of the oldest chunks only, which see none of the others."""
        stage = self.stage
        if count == stage.chunks:
            return self
        younger = stage.chunks - count
        return replace(
            self,
            stage=replace(stage, last=stage.last - younger, newest=stage.newest + younger),
            latents=self.latents[:, :, : count * width],
            times=self.times[:, :count],
            context=self.context.select(range(count)),
        )


class Passes:
    """The denoiser with what all its passes share: the store and the null caption.

    Args:
        dit: the denoiser.
        settings: guidance, ranges, steps.
        null_caption: the caption of clean chunks and of dropped captions.
        device: where latents live; dtype: of the caption embeddings given to `dit`.
    """

    def __init__(
        self, dit: DiT, settings: SamplerSettings, null_caption: Caption, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.dit, self.settings = dit, settings
        self.store: KVRing | None = None
        self._schedule = Schedule(settings)
        self._width, self._device, self._dtype = settings.chunk_width, device, dtype
        self._clean_time = torch.full((1, 1), f32(settings.clean_t), device=device)
        self._null = null_caption
        self._null_contexts: dict[bool, CaptionContext] = {}
        self._repeated: dict[int, CaptionContext] = {}

    # --- captions ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, caption: Caption, *, dropped: bool = False) -> CaptionContext:
        """A caption's context, as the network's layers read it; one without a token is the null caption."""
        embeddings = caption.or_null(self._null).embeddings.to(self._device, self._dtype)[None]
        return self.dit.encode_captions(embeddings, None, dropped=dropped)

    def forget_stage(self) -> None:
        """Let go of what was kept for one stage."""
        self._repeated.clear()

    def _null_context(self, *, dropped: bool) -> CaptionContext:
        if dropped not in self._null_contexts:
            self._null_contexts[dropped] = self.encode(self._null, dropped=dropped)
        return self._null_contexts[dropped]

    def _dropped(self, rows: int) -> CaptionContext:
        """The dropped caption `rows` times; kept for the stage, for contexts join their rows when first used."""
        if rows not in self._repeated:
            self._repeated[rows] = self._null_context(dropped=True).select([0] * rows)
        return self._repeated[rows]

    # --- a window ----------------------------------------------------------------------------------------------------

    def velocity(self, window: Window) -> Tensor:
        """Of the shape of the window's latents, guidance included."""
        return self._one_pass(window) if self.settings.guidance is None else self._three_passes(window)

    def situation(self, window: Window) -> tuple[object, ...]:
        """What velocities depend on by leaps: which chunks are seen, and which passes are made."""
        stage, step, guidance = window.stage, window.step, self.settings.guidance
        if guidance is None:
            passes: tuple[object, ...] = (self._nearly_clean(stage, step),)
        else:
            passes = tuple(guidance_weights(guidance, t) for t in self._schedule.timesteps(stage, step))
        return self._schedule.kv_ranges(stage, step), passes

    def _one_pass(self, window: Window) -> Tensor:
        """Distilled models: the window once, and the oldest chunk alone once it is nearly clean."""
        self._run_clean_first(window, dropped=False)
        velocity = self._whole(window, window.context)
        settings, stage, step = self.settings, window.stage, window.step
        if self._nearly_clean(stage, step):
            oldest = slice(0, self._width)
            alone = self.dit(
                window.latents[:, :, oldest],
                window.times[:, :1],
                window.context.select([0]),
                first_chunk=stage.first,
                kv_ranges=((stage.first, stage.first + 1),),
                step_size=self._schedule.step_size(step),
            )
            velocity[:, :, oldest] = blend_nearly_clean(velocity[:, :, oldest], alone, settings.nearly_clean_scale)
        return velocity

    def _nearly_clean(self, stage: Stage, step: int) -> bool:
        """Whether the oldest chunk is seen alone as well."""
        settings = self.settings
        return settings.nearly_clean and self._schedule.timesteps(stage, step)[0] > settings.nearly_clean_threshold

    def _three_passes(self, window: Window) -> Tensor:
        """Base models: with caption and past, without caption, without either, weighted by each chunk's time.

        Passes that no chunk has a weight for are left out. As published, keys and values are kept from the pass without
        caption, while the first pass after a chunk became clean sees those of the pass with one.
        """
        guidance = self.settings.guidance
        assert guidance is not None
        times = self._schedule.timesteps(window.stage, window.step)
        weights = [guidance_weights(guidance, t) for t in times]
        velocity = torch.zeros_like(window.latents)
        if any(w.full for w in weights):
            self._run_clean_first(window, dropped=False)
            self._add(velocity, self._whole(window, window.context), [w.full for w in weights])
        self._run_clean_first(window, dropped=True)
        prev = self._whole(window, self._dropped(window.stage.chunks))
        self._add(velocity, prev, [w.prev for w in weights])
        self._add_unconditional(velocity, window, weights)
        return velocity

    def _add_unconditional(self, velocity: Tensor, window: Window, weights: list[GuidanceWeights]) -> None:
        """The pass without caption and past: every chunk that has a weight for it by itself.

        One after the other: in a batch, all of them would be in memory at once, whatever the slices.
        """
        parts = velocity.split(self._width, dim=2)
        for i, latents in enumerate(window.latents.split(self._width, dim=2)):
            if weights[i].uncond:
                alone = self.dit(
                    latents,
                    window.times[:, i : i + 1],
                    self._null_context(dropped=True),
                    first_chunk=0,
                    kv_ranges=((0, 1),),
                    step_size=self._schedule.step_size(window.step),
                )
                parts[i].add_(alone, alpha=weights[i].uncond)

    def _add(self, velocity: Tensor, part: Tensor, weights: list[float]) -> None:
        chunks = velocity.split(self._width, dim=2)
        for into, of, weight in zip(chunks, part.split(self._width, dim=2), weights, strict=True):
            if weight:
                into.add_(of, alpha=weight)

    def _whole(self, window: Window, context: CaptionContext) -> Tensor:
        return self.dit(
            window.latents,
            window.times,
            context,
            first_chunk=window.stage.first,
            kv_ranges=self._schedule.kv_ranges(window.stage, window.step),
            store=self.store,
            step_size=self._schedule.step_size(window.step),
        )

    # --- clean chunks ------------------------------------------------------------------------------------------------

    def _run_clean_first(self, window: Window, *, dropped: bool) -> None:
        if window.clean is not None and window.stage.clean is not None:
            sees = self._schedule.clean_kv_range(window.stage.clean)
            self.run_clean(window.stage.clean, window.clean, sees, dropped=dropped)

    @torch.no_grad()
    def run_clean(self, chunk: int, latents: Tensor, sees: tuple[int, int], *, dropped: bool) -> None:
        """Run a clean chunk by itself and store its keys and values; `sees`: its own range."""
        self.dit(
            latents,
            self._clean_time,
            self._null_context(dropped=dropped),
            first_chunk=chunk,
            kv_ranges=(sees,),
            store=self.store,
            write=True,
            step_size=self._schedule.step_size(0),
        )
