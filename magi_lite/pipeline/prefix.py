"""The prefix of a shot: latents of a picture; of the first shot also of the tail of a clip, or of an earlier run.

Once encoded, a prefix is kept in the project, so that a shot that starts again begins with the very same bits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from magi_lite.errors import InputError, MediaError
from magi_lite.models import CHUNK_LATENT_FRAMES, FPS, FRAMES_PER_LATENT
from magi_lite.project import PICTURE_NAME, PREFIX_NAME, Project
from magi_lite.project.folder import move_aside
from magi_lite.project.tensors import Damaged, load_tensors, save_tensors, short_digest
from magi_lite.request.checks import content_hash
from magi_lite.request.request import GenerationRequest
from magi_lite.sentences import count
from magi_lite.timeline import Shot

_SOURCE = "source"
"""Entry of a kept prefix's header, see `_source_of`; earlier versions wrote none."""


@dataclass(frozen=True, eq=False)
class PrefixSource:
    """What a shot starts from: `pixels` (T, H, W, 3) uint8, and what the user should know of it, if anything."""

    pixels: np.ndarray
    notice: str = ""


def picture_of(request: GenerationRequest, shot: Shot) -> Path | None:
    """The picture that a shot starts from: its block's, or the request's own."""
    return shot.image if shot.start or shot.image else request.image


def prefix_pixels(request: GenerationRequest, reach: int, shot: Shot | None = None) -> PrefixSource | None:
    """The picture (1 frame) or the tail of the clip (whole seconds) that a shot starts from, or None.

    A clip is read from its end, as many whole seconds as it has and the model can see. One shorter than a second is
    filled up to one by holding its first frame. The road not taken, the published one for a prefix that ends inside a
    chunk, would make the first new second shorter by the clip's length, and every prompt after it late.

    Args:
        reach: chunks before the first new one that the model sees (`SamplerSettings.prefix_reach`).
        shot: None: the first one.

    Raises:
        MediaError: the file cannot be read, or the clip is too short.
    """
    size = (request.width, request.height)
    shot = shot or request.timeline.shot_of(0, request.seconds)
    image = picture_of(request, shot)
    if image is not None:
        from magi_lite.video.images import is_animated, load_image

        pixels = load_image(Path(image), size, request.fit)[None]
        if is_animated(image):
            note = f"{image.name} is animated; its first picture is used. As a clip it is continued."
            return PrefixSource(pixels, note)
        return PrefixSource(pixels)
    if request.video is None or shot.start:
        return None
    from magi_lite.video.clips import load_tail

    frames, name = load_tail(Path(request.video), size, request.fit, reach * FPS), Path(request.video).name
    if len(frames) < FRAMES_PER_LATENT:
        has = count(len(frames), "frame")
        raise MediaError(f"{name} has {has}; a clip to continue needs at least {FRAMES_PER_LATENT}.")
    missing = FPS - len(frames)
    if missing > 0:
        held = np.concatenate([np.repeat(frames[:1], missing, axis=0), frames])
        return PrefixSource(held, f"{name} is shorter than a second; its first frame is held to fill one.")
    return PrefixSource(frames[len(frames) % FPS :])


def check_kept(request: GenerationRequest, shot: Shot) -> None:
    """Refuse another file in the place of the picture or clip that a run's shot starts from.

    Raises:
        MediaError: it is one, or cannot be read.
    """
    path = picture_of(request, shot) or (None if shot.start else request.video)
    known = shot.image_sha256 if shot.image else request.source_sha256
    if path is not None and known is not None and content_hash(Path(path)) != known:
        raise MediaError(
            f"{path} is not the file of that name that the video was begun with; put that one back, or start a new "
            "video."
        )


def look_at_pictures(request: GenerationRequest, first: int = 0) -> None:
    """Refuse a block's picture that cannot be read, of shots that begin at second `first` or later.

    Raises:
        MediaError: one cannot.
    """
    later = [shot for shot in request.timeline.shots(request.seconds) if shot.image and shot.start >= first]
    for shot in {shot.image: shot for shot in later}.values():
        prefix_pixels(request, 0, shot)


def prefix_latents(request: GenerationRequest, reach: int) -> Tensor | None:
    """Latents to continue from where the clip is the video of a run, so that nothing is decoded and encoded again.

    Any other file that lies in a project's folder is a clip like all others.
    """
    video = None if request.video is None else Path(request.video).resolve()
    if video is None or not (video.parent / "project.json").is_file():
        return None
    try:
        with Project.open(video.parent) as source:
            if source.video.resolve() != video:
                return None
            source.check_whole(restore=False)  # else its latents end earlier than its video, or are not what was shown
            same_size = (source.request.width, source.request.height) == (request.width, request.height)
            if not source.chunks or not same_size or source.request.model != request.model:
                return None
            last = range(max(0, source.chunks - reach), source.chunks)
            latents = torch.cat([source.read_latents(second) for second in last], dim=2)
            whole = latents.shape[2] // CHUNK_LATENT_FRAMES * CHUNK_LATENT_FRAMES
            return latents[:, :, -whole:] if whole else None  # seconds of earlier versions may be short
    except InputError:  # damaged, or of another version: the clip is still one to look at
        return None


def save_prefix(project: Project, shot: Shot, latents: Tensor) -> None:
    """Keep an encoded prefix (1, C, frames, H, W) of a shot in the project."""
    path = _file(project, shot)
    assert path is not None
    save_tensors(path, {"latents": latents}, {_SOURCE: _source_of(project.request, shot)})


def read_prefix(project: Project, shot: Shot) -> Tensor | None:
    """The prefix that `save_prefix` kept, if any; one that is damaged, or another run's, is to be encoded again.

    Raises:
        InputError: it is damaged, and there is no input to encode it from.
    """
    path, request = _file(project, shot), project.request
    if path is None or not path.is_file():
        return None
    try:
        tensors, header = load_tensors(path)
        if header.get(_SOURCE, wanted := _source_of(request, shot)) != wanted:
            move_aside(path)
            project.log(f"{path.name} was of another run; it is kept in the folder damaged")
            return None
        return tensors["latents"]
    except (Damaged, KeyError):
        kept = picture_of(request, shot) or request.video
        if kept is None or not kept.is_file():
            raise InputError(f"{path} is damaged and what it was made from is gone; start a new video.") from None
        project.log(f"{path.name} is damaged; encoding {kept.name} again")
        return None


def _source_of(request: GenerationRequest, shot: Shot) -> str:
    """A short digest of what the latents of a shot's prefix depend on, by which another run's are known."""
    content = shot.image_sha256 if shot.image else request.source_sha256
    frame = [request.width, request.height, request.fit, Path(request.model).name]
    return short_digest(json.dumps([content, *frame]).encode())


def _file(project: Project, shot: Shot) -> Path | None:
    """Where a shot's prefix is kept; None for one that starts from nothing."""
    if shot.image is None:
        begins = not shot.start and (project.request.image or project.request.video)
        return project.folder / "inputs" / PREFIX_NAME if begins else None
    known = shot.image_sha256 or content_hash(shot.image)
    return project.folder / "inputs" / PICTURE_NAME.format(known[:12])
