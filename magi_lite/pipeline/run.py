"""One run of a project, from its plan to its last second.

plan -> captions -> weights -> shot after shot: prefix -> chunk after chunk -> done

`Run` holds what the steps share; each step yields its events.
"""

from __future__ import annotations

import contextlib
import math
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from magi_lite.clock import Clock
from magi_lite.control import RunControl
from magi_lite.errors import InputError, LoadCancelled, MagiLiteError
from magi_lite.events import (
    ChunkFinished,
    Event,
    Finished,
    MovingPreview,
    Notice,
    PhaseStarted,
    PlanReady,
    Preview,
    Progress,
    Redirected,
    Stopped,
)
from magi_lite.machine import devices
from magi_lite.models import CHUNK_LATENT_FRAMES, PIXELS_PER_LATENT
from magi_lite.pipeline.background import Background, InOrder
from magi_lite.pipeline.colours import ColourMap
from magi_lite.pipeline.decoding import psnr
from magi_lite.pipeline.delivery import Delivery
from magi_lite.pipeline.engine import (
    Engine,
    convert_text_encoder,
    converts_text_encoder,
    decoder,
    engine,
    plan_for,
    recorded,
)
from magi_lite.pipeline.prefix import (
    PrefixSource,
    check_kept,
    look_at_pictures,
    picture_of,
    prefix_pixels,
    read_prefix,
    save_prefix,
)
from magi_lite.pipeline.prompts import PromptBank, prompt_bank, text_encoder_is_small
from magi_lite.pipeline.resume import ResumePoint, find_resume_point
from magi_lite.planner import Phase, Plan, learned
from magi_lite.project import Project
from magi_lite.request.checks import check_pictures, check_prompts, notices
from magi_lite.request.request import GenerationRequest
from magi_lite.sampling.results import Caption, CleanChunk, StageDone, StepDone
from magi_lite.sampling.sampler import Sampler
from magi_lite.sentences import count
from magi_lite.text.vocabulary import Vocabulary
from magi_lite.timeline import Shot, Timeline
from magi_lite.timeline.edit import splice
from magi_lite.weights.assign import unchanged
from magi_lite.weights.identity import autoencoder_identity
from magi_lite.weights.layout import ModelFiles
from magi_lite.weights.loader import check_model
from magi_lite.weights.opening import open_model

ENDLESS_STATES = 256
"""States kept of an endless run: how far back it can be redone exactly."""
CONVERSION_STEP = 10
"""Per cent of converting the text encoder after which it is shown again."""
PREVIEW_EVERY = 1.5
"""Seconds between previews: often enough to watch."""
PREVIEW_SHARE = 0.05
"""Of the time, at most, that decoding previews takes: on a processor one takes as long as a step."""


@dataclass(frozen=True, eq=False)
class Second:
    """A second that came to the disk: its latents (1, C, t, h, w) and frames (T, H, W, 3) uint8, in host memory."""

    index: int
    latents: Tensor
    frames: np.ndarray


