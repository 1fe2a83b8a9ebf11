"""What a run will write, estimated before it begins: bytes per second of video, in its project's folder and at `out`.

States are the larger part. They are kept for every second of a finite run, because from them any second can be made
again exactly; an endless run keeps its newest ones. The estimate is plain arithmetic on the request and the model's
shapes, so that a folder without room is refused before weights are read.
"""

from __future__ import annotations

import errno
import shutil
from dataclasses import dataclass
from pathlib import Path

from magi_lite.errors import OutputError
from magi_lite.files import output_errors
from magi_lite.models import FPS, ModelSpec
from magi_lite.request.request import GenerationRequest
from magi_lite.sampling.schedule import Schedule
from magi_lite.sentences import count, size

_FLOAT = 4
"""Bytes of a number in latents, states and captions."""
_LETTERS_PER_TOKEN = 3
_SPARE_TOKENS = 16
"""Special tokens and the end token."""
VIDEO_BYTES_PER_PIXEL = 0.15
"""Of H.264 at crf 18: busy pictures; every 6 steps of crf halve it."""
ENDLESS_SECONDS = 60
"""An endless run should have room for its first minute."""


@dataclass(frozen=True)
class DiskUse:
    """Bytes that a second of video adds: its clean latents, the sampler's state, and its encoded frames once."""

    latents: int
    state: int
    video: int

    @property
    def project(self) -> int:
        """In the project's folder, where frames lie as a fragment and in the video."""
        return self.latents + self.state + 2 * self.video


def disk_use(request: GenerationRequest, model: ModelSpec) -> DiskUse:
    """What a second of the request's video takes."""
    pixels = request.width * request.height
    settings = model.sampling(request, request.window)
    chunk = model.vae.z_chans * settings.chunk_width * pixels // model.vae.patch_size**2 * _FLOAT
    longest = max((len(prompt) for prompt in request.timeline.prompts_from(0)), default=0)
    tokens = min(model.dit.caption_max_length, longest // _LETTERS_PER_TOKEN + _SPARE_TOKENS)
    seconds = ENDLESS_SECONDS if request.seconds is None else request.seconds
    seen = seconds // 2 if settings.sees_everything else Schedule(settings).reach
    state = (request.window + seen) * chunk + request.window * tokens * model.dit.caption_channels * _FLOAT
    video = int(VIDEO_BYTES_PER_PIXEL * 2 ** ((18 - request.crf) / 6) * pixels * FPS)
    return DiskUse(chunk, state, video)


def check_room(request: GenerationRequest, model: ModelSpec, folder: Path, finished: int = 0) -> None:
    """Refuse a run whose files will not fit.

    Args:
        folder: where the project lies or will lie; it may not exist yet.
        finished: seconds that are on disk already.

    Raises:
        OutputError: one sentence, with what is needed and what is free.
    """
    use, seconds = disk_use(request, model), ENDLESS_SECONDS if request.seconds is None else request.seconds
    new = max(0, seconds - finished)
    if not new:
        return
    needed = {_existing(folder): new * use.project}
    if request.out is not None:
        place = _existing(Path(request.out).parent)
        same = next((known for known in needed if known.stat().st_dev == place.stat().st_dev), place)
        # the whole video once while it grows (a link where it can be one), and once more when its index goes in front
        needed[same] = needed.get(same, 0) + seconds * use.video * (1 if same in needed else 2)
    for place, wanted in needed.items():
        with output_errors(place):
            free = shutil.disk_usage(place).free
        if free < wanted:
            raise OutputError(
                f"{count(seconds, 'second')} of this size {'needs' if seconds == 1 else 'need'} about {size(wanted)} "
                f"and {place} has {size(free)} free; free some space, choose another folder, or ask for less."
            )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above that exists."""
    folder = Path(folder).absolute()
    with output_errors(folder):
        for place in (folder, *folder.parents):
            if place.is_dir():
                return place
        raise FileNotFoundError(errno.ENOENT, "no such drive")
