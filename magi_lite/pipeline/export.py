"""A finished run as a better file: its latents are decoded again, second by second, and written in another format.

Nothing is generated: only the autoencoder is loaded, and one second is in memory at a time. The plain MP4 of whole
seconds, with or without sound, is not even decoded: the fragments of the growing video are copied, without torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magi_lite.errors import InputError, MagiLiteError, OutputError
from magi_lite.events import Event, Finished, PhaseStarted, Progress
from magi_lite.files import is_file, replacing
from magi_lite.machine import devices
from magi_lite.models import FPS, FRAMES_PER_LATENT
from magi_lite.planner.execution import Execution
from magi_lite.project import Project
from magi_lite.request.json import request_to_json
from magi_lite.request.request import GenerationRequest
from magi_lite.sentences import count
from magi_lite.video import labels
from magi_lite.video.clips import NOTHING, Whole, read_whole
from magi_lite.video.export import check_export, open_export
from magi_lite.video.formats import FORMATS, choose_format
from magi_lite.video.sound import Sound, check_sound, has_sound, lay_sound
from magi_lite.video.writer import VideoWriter, finalize
from magi_lite.weights.identity import autoencoder_identity
from magi_lite.weights.layout import ModelFiles
from magi_lite.weights.opening import open_model

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

COPIED = "h264"
"""The format that the growing video already has."""


def export(
    run: Path | str,
    to: Path | str,
    seconds: tuple[float, float] | float | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Path:
    """Write a finished run, or a part of it, as another file; see `exporting` for the arguments.

    Args:
        progress: called with an event after each second.

    Returns:
        The file, or the folder of pictures.
    """
    written = Path()
    for event in exporting(run, to, seconds, **options):
        if isinstance(event, Progress) and progress:
            progress(event)
        if isinstance(event, Finished):
            written = event.video
    return written


def exporting(
    run: Path | str,
    to: Path | str,
    seconds: tuple[float, float] | float | None = None,
    *,
    format: str | None = None,
    audio: Path | str | None = None,
    clip: bool = False,
    overwrite: bool = False,
    metadata: bool | None = None,
) -> Iterator[Event]:
    """Write a finished run, or a part of it, as another file.

    Args:
        run: a project's folder, or the video in it.
        to: a file or folder whose ending says the format, or the name of one of `video.formats.FORMATS`; the file then
            lies in the project's folder.
        seconds: from and to, to a frame; a single number: the frame shown then. None: all that is finished.
        format: where the ending leaves a choice, as .mp4 does between h264, hevc and av1.
        audio: a file whose sound is laid under the video, from its start.
        clip: whether the clip that the run continues stands in front, with its sound; `audio` begins behind it.
        overwrite: whether a file that is there is replaced.
        metadata: whether the settings are kept in the file; None: as the run was asked to.

    Yields:
        PhaseStarted, Progress after each second, Finished.

    Raises:
        InputError: no such run, second or format; OutputError: the file cannot be written; CheckpointError: the model
        is not there.
    """
    began = time.monotonic()
    with Project.open(_folder(Path(run))) as project:
        name, target = choose_format(to, format)
        target = target or project.folder / f"{project.name}-{name}{FORMATS[name].suffix}"
        if project.owns(target):
            raise OutputError(f"{target} is a part of the run itself; choose another name.")
        if seconds is None:
            project.check_whole()
        else:
            project.check_whole(math.ceil(seconds[1] if isinstance(seconds, tuple) else seconds + _ROUNDED / FPS))
        first, end = _frames(project, seconds, name)
        request = project.request
        settings = None
        if request.embed_settings if metadata is None else metadata:
            settings = request_to_json(request, paths=False)
        sound = [] if audio is None else [Sound(Path(audio))]
        size = (request.width, request.height)
        check_export(name, target, size, overwrite)
        if audio is not None:
            check_sound(Path(audio))
        in_front = _clip_of(project, first, name) if clip else None
        chunks = _chunks(project, first, end)
        if not in_front and name == COPIED and target.suffix.lower() == ".mp4" and _whole(chunks):
            yield PhaseStarted("finish", f"Copying {count(len(chunks), 'second')} to {target.name}")
            _copy(project, [index for index, _, _ in chunks], target, settings, sound)
        else:
            files = open_model(request.model, request.models_folder)
            project.check_autoencoder(autoencoder_identity(files.vae))
            yield PhaseStarted("load", f"Loading the autoencoder of {request.model}")
            with _decoder(files, request) as decode:
                before = NOTHING if in_front is None else read_whole(in_front, size, request.fit)
                if in_front is not None:
                    sound = _with_sound_of(in_front, before, sound, name)
                length = (before.count + end - first) / FPS
                yield PhaseStarted("decode", f"Writing {length:.4g} s as {FORMATS[name].summary}")
                with open_export(name, target, size, settings, sound, overwrite) as writer:
                    working, seconds_before = time.monotonic(), before.count // FPS
                    total = seconds_before + len(chunks)
                    for number, shown in enumerate(before.frames, 1):
                        writer.write(_as_decoded(shown))
                        if number % FPS == 0:
                            yield _progress(number // FPS, total, 0, time.monotonic() - working)
                    for done, (index, start, stop) in enumerate(chunks, seconds_before + 1):
                        for frame in decode(project.read_latents(index))[start:stop]:
                            writer.write(frame)
                        yield _progress(done, total, index, time.monotonic() - working)
        yield Finished(target, project.folder, len(chunks), time.monotonic() - began)


def _clip_of(project: Project, first: int, name: str) -> Path:
    """The copy of the clip that a run continues.

    Raises:
        InputError: it continues none, or the clip cannot stand in front of what is asked for.
    """
    kept = project.request.video
    if kept is None:
        raise InputError(f"{project.name} continues no clip; leave out --clip.")
    if not kept.is_file():
        raise InputError(f"The clip {kept.name} that {project.name} continues is gone; leave out --clip.")
    if first or FORMATS[name].kind == "frame":
        raise InputError("The clip stands in front of second 0; ask for a range from 0 on, as a video.")
    return kept


def _with_sound_of(clip: Path, whole: Whole, audio: list[Sound], name: str) -> list[Sound]:
    """The sound under a clip and what comes behind it; nothing where neither has any, or the format has none."""
    heard = whole.start is not None and has_sound(clip)
    if not FORMATS[name].sound or not (heard or audio):
        return audio
    return [Sound(clip if heard else None, whole.start, whole.count / FPS), *audio]


def _as_decoded(pixels: np.ndarray) -> np.ndarray:
    """Bytes as the decoder would give them, so that they come out as the same bytes, which are truncated."""
    return (pixels.astype("float32") + 0.25) / 127.5 - 1


def _folder(run: Path) -> Path:
    """The project's folder, also where its video is named."""
    return run.parent if is_file(run) else run


