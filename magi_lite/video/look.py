"""What a file is, as the readers see it: a picture to start from or a clip to continue."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from magi_lite.files import check_source
from magi_lite.models import FPS
from magi_lite.video.containers import kind_of

_PROBE = (64, 64)


@dataclass(frozen=True)
class Look:
    """A picture or a clip: its size as it is shown, and of a clip its seconds and frames per second."""

    kind: Literal["image", "video"]
    width: int
    height: int
    seconds: float = 0.0
    rate: float = FPS


def look_at(path: Path) -> Look:
    """Read a file as a run that starts from it would; what it is shows in its content, not in its name.

    Raises:
        MediaError: it can be used neither as a picture nor as a clip; one sentence.
    """
    from magi_lite.video.clips import read_tail
    from magi_lite.video.images import load_image, shown_size

    if _is_picture(path):
        load_image(path, _PROBE)
        return Look("image", *shown_size(path))
    _, facts = read_tail(path, _PROBE, "crop", 1)
    return Look("video", facts.width, facts.height, facts.seconds, facts.rate)


def small_frame(path: Path, longest: int) -> np.ndarray:
    """A picture, or the last frame of a clip, (H, W, 3) uint8, sRGB; its longer side has `longest` pixels or fewer.

    Read once, as a square, for a clip's shape is known with its frames only.

    Raises:
        MediaError: it can be used neither as a picture nor as a clip; one sentence.
    """
    from PIL import Image

    from magi_lite.video.clips import read_tail
    from magi_lite.video.images import fit_pixels, load_image, shown_size

    square = (longest, longest)
    if _is_picture(path):
        pixels, (width, height) = load_image(path, square, "stretch"), shown_size(path)
    else:
        (pixels,), facts = read_tail(path, square, "stretch", 1)
        width, height = facts.width, facts.height
    share = min(1.0, longest / max(width, height))
    size = (max(1, round(width * share)), max(1, round(height * share)))
    return fit_pixels(Image.fromarray(pixels), size, "stretch")


def _is_picture(path: Path) -> bool:
    """Whether a file is a picture that does not move.

    Raises:
        MediaError: there is no such file, or nothing in it.
    """
    from magi_lite.video.images import is_animated

    check_source(path, "an image or a video")
    return kind_of(path) != "other" and not is_animated(path)
