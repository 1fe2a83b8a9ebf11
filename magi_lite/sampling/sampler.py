"""Noise to clean chunks, one stage after the other: a generator that any caller can stop between steps.

A stage lets one new chunk in (pure noise), runs `steps / window` denoising steps over all chunks of the window, and
lets the oldest one out, clean. Before its first step the chunk that has just become clean is run once by itself, for
the keys and values that younger chunks will read. That pass is a forward of its own, and so a pure function of the
chunk's latents (or, for models whose chunks see everything, of all latents so far, which are then kept): after a
restart the very same bits are computed again, and only latents and captions need be kept.

A sampler makes one shot, and so forgets all that came before: a video with cuts is made by one sampler after another.

Chunk numbers here are absolute: whole chunks of a prefix count from 0. Source: docs/architecture.md, sections 3 to 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from magi_lite.dit.captions import CaptionContext
from magi_lite.errors import InputError
from magi_lite.machine import devices
from magi_lite.models import SamplerSettings
from magi_lite.sampling.kv_store import KVRing
from magi_lite.sampling.noise import chunk_noise
from magi_lite.sampling.passes import Passes, Window
from magi_lite.sampling.results import Caption, CleanChunk, SamplerState, StageDone, StepDone
from magi_lite.sampling.reuse import Reuse
from magi_lite.sampling.schedule import Schedule, Stage, chunk_steps, f32
from magi_lite.sampling.state import Progress, pack, unpack

if TYPE_CHECKING:
    from magi_lite.dit.model import DiT

IMAGE_PREFIX = 1
"""Latent frames of a prefix that is an image: it is part of the video that is made."""


class Sampler:
    """Makes the chunks of one shot of a video; of the whole video where it has no cut.

    Args:
        dit: the denoiser.
        settings: steps, window, guidance.
        latent_size: (H, W) of the latents.
        chunks: new chunks wanted; None: until stopped.
        shot: the second of the video with which the shot begins. Seconds and stages that are reported count from the
            video's beginning.
        caption: (absolute chunk, chunks that remain with this one or None) -> its caption. Asked once, when the chunk
            enters the window: what it answers may change while the run goes on.
        null_caption: the caption of clean chunks and of dropped captions.
        noise: chunk -> (1, C, chunk_width, H, W) float32; default: `chunk_noise` of `seed`, in a later shot of
            the seconds of the video.
        prefix: clean scaled latents (1, C, frames, H, W) to continue; one frame is an image.
        emit_prefix: whether an image prefix is emitted as it is ("exact") or as the published program leaves it
            ("published": plus the velocity of the last step).
        device: where latents live; dtype: of the caption embeddings given to `dit`.
        store_factory: slots -> KV store; default: a ring on `device` in float32.

    Raises:
        InputError: the settings cannot be scheduled, or the prefix has another shape.
    """

    def __init__(
        self,
        dit: DiT,
        settings: SamplerSettings,
        *,
        latent_size: tuple[int, int],
        chunks: int | None,
        caption: Callable[[int, int | None], Caption],
        null_caption: Caption,
        noise: Callable[[int], Tensor] | None = None,
        seed: int = 0,
        shot: int = 0,
        prefix: Tensor | None = None,
        emit_prefix: Literal["exact", "published"] = "exact",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        store_factory: Callable[[int], KVRing] | None = None,
    ) -> None:
        self.settings, self.seed, self.shot, self.device = settings, seed, shot, torch.device(device)
        self._passes = Passes(dit, settings, null_caption, self.device, dtype)
        self._width = settings.chunk_width
        self._reuse = Reuse(settings.reuse, settings.chunk_width) if settings.reuse else None
        self._chunk_shape = (1, dit.config.latent_channels, self._width, *latent_size)
        self._chunks = chunks
        self._caption, self._emit_prefix = caption, emit_prefix
        self._noise = noise or self._drawn
        nothing = torch.empty((*self._chunk_shape[:2], 0, *latent_size), device=self.device)
        self._set(Progress(nothing) if prefix is None else self._after_prefix(prefix, nothing))
        self._new_store: Callable[[int], KVRing] = store_factory or self._ring
        self._make_tables()

    def _set(self, progress: Progress) -> None:
        """Stand where `progress` says. It changes at stage boundaries only, so a stage can always be made again."""
        self._progress = progress
        total = None if self._chunks is None else progress.offset - progress.kept + self._chunks
        self.schedule = Schedule(self.settings, progress.offset, total)
        contexts = [self._passes.encode(caption) for caption in progress.captions.values()]
        self._context: CaptionContext | None = CaptionContext.cat(contexts) if contexts else None

    @property
    def offset(self) -> int:
        """Absolute number of the first chunk that is denoised."""
        return self._progress.offset

    @property
    def origin(self) -> int:
        """Absolute number of new second 0: whole chunks of the prefix."""
        return self._progress.offset - self._progress.kept

    def second(self, chunk: int) -> int:
        """The second of the video that a new chunk becomes."""
        return self.shot + chunk - self.origin

    @property
    def steps_done(self) -> int:
        """Steps of the shot behind the last stage boundary, those of seconds that were kept included."""
        return (self._progress.kept + self._progress.next_stage) * self.schedule.steps_per_stage

    def _after_prefix(self, prefix: Tensor, nothing: Tensor) -> Progress:
        _, channels, width, *size = self._chunk_shape
        if prefix.ndim != 5 or not prefix.shape[2] or (*prefix.shape[:2], *prefix.shape[3:]) != (1, channels, *size):
            wanted = f"(1, {channels}, frames, {size[0]}, {size[1]})"
            raise InputError(f"The prefix has the shape {tuple(prefix.shape)}; it must be {wanted}.")
        prefix = prefix.to(self.device, torch.float32)
        offset = prefix.shape[2] // width
        reach = Schedule(self.settings, offset).slots(0)
        return Progress(
            window=nothing,
            offset=offset,
            prefix_part=prefix[:, :, offset * width :].clone() if prefix.shape[2] % width else None,
            clean={c: prefix[:, :, c * width : (c + 1) * width].clone() for c in range(max(0, offset - reach), offset)},
        )

    def _drawn(self, chunk: int) -> Tensor:
        if not self.shot:
            return chunk_noise(self.seed, chunk, self._chunk_shape)
        return chunk_noise(self.seed, self.second(chunk), self._chunk_shape, later_shot=True)

    def _ring(self, slots: int) -> KVRing:
        return KVRing(slots, device=self.device, streams=devices)

    def _make_tables(self) -> None:
        """Times and step lengths of a full window at every step of a stage, once and on the device."""
        per_stage, grid = self.schedule.steps_per_stage, self.schedule.grid
        made = [chunk_steps(per_stage, 0, self.settings.window, step) for step in range(per_stage)]

        def table(number: Callable[[int], float]) -> Tensor:
            return torch.tensor([[number(m) for m in row] for row in made], dtype=torch.float32, device=self.device)

        self._times = table(lambda m: grid[m])
        self._lengths = table(lambda m: f32(grid[m + 1] - grid[m]))

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> Iterator[StepDone | StageDone | CleanChunk]:
        """Go on from the last stage boundary to the end, or for ever.

        Stopping anywhere is safe: state() is that of the last boundary, and run() may be called again.
        """
        for stage in self.schedule.stages(self._progress.next_stage):
            latents, captions, context = self._enter(stage)
            self._passes.forget_stage()
            if self._reuse is not None:
                self._reuse.forget()
            self._recall(stage)
            for step in range(self.schedule.steps_per_stage):
                velocity = self._step(stage, step, latents, context)
                yield self._report(stage, step, latents, velocity)
            finished = self._advance(stage, latents, captions, context)
            if finished is not None:
                yield finished
            yield StageDone(self.shot + self._progress.kept + stage.index)

    @torch.no_grad()
    def _enter(self, stage: Stage) -> tuple[Tensor, dict[int, Caption], CaptionContext]:
        """The window of a stage: copies of the chunks in flight, and the chunk that enters."""
        captions, context = dict(self._progress.captions), self._context
        latents = self._progress.window.clone()
        chunk = stage.last - 1
        if stage.newest == 0:
            noise = self._noise(chunk).to(self.device, torch.float32)
            if tuple(noise.shape) != self._chunk_shape:
                raise InputError(f"The noise of a chunk has the shape {tuple(noise.shape)}, not {self._chunk_shape}.")
            latents = torch.cat([latents, noise], dim=2)
            remaining = None if self.schedule.total is None else self.schedule.total - chunk
            captions[chunk] = self._caption(chunk, remaining)
            entering = self._passes.encode(captions[chunk])
            context = entering if context is None else CaptionContext.cat([context, entering])
        assert context is not None and list(captions) == list(range(stage.first, stage.last))
        return latents, captions, context

    def _advance(
        self, stage: Stage, latents: Tensor, captions: dict[int, Caption], context: CaptionContext
    ) -> CleanChunk | None:
        """Make the stage's outcome the state; the oldest chunk, if clean now, leaves the window."""
        progress = self._progress
        progress.next_stage = stage.index + 1
        if not stage.finishes(self.settings.window):
            progress.window, progress.captions, self._context = latents, captions, context
            return None
        chunk, width = stage.first, self._width
        done = latents[:, :, :width].clone()
        progress.window = latents[:, :, width:].clone()
        progress.captions = {c: caption for c, caption in captions.items() if c != chunk}
        self._context = context.select(range(1, stage.chunks)) if stage.chunks > 1 else None
        emitted = self._emitted(chunk, done)
        if chunk == self.offset:
            self._paste_prefix(done)  # what younger chunks see of it is the prefix itself
        progress.clean[chunk] = done
        if not self.settings.sees_everything:
            for old in [c for c in progress.clean if c <= chunk - self.schedule.reach]:
                del progress.clean[old]
        return CleanChunk(self.second(chunk), emitted)

    def _paste_prefix(self, latents: Tensor) -> None:
        """Put the prefix frames back into latents that begin with chunk `offset`."""
        part = self._progress.prefix_part
        if part is not None:
            latents[:, :, : part.shape[2]] = part

    def _emitted(self, chunk: int, latents: Tensor) -> Tensor:
        """A clean chunk without the frames that a prefix clip already showed; an image's frame belongs to the video."""
        part = self._progress.prefix_part
        if part is None or chunk != self.offset:
            return latents.clone()
        known = part.shape[2]
        if chunk > 0 or known > IMAGE_PREFIX:
            return latents[:, :, known:].clone()
        return torch.cat([part, latents[:, :, known:]], dim=2) if self._emit_prefix == "exact" else latents.clone()

    def _report(self, stage: Stage, step: int, latents: Tensor, velocity: Tensor) -> StepDone:
        per_stage, kept, total = self.schedule.steps_per_stage, self._progress.kept, self.schedule.total_steps
        return StepDone(
            stage=self.shot + kept + stage.index,
            step=step,
            steps_in_stage=per_stage,
            oldest_chunk=self.second(stage.first),
            steps_done=(kept + stage.index) * per_stage + step + 1,
            steps_total=None if total is None else kept * per_stage + total,
            latents=latents,
            velocity=velocity,
            remaining=tuple(1.0 - self.schedule.grid[made + 1] for made in self.schedule.made(stage, step)),
            chunk_width=self._width,
        )

    # --- a step ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _step(self, stage: Stage, step: int, latents: Tensor, context: CaptionContext) -> Tensor:
        """One Euler step of all chunks of the window, in place. Returns the velocity, of the shape of `latents`."""
        columns = slice(self.settings.window - stage.oldest, self.settings.window - stage.newest)
        times, lengths = self._times[step : step + 1, columns], self._lengths[step, columns]
        if stage.first == self.offset:
            self._paste_prefix(latents)
        clean = self._progress.clean[stage.clean] if step == 0 and stage.clean is not None else None
        velocity = self._velocity(Window(stage, step, latents, times, context, clean))
        per_chunk = (*latents.shape[:2], stage.chunks, self._width, *latents.shape[3:])
        latents.view(per_chunk).addcmul_(velocity.reshape(per_chunk), lengths.view(1, 1, -1, 1, 1, 1))
        return velocity

    def _velocity(self, window: Window) -> Tensor:
        """Of the whole window, computed; or of its oldest chunks, while those of the others serve again."""
        if self._reuse is None:
            return self._passes.velocity(window)
        times = self.schedule.timesteps(window.stage, window.step)
        situation = self._passes.situation(window)
        needed = self._reuse.needed(times, situation)
        computed = self._passes.velocity(window.oldest(needed, self._width)) if needed else None
        return self._reuse.complete(computed, times, situation)

    @torch.no_grad()
    def _recall(self, stage: Stage) -> None:
        """Compute what the store should hold and does not: a prefix, or everything after a restart."""
        slots, passes, clean = self.schedule.slots(stage.index), self._passes, self._progress.clean
        if passes.store is None:
            passes.store = self._new_store(slots)
        elif passes.store.slots != slots:
            passes.store.resize(slots, stage.first)
        for chunk in range(stage.first - slots, stage.first):
            if chunk in clean and chunk != stage.clean and not passes.store.holds(chunk):
                sees = self.schedule.clean_kv_range(chunk)
                passes.run_clean(chunk, clean[chunk], sees, dropped=self.settings.guidance is not None)

    # --- state -------------------------------------------------------------------------------------------------------

    def state(self) -> SamplerState:
        """Everything needed to go on from the last stage boundary, bit for bit."""
        return pack(self._progress, self.settings, self.schedule.total, self.seed, self.shot)

    def restore(self, state: SamplerState) -> None:
        """Go on where `state` was taken. Its prefix is taken over; `chunks` may be others as long as none has missed
        its entry into the window.

        Raises:
            InputError: the state is of another shot, schedule, size or length, or damaged.
        """
        self._set(unpack(state, self.settings, self._chunk_shape, self._chunks, self.device, self.shot))
        self._forget_keys()

    def _forget_keys(self) -> None:
        if self._passes.store is not None:
            self._passes.store.clear()

    def follow(self, seconds: int, latents: Sequence[Tensor]) -> None:
        """Go on behind seconds of the shot that are finished, where no state of theirs is left: they become the prefix.

        What comes fits them and is reproducible, but with a window above 1 it is not, bit for bit, what the run that
        made them would have gone on to: its next seconds had begun before these were clean.

        Args:
            seconds: how many are finished.
            latents: the last of them as they were emitted, (1, C, t, H, W) each: `SamplerSettings.prefix_reach`, or all
                where the model sees everything.

        Raises:
            InputError: their size is another.
        """
        before, width = self._progress, self._width
        first, offset = before.offset, before.offset + seconds
        chunks = {offset - len(latents) + i: chunk.to(self.device, torch.float32) for i, chunk in enumerate(latents)}
        if before.prefix_part is not None and first in chunks:  # its first frames were not emitted, or not as they are
            known = before.prefix_part.shape[2]
            chunks[first] = torch.cat([before.prefix_part, chunks[first][:, :, known - width :]], dim=2)
        for chunk, found in chunks.items():
            if tuple(found.shape) != self._chunk_shape:
                shape = tuple(found.shape)
                raise InputError(f"Second {chunk - first} has latents {shape}, not {self._chunk_shape}; redo from it.")
        clean = before.clean | chunks
        reach = Schedule(self.settings, offset).slots(0)
        clean = {chunk: found for chunk, found in clean.items() if chunk >= offset - reach}
        self._set(Progress(before.window[:, :, :0], offset=offset, kept=seconds, clean=clean))
        self._forget_keys()

    def bytes(self) -> int:
        """Bytes held between stages: latents in flight and within reach, and the store."""
        latents, store = [self._progress.window, *self._progress.clean.values()], self._passes.store
        return sum(t.numel() * t.element_size() for t in latents) + (store.bytes() if store else 0)