_ROUNDED = 0.02
"""Frames by which a time may miss a frame's border: times are shown and typed in thousandths of a second."""


def _frames(project: Project, seconds: tuple[float, float] | float | None, name: str) -> tuple[int, int]:
    """First frame and the one behind the last, of what is asked for.

    Raises:
        InputError: nothing is finished, or the range lies outside of it.
    """
    total = sum(_frame_counts(project))
    if not total:
        raise InputError(f"{project.name} has no finished second yet; let it run until the first one is done.")
    one = FORMATS[name].kind == "frame"
    if seconds is None:
        start, stop = 0.0, total / FPS
    elif isinstance(seconds, tuple):
        start, stop = seconds
    else:
        start, stop, one = seconds, seconds, True
    # As players show them: a moment belongs to the frame that has begun, the video's end to its last one, and a range
    # has every frame that it touches.
    first = math.floor(start * FPS + _ROUNDED)
    end = math.ceil(stop * FPS - _ROUNDED)
    if one:
        first = min(first, total - 1) if start * FPS <= total else first
        end = first + 1
    if start < stop and 0 <= first == end <= total:
        raise InputError(f"There is no frame from second {start:g} to {stop:g}; ask for at least 1/{FPS} of a second.")
    if not 0 <= first < end <= total:
        raise InputError(
            f"{project.name} has {count(total / FPS, 'finished second')}; ask for a range inside 0-{total / FPS:.4g}."
        )
    return first, end


