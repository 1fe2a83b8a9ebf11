"""Animated pictures (GIF, WebP, AVIF, APNG) as clips: the tail at 24 frames per second.

Pillow composes each picture of an animation with those before it, so all are decoded in turn, and only the last
seconds are kept.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from magi_lite.errors import MediaError
from magi_lite.models import FPS
from magi_lite.video.clips import ClipFacts
from magi_lite.video.containers import MAX_FRAME_PIXELS, too_large
from magi_lite.video.images import Fit, fit_pixels, open_picture, pictures_in, to_rgb

MOST_PICTURES = 20_000
"""Pictures of the longest animation that is read."""
_SHORTEST, _USUAL = 0.01, 0.1
"""Seconds: a picture that claims to be shown this short or not at all is shown for the usual time, as browsers do."""


def animation_tail(path: Path, size: tuple[int, int], fit: Fit, frames: int) -> tuple[np.ndarray, ClipFacts]:
    """The last `frames` frames (T, height, width, 3) uint8 of an animated picture, and what was seen of it.

    Raises:
        MediaError: damaged, or too large; one sentence.
    """
    kept: deque[tuple[float, np.ndarray]] = deque()
    end = 0.0
    with open_picture(path) as picture:
        image: Any = picture.image
        count = pictures_in(image)
        if image.width * image.height > MAX_FRAME_PIXELS:
            raise MediaError(f"{path.name} {too_large()}")
        if count > MOST_PICTURES:
            raise MediaError(f"{path.name} has {count} pictures; give a video or at most {MOST_PICTURES} pictures.")
        shown_size, number_shown = image.size, 0
        wanted_from = count - int(frames / FPS / _SHORTEST) - 1
        for number in range(count):
            try:
                image.seek(number)
                image.load()
                shown = image.info.get("duration", 0) / 1000
                pixels = fit_pixels(to_rgb(image), size, fit) if number >= wanted_from else None
            except Exception:  # decoders of foreign files raise anything; what comes before the damage is kept
                break
            number_shown += 1
            if pixels is not None:
                kept.append((end, pixels))
            end += shown if shown > _SHORTEST else _USUAL
            while len(kept) > 1 and kept[1][0] <= end - frames / FPS:
                kept.popleft()
    if not kept:
        raise MediaError(f"{path.name} has no picture that can be decoded; use another copy.")
    first = kept[0][0]
    total = max(1, min(frames, round((end - first) * FPS)))
    moments = [end - (total - number - 0.5) / FPS for number in range(total)]
    starts = np.array([start for start, _ in kept])
    pixels = np.stack([kept[max(0, int(np.searchsorted(starts, m, "right")) - 1)][1] for m in moments])
    return pixels, ClipFacts(shown_size[0], shown_size[1], end, number_shown / end)
