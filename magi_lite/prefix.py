"""What comes before the first new second: a picture, the tail of a clip, or the latents of a video of ours.

Once encoded, a prefix is kept in the project, so that a run that starts again begins with the very same bits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from magi_lite.config import FPS, FRAMES_PER_LATENT, GenerationRequest
from magi_lite.errors import InputError, MediaError
from magi_lite.project import PREFIX_NAME, Project
from magi_lite.tensor_files import write_tensors

REACH = 4
"""Chunks before the first new one that the model can see: what of a clip is read."""


def prefix_pixels(request: GenerationRequest) -> np.ndarray | None:
    """The picture (1 frame) or the tail of the clip that a request starts from: (T, H, W, 3) uint8, or None.

    A clip is read from its end, whole seconds where it has them (so that every new second is whole too), as many as the
    model can see; one shorter than a second in whole latent frames.

    Raises:
        MediaError: the file cannot be read, or the clip is too short.
    """
    size = (request.width, request.height)
    if request.image is not None:
        from magi_lite.video.images import load_image

        return load_image(Path(request.image), size, request.fit)[None]
    if request.video is None:
        return None
    from magi_lite.video.clips import load_tail

    frames = load_tail(Path(request.video), size, request.fit, REACH * FPS)
    unit = FPS if len(frames) >= FPS else FRAMES_PER_LATENT
    usable = len(frames) // unit * unit
    if usable == 0:
        raise MediaError(f"{Path(request.video).name} has {len(frames)} frames; a clip to continue needs at least 4.")
    return frames[len(frames) - usable :]


def own_latents(request: GenerationRequest) -> Tensor | None:
    """Latents to continue from, where the clip is a video of ours in its project: no trip through pixels and back."""
    folder = None if request.video is None else Path(request.video).resolve().parent
    if folder is None or not (folder / "project.json").is_file():
        return None
    try:
        with Project.open(folder) as source:
            same_size = (source.request.width, source.request.height) == (request.width, request.height)
            if not source.chunks or not same_size or source.request.model != request.model:
                return None
            reach = range(max(0, source.chunks - REACH), source.chunks)
            return torch.cat([source.read_latents(second) for second in reach], dim=2)
    except InputError:  # damaged, or of another version: the clip is still one to look at
        return None


def save_prefix(project: Project, latents: Tensor) -> None:
    """Keep an encoded prefix (1, C, frames, H, W) in the project."""
    write_tensors(_file(project), {"latents": latents})


def read_prefix(project: Project) -> Tensor | None:
    """The prefix that `save_prefix` kept, if any."""
    path = _file(project)
    return load(path.read_bytes())["latents"] if path.is_file() else None


def _file(project: Project) -> Path:
    return project.folder / "inputs" / PREFIX_NAME