def _frame_counts(project: Project) -> list[int]:
    """Frames of each finished second; a single latent frame is a single frame."""
    counts = []
    for index in range(project.chunks):
        latent_frames = project.latent_shape(index)[2]
        counts.append(1 if latent_frames == 1 else FRAMES_PER_LATENT * latent_frames)
    return counts


def _chunks(project: Project, first: int, end: int) -> list[tuple[int, int, int | None]]:
    """(second, first frame of it, frame behind the last; None: to its end) of all seconds that the range touches."""
    found: list[tuple[int, int, int | None]] = []
    before = 0
    for index, frames in enumerate(_frame_counts(project)):
        start, stop = max(0, first - before), min(frames, end - before)
        if start < stop:
            found.append((index, start, None if stop == frames else stop))
        before += frames
    return found


def _whole(chunks: list[tuple[int, int, int | None]]) -> bool:
    return all(start == 0 and stop is None for _, start, stop in chunks)


def _copy(
    project: Project, seconds: list[int], target: Path, settings: dict[str, Any] | None, sound: Sequence[Sound]
) -> None:
    """The fragments of some seconds as an ordinary MP4, with sound under them where there is some."""
    request = project.request
    with replacing(target) as temporary:
        size, parameters = (request.width, request.height), project.parameters()
        with VideoWriter(temporary, size, FPS, request.crf, settings, parameters=parameters) as writer:
            for index in seconds:
                writer.append_fragment(project.read_fragment(index))
        finalize(temporary)
        if sound:
            lay_sound(temporary, sound, FORMATS[COPIED].sound, FORMATS[COPIED].container)
            with temporary.open("r+b") as file:
                labels.label_mp4(file, labels.xmp())


@contextmanager
def _decoder(files: ModelFiles, request: GenerationRequest) -> Iterator[Callable[[Tensor], np.ndarray]]:
    """Latents (1, 16, t, h, w) to frames (T, H, W, 3) float32 in [-1, 1], by the model's autoencoder alone."""
    import torch

    from magi_lite.pipeline.engine import plan_for
    from magi_lite.vae.tiling import decode_tiled
    from magi_lite.weights.loader import DTYPES, load_vae
    from magi_lite.weights.residency import Residency, drop_weights

    try:
        planned = plan_for(files, request).execution
        execution = replace(planned, vae="cpu" if planned.vae == "cpu" else "decoder")
    except MagiLiteError:  # the video itself would not fit here now; its autoencoder does
        execution = Execution(vae="cpu")
    with Residency(execution) as home:
        vae = home.place_vae(load_vae(files.vae, DTYPES[execution.dtype]))

        def decode(latents: Tensor) -> np.ndarray:
            with torch.inference_mode(), home.vae_at_work("decoder") as network:
                frames = decode_tiled(network, latents.to(home.vae_device), tile_batch=execution.vae_tile_batch)
                return frames[0].permute(1, 2, 3, 0).float().cpu().numpy()

        try:
            yield decode
        finally:
            drop_weights(vae)
            devices.free_memory()


def _progress(done: int, total: int, index: int, elapsed: float) -> Progress:
    """How far an export is, with the time that is left."""
    pace = elapsed / done
    return Progress(
        chunk=index, chunks=total, step=1, steps=1, fraction=done / total, eta_seconds=pace * (total - done),
        seconds_per_chunk=pace,
    )  # fmt: skip