class Run:
    """One run of a project: what its steps share."""

    def __init__(self, project: Project, control: RunControl, record: Path | None = None) -> None:
        self.project, self.control, self.record = project, control, record
        self.timeline: Timeline = self.request.timeline
        self.delivery = Delivery(project, self.request.out)
        self.clock = Clock()
        self.colours = ColourMap()
        self.still_seconds = 0.0
        """What decoding the last still took."""
        self.noted: set[str] = set()
        """Notices about prompts that were given, so that each is given once."""
        self.phase: Phase | None = None
        """What takes memory now; where it runs out, the smaller plan must be smaller here."""
        self.redirection: Timeline | None = None
        """A timeline to apply once its prompts are encoded."""
        self.encoder = Background()
        self.writing = InOrder()
        """Finished seconds and states on their way to the disk, in the order in which they were made."""
        self.gap_filled = False
        """Whether the second just made stands before finished ones: the sampler then skips them."""
        self.gap = False
        """Whether finished seconds lie behind one that is not; looked up while nothing is being written."""
        self.ended = False
        """Whether the run has come to its end, and not just to that of a shot."""
        self.source: PrefixSource | None = None
        """What the shot that begins starts from, until it is encoded."""
        self.other_end = False
        """Whether new prompts gave the shot in the making another end, so that its sampler has to be made anew."""

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Mark the block as `phase`; an error leaves the mark, so that the handler knows where memory ran out."""
        outer, self.phase = self.phase, phase
        yield
        self.phase = outer

    @property
    def request(self) -> GenerationRequest:
        return self.project.request

    @cached_property
    def files(self) -> ModelFiles:
        """The model, whole; looked for only when there is something to make."""
        files = open_model(self.request.model, self.request.models_folder)
        check_model(files)
        self.project.made_with(autoencoder_identity(files.vae))
        return files

    def make_plan(self) -> Plan:
        """Memory and time of the run on this machine."""
        return plan_for(self.files, self.request)

    def execute(self, plan: Plan) -> Iterator[Event]:
        """The whole run, from its plan to its last second, or to a stop while models are loaded."""
        try:
            yield from self._execute(plan)
        except LoadCancelled:
            yield from self.leave()

    def _execute(self, plan: Plan) -> Iterator[Event]:
        self.clock = Clock()  # another plan has another pace
        yield PlanReady(plan)
        yield from self.decode_missing(plan)
        if self.complete or self.leaving:
            if self.complete:
                yield self.finished()
            else:
                yield from self.leave()
            return
        if not self.files.trained:
            yield Notice(
                "The demo model in use is untrained: its pictures are noise that shows the app at work.", "warning"
            )
        start = find_resume_point(self.project)
        if start.notice:
            yield Notice(start.notice)
        yield from self.look_at_source(start)

        bank = prompt_bank(self.files, plan.execution, lambda: self.leaving)
        yield from self.convert_text_encoder(plan, bank)
        began, reads_text_encoder = time.monotonic(), bool(bank.missing(self.upcoming_prompts(self.timeline)))
        yield from self.encode_prompts(bank)
        if not self.leaving:
            yield PhaseStarted("load", f"Loading {self.files.spec.name}")
        if self.leaving:
            yield from self.leave()
            return
        with (
            self.during("denoise"),
            engine(self.files, plan.execution, lambda: self.leaving) as networks,
            recorded(networks, self.record),
            self.encoder,
            self.writing,
            self.learning(plan),
        ):
            if reads_text_encoder:
                learned.learn_load(plan, time.monotonic() - began)
            for sentence in networks.notices:
                yield Notice(sentence, "warning")
            while True:
                yield from self.encode_prefix(start, networks)
                if self.leaving:
                    yield from self.leave()
                    return
                yield PhaseStarted("denoise", f"Making the {'next' if self.project.chunks else 'first'} second")
                yield from self.make_shot(start, networks, plan, bank)
                if self.ended:
                    return
                start = find_resume_point(self.project)
                yield from self.look_at_source(start)

    def make_shot(self, start: ResumePoint, networks: Engine, plan: Plan, bank: PromptBank) -> Iterator[Event]:
        """The rest of one shot; returns before its end where the sampler has to be made anew."""
        sampler = self.make_sampler(networks, plan, bank, start)
        self.gap = self.project.seconds.has_gap(self.request.seconds)
        if self.gap_filled or self.clock.seconds_per_step is None:
            self.clock = Clock(self.steps_before(start.shot) + sampler.steps_done)
        self.gap_filled = self.other_end = False
        yield from self.denoise(sampler, networks, bank)

    @contextlib.contextmanager
    def learning(self, plan: Plan) -> Iterator[None]:
        """Remember the pace of what is made inside, however it ends: once, so that many shots weigh as one run."""
        try:
            yield
        finally:
            learned.learn(plan, self.clock)

    def decode_missing(self, plan: Plan) -> Iterator[Event]:
        """Decode seconds whose latents are on disk and whose frames are not: a crash or a damaged file left them so."""
        second = self.undecoded()
        if second is None:
            return
        yield PhaseStarted("decode", f"Decoding second {second}")
        with self.during("decode"), decoder(self.files, plan.execution) as decode:
            while second is not None:
                frames = decode(self.project.seconds.read_latents(second))
                self.project.write_chunk(second, self.project.seconds.read_latents(second), frames)
                self.delivery.update()
                yield ChunkFinished(second, frames, self.clock.lap())
                second = None if self.leaving else self.undecoded()

    def undecoded(self) -> int | None:
        """The next second to decode, if the run still wants it."""
        second, wanted = self.project.seconds.undecoded(), self.request.seconds
        return second if second is not None and (wanted is None or second < wanted) else None

    # --- what the sampler needs ------------------------------------------------------------------------------------

    def convert_text_encoder(self, plan: Plan, bank: PromptBank) -> Iterator[Event]:
        """Make the 16-bit copy of published text encoder weights with the first prompt that needs them; takes minutes.

        Raises:
            CheckpointError, OutputError, LoadCancelled: as `t5.load_t5`.
        """
        if self.leaving or not converts_text_encoder(self.files, plan.execution):
            return
        if not bank.missing(self.upcoming_prompts(self.timeline)):
            return
        percents: queue.SimpleQueue[int] = queue.SimpleQueue()
        shown = 0
        yield PhaseStarted("text", "Converting the text encoder to 16 bits, once")
        with self.during("text"), Background() as thread:
            thread.start(
                lambda: convert_text_encoder(
                    self.files, lambda done, total: percents.put(100 * done // max(1, total)), lambda: self.leaving
                )
            )
            while not thread.idle or not percents.empty():
                with contextlib.suppress(queue.Empty):
                    percent = percents.get(timeout=0.1)
                    if percent >= shown + CONVERSION_STEP:
                        shown = percent - percent % CONVERSION_STEP
                        yield PhaseStarted("text", f"Converting the text encoder to 16 bits, once: {shown} %")
            thread.result()

    def encode_prompts(self, bank: PromptBank) -> Iterator[Event]:
        """Encode the prompts that are not cached, all at once: the text encoder is loaded for them and freed."""
        prompts = self.upcoming_prompts(self.timeline)
        missing = bank.missing(prompts)
        if missing and not self.leaving:
            yield PhaseStarted("text", f"Encoding {count(len(missing), 'prompt')}")
            with self.during("text"):
                bank.prepare(prompts)
        losses = bank.losses(prompts, self.request.tokens, self.timeline.global_prompt)
        for message in (*notices(self.timeline), *losses):
            if message not in self.noted:
                self.noted.add(message)
                yield Notice(message, "warning")

    def look_at_source(self, start: ResumePoint) -> Iterator[Event]:
        """Find out whether a shot that begins can start from its picture or clip, and what is to be known of it."""
        self.source = None
        if start.state is None and read_prefix(self.project, start.shot) is None:
            check_kept(self.request, start.shot)
            self.source = prefix_pixels(self.request, self.files.spec.sampler.prefix_reach, start.shot)
        if self.source and self.source.notice:
            yield Notice(self.source.notice)

    def encode_prefix(self, start: ResumePoint, networks: Engine) -> Iterator[Event]:
        """Encode the picture or clip of a shot that begins, unless an earlier run did."""
        source, self.source = self.source, None
        if source is None or self.leaving:
            return
        what = "picture" if picture_of(self.request, start.shot) else "clip"
        yield PhaseStarted("encode", f"Encoding the {what}")
        with self.during("encode"):
            prefix = networks.encode(source.pixels)
        save_prefix(self.project, start.shot, prefix)
        yield from self.look_at_prefix(what, source.pixels, prefix, networks)

    def look_at_prefix(self, what: str, pixels: np.ndarray, latents: Tensor, networks: Engine) -> Iterator[Event]:
        """Say so where a small model's autoencoder cannot hold what the video starts from."""
        vocabulary = Vocabulary.beside(self.files.text_encoder)
        if vocabulary is None or vocabulary.picture_decibels is None or not self.files.trained:
            return
        with self.during("decode"):
            kept = networks.decode(latents[:, :, -CHUNK_LATENT_FRAMES:])
        decibels = psnr(kept, pixels[-len(kept) :])
        if decibels < vocabulary.picture_decibels:
            yield Notice(
                f"This model cannot hold the {what} well: its autoencoder keeps {math.floor(10 * decibels) / 10} dB of "
                f"it, and {vocabulary.picture_decibels:g} dB look right; one with fewer fine details suits it better. "
                f"{vocabulary.summary()}",
                "warning",
            )

    def upcoming_prompts(self, timeline: Timeline) -> list[str]:
        """Every prompt of the seconds still to be made."""
        return list(timeline.prompts_from(self.project.chunks, self.request.seconds))

    def make_sampler(self, networks: Engine, plan: Plan, bank: PromptBank, start: ResumePoint) -> Sampler:
        """The sampler of a shot, placed where the run goes on."""
        request, shot = self.request, start.shot
        prefix = None if start.state else read_prefix(self.project, shot)

        def caption(chunk: int, _: int | None) -> Caption:
            """The caption of a chunk that enters the window.

            The seconds that remain are those of the video, not of the shot: a cut later on changes no second before it.
            """
            second = sampler.second(chunk)
            mix = self.timeline.prompt_for(second, self.request.seconds)
            length = self.project.length_asked(second)
            return bank.caption(mix, self.request.tokens, None if length is None else length - second)

        with torch.inference_mode():
            sampler = Sampler(
                networks.dit,
                self.files.spec.sampling(request, plan.window),
                latent_size=(request.height // PIXELS_PER_LATENT, request.width // PIXELS_PER_LATENT),
                chunks=shot.length,
                shot=shot.start,
                caption=caption,
                null_caption=networks.null_caption(),
                seed=request.seed,
                prefix=prefix,
                emit_prefix=request.image_prefix,
                device=networks.device,
                dtype=networks.dit.dtype,
                store_factory=networks.store,
            )
            start.place(sampler, self.project)
        return sampler

    # --- second after second ---------------------------------------------------------------------------------------

    def denoise(self, sampler: Sampler, networks: Engine, bank: PromptBank) -> Iterator[Event]:
        """Drive the sampler, write finished chunks, and follow the control between steps."""
        last_preview = self.clock.elapsed
        shot = self.timeline.shot_of(sampler.shot, self.request.seconds)
        steps = sampler.run()
        while True:
            with torch.inference_mode(), unchanged(networks.dit):
                result = next(steps, None)
            yield from self.written()
            match result:
                case None:
                    break
                case StepDone():
                    self.clock.step(self.steps_before(shot) + result.steps_done)
                    yield self.progress(result, shot)
                    if self.clock.elapsed - last_preview > self.preview_pause:
                        yield from self.preview(result, networks)
                        last_preview = self.clock.elapsed
                    yield from self.redirect(result.stage + 1, shot, bank)
                    if self.control.stop_requested and result.step + 1 < result.steps_in_stage:  # else at its end
                        yield from self.written(wait=True)
                        yield from self.leave()
                        return
                case CleanChunk():
                    yield from self.finish_chunk(result, networks)
                    if self.gap_filled and self.complete:
                        break
                    if self.gap_filled:
                        return
                case StageDone():
                    if not self.gap:  # else the states behind it belong to the kept seconds
                        self.save_state(result.stage, sampler, networks)
                    if self.leaving or self.other_end:
                        yield from self.written(wait=True)
                    if self.leaving and not self.complete:
                        yield from self.leave()
                        return
                    if self.other_end:
                        return
        yield from self.written(wait=True)
        if not self.complete:  # another shot follows
            return
        if self.redirection is not None:
            yield Notice("The new prompts were not applied: the video was done before they were encoded.", "warning")
        yield self.finished()

    def finish_chunk(self, clean: CleanChunk, networks: Engine) -> Iterator[Event]:
        """Decode a clean chunk and put it on disk, unless an earlier run did.

        At most one second is decoded and written while the next is made, so that they do not pile up in memory.
        """
        yield from self.written(wait=True)
        if clean.index < self.project.chunks:
            return
        latents = clean.latents.cpu()
        decode, decoded = networks.decoding(clean.latents), None
        beside = networks.writes_beside and not self.gap
        if not (beside and networks.decodes_beside):
            with self.during("decode"):
                decoded = decode()

        def write() -> Second:
            frames = decode() if decoded is None else decoded
            self.project.write_chunk(clean.index, latents, frames)
            self.delivery.update()
            return Second(clean.index, latents, frames)

        self.writing.put(write, beside=beside)
        if not beside:
            self.gap = self.project.seconds.has_gap(self.request.seconds)
            self.gap_filled = self.project.chunks > clean.index + 1
            yield from self.written()

    def save_state(self, stage: int, sampler: Sampler, networks: Engine) -> None:
        """Put the sampler's state on disk, behind the second that it let go."""
        state = sampler.state()

        def write() -> None:
            self.project.save_state(stage, state)
            if self.request.seconds is None:
                self.project.prune_states(ENDLESS_STATES)

        self.writing.put(write, beside=networks.writes_beside)

    def written(self, *, wait: bool = False) -> Iterator[Event]:
        """Tell of the seconds that have come to the disk since it was last asked; wait: of all that are to."""
        for second in self.writing.results(wait=wait):
            if second is not None:  # else it was a state
                self.colours.learn(second.latents, second.frames)
                yield ChunkFinished(second.index, second.frames, self.clock.lap())

    @property
    def preview_pause(self) -> float:
        """Seconds between this preview and the next: longer while stills are decoded and that is dear."""
        return PREVIEW_EVERY if self.colours.ready else max(PREVIEW_EVERY, self.still_seconds / PREVIEW_SHARE)

    def preview(self, step: StepDone, networks: Engine) -> Iterator[Event]:
        """What the unfinished seconds look like so far; until one is finished, a still of the oldest."""
        if self.colours.ready:
            moving = [self.colours.pictures(step.forecast(place)) for place in range(len(step.remaining))]
            yield MovingPreview(step.oldest_chunk, np.stack(moving))
            return
        if not (networks.has_stills and self.writing.idle):  # else the decoder is at work, with memory for one of it
            return
        devices.synchronize()  # what is still being computed is no cost of the picture's
        began = self.clock.elapsed
        image = networks.preview(step.preview)
        self.still_seconds = self.clock.elapsed - began
        if image is not None:
            yield Preview(step.oldest_chunk, image)

    def steps_before(self, shot: Shot) -> int:
        """Steps that the shots before this one take."""
        return sum(self.steps_of(one) for one in self.timeline.shots(self.request.seconds) if one.start < shot.start)

    def steps_of(self, shot: Shot) -> int:
        """Steps that a shot takes: the window fills and empties once."""
        window = max(1, self.request.window)
        return ((shot.length or 0) + window - 1) * (self.request.steps // window)

    def progress(self, step: StepDone, shot: Shot) -> Progress:
        """How far the run is, with the time that is left."""
        seconds, window = self.request.seconds, max(1, self.request.window)
        per_chunk = self.request.steps // window
        total = None if seconds is None else sum(map(self.steps_of, self.timeline.shots(seconds)))
        done = self.steps_before(shot) + step.steps_done
        left = per_chunk - step.step - 1 if total is None else total - done
        pace = self.clock.seconds_per_step
        return Progress(
            chunk=step.oldest_chunk,
            chunks=seconds,
            step=step.step + 1,
            steps=step.steps_in_stage,
            fraction=None if total is None else done / total,
            eta_seconds=self.clock.left(left),
            seconds_per_chunk=None if pace is None else pace * per_chunk,
            started=shot.until(step.stage + 1),
        )

    def redirect(self, first: int, shot: Shot, bank: PromptBank) -> Iterator[Event]:
        """Apply a new timeline to the seconds that have not started, as soon as its prompts are encoded.

        A large text encoder works beside the run, so that the video does not wait for it; the timeline then applies
        from the first second that is still free.

        Args:
            first: the next second to start in the shot, were it without end.
            shot: the one in the making.
        """
        newer = self.control.take_timeline()
        self.redirection = self.redirection if newer is None else newer
        if self.redirection is None or not self.encoder.idle:
            return
        try:
            self.encoder.result()
            first = shot.until(first)
            edited = self.redirected(self.redirection, first)
        except MagiLiteError as error:
            self.redirection = None
            yield _not_applied(error)
            return
        prompts = self.upcoming_prompts(edited)
        missing = bank.missing(prompts)
        if missing and not text_encoder_is_small(self.files):
            yield PhaseStarted("text", f"Encoding {count(len(missing), 'prompt')} while the video goes on")
            self.encoder.start(lambda: bank.prepare(prompts))
            return
        yield from self.written(wait=True)  # one thread at a time changes the run's folder
        self.project.edit_timeline(self.redirection, first)
        self.timeline, self.redirection = self.request.timeline, None
        self.other_end = self.timeline.shot_of(shot.start, self.request.seconds).end != shot.end
        yield Redirected(first)
        yield from self.encode_prompts(bank)
        yield PhaseStarted("denoise", f"Applied from second {first}")

    def redirected(self, newer: Timeline, first: int) -> Timeline:
        """The timeline with `newer` from second `first` on.

        Raises:
            MagiLiteError: no second is left for it, or its prompts cannot be.
        """
        if self.request.seconds is not None and first >= self.request.seconds:
            raise InputError("every second of this video has started")
        edited = splice(self.timeline, first, newer)
        asked = replace(self.request, timeline=edited)
        check_prompts(asked)
        check_pictures(asked)
        look_at_pictures(asked, first)
        return edited

    # --- endings -----------------------------------------------------------------------------------------------------

    @property
    def leaving(self) -> bool:
        """Whether a stop or a pause was asked for."""
        return self.control.stop_requested or self.control.pause_requested

    @property
    def complete(self) -> bool:
        """Whether all that was asked for is on disk."""
        return self.request.seconds is not None and self.project.chunks >= self.request.seconds

    def finished(self) -> Finished:
        """Record that the run is complete."""
        self.ended = True
        self.project.set_status("finished")
        self.delivery.finish()
        return Finished(self.delivery.video, self.project.folder, self.project.chunks, self.clock.elapsed)

    def leave(self) -> Iterator[Event]:
        """Record that the run was stopped or paused; its finished seconds are a whole video.

        New prompts that are still being encoded are put on record: the run goes on with them.
        """
        self.ended = True
        newer, self.redirection = self.control.take_timeline() or self.redirection, None
        if newer is not None:
            try:
                if self.encoder.idle:
                    self.encoder.result()
                first = self.project.started
                self.redirected(newer, first)
                self.project.edit_timeline(newer, first)
                yield Redirected(first)
            except MagiLiteError as error:
                yield _not_applied(error)
        reason: Literal["stopped", "paused"] = "stopped" if self.control.stop_requested else "paused"
        self.project.set_status(reason)
        self.delivery.finish()
        video = self.delivery.video if self.project.chunks else None
        yield Stopped(video, self.project.folder, self.project.chunks, reason)


def _not_applied(error: MagiLiteError) -> Notice:
    return Notice(f"The new prompts were not applied: {str(error).rstrip('.')}.", "warning")
