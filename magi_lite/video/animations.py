"""Animated pictures (GIF, WebP, AVIF, APNG) as clips: the tail, or all of it, at 24 frames per second.

Pillow composes each picture of an animation with those before it, so all are decoded in turn. Only those that are
wanted are kept, in the size that is wanted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from magi_lite.errors import MediaError
from magi_lite.models import FPS
from magi_lite.video.clips import ClipFacts, Whole
from magi_lite.video.containers import MAX_ANIMATED_PIXELS, too_large
from magi_lite.video.images import BACKGROUND, Fit, fit_pixels, open_picture, pictures_in, to_rgb, turned_size

MOST_PICTURES = 20_000
"""Pictures of the longest animation that is read."""
MOST_PIXELS = 2_500_000_000
"""Pixels of all pictures of an animation; they take some 5 ns each, whatever the size that is wanted."""
LONGEST_SECONDS = 600
"""Of an animation that is read as a whole, its last ones."""
_SHORTEST, _USUAL = 0.01, 0.1
"""Seconds: a picture that claims to be shown this short or not at all is shown for the usual time, as browsers do."""


@dataclass(frozen=True)
class _Shown:
    """A picture of an animation: when it is shown, in seconds, and its pixels if they were wanted."""

    start: float
    end: float
    pixels: np.ndarray | None


def animation_tail(path: Path, size: tuple[int, int], fit: Fit, frames: int) -> tuple[np.ndarray, ClipFacts]:
    """The last `frames` frames (T, height, width, 3) uint8 of an animated picture, and what was seen of it.

    Raises:
        MediaError: damaged, or too large; one sentence.
    """
    kept: deque[_Shown] = deque()
    number_shown, end = 0, 0.0
    with open_picture(path) as picture:
        count = _checked_count(path, picture.image)
        width, height = turned_size(picture.image)
        wanted_from = count - int(frames / FPS / _SHORTEST) - 1
        for shown in _pictures(picture.image, count, size, fit, wanted_from):
            number_shown, end = number_shown + 1, shown.end
            if shown.pixels is not None:
                kept.append(shown)
            while len(kept) > 1 and kept[1].start <= end - frames / FPS:
                kept.popleft()
    if not kept:
        raise _no_picture(path)
    moments = _moments(kept[0].start, end, frames)
    starts = np.array([shown.start for shown in kept])
    picked = [kept[max(0, int(np.searchsorted(starts, moment, "right")) - 1)].pixels for moment in moments]
    return np.stack([pixels for pixels in picked if pixels is not None]), ClipFacts(
        width, height, end, number_shown / end
    )


def animation_whole(path: Path, size: tuple[int, int], fit: Fit) -> Whole:
    """All of an animated picture, one frame after the other: decoded once for its times, and once more for its frames.

    Raises:
        MediaError: damaged, or too large; one sentence.
    """
    with open_picture(path) as picture:
        count = _checked_count(path, picture.image)
        times = [(one.start, one.end) for one in _pictures(picture.image, count, size, fit, wanted_from=count)]
    if not times:
        raise _no_picture(path)
    end = times[-1][1]
    first = next(start for start, until in times if until > end - LONGEST_SECONDS)
    moments = _moments(first, end, LONGEST_SECONDS * FPS)
    return Whole(None, len(moments), _at(path, count, moments, size, fit))


def _at(path: Path, count: int, moments: list[float], size: tuple[int, int], fit: Fit) -> Iterator[np.ndarray]:
    """What is shown at moments that rise, the last for the rest where the file has been damaged since."""
    done, held = 0, None
    with open_picture(path) as picture:
        for shown in _pictures(picture.image, count, size, fit, wanted_from=0):
            while held is not None and done < len(moments) and moments[done] < shown.start:
                yield held
                done += 1
            held = shown.pixels
            if done == len(moments):
                return
    while held is not None and done < len(moments):
        yield held
        done += 1


def _pictures(image: Any, count: int, size: tuple[int, int], fit: Fit, wanted_from: int) -> Iterator[_Shown]:
    """Pictures in turn, until one is damaged; with their pixels from number `wanted_from` on."""
    start = 0.0
    for number in range(count):
        try:
            image.seek(number)
            image.load()
            seconds = image.info.get("duration", 0) / 1000
            pixels = None
            if number >= wanted_from:
                pixels = fit_pixels(to_rgb(image, BACKGROUND, 2 * max(size)), size, fit)
        except Exception:  # decoders of foreign files raise anything; what comes before the damage is kept
            return
        end = start + (seconds if seconds > _SHORTEST else _USUAL)
        yield _Shown(start, end, pixels)
        start = end


def _moments(first: float, end: float, frames: int) -> list[float]:
    """The middles of at most `frames` frames that end with the animation and begin no sooner than `first`."""
    total = max(1, min(frames, round((end - first) * FPS)))
    return [end - (total - number - 0.5) / FPS for number in range(total)]


def _checked_count(path: Path, image: Any) -> int:
    """How many pictures there are.

    Raises:
        MediaError: they are too many, or too large.
    """
    if image.width * image.height > MAX_ANIMATED_PIXELS:
        raise MediaError(f"{path.name} {too_large(MAX_ANIMATED_PIXELS)}")
    count = pictures_in(image)
    if count > MOST_PICTURES:
        raise MediaError(f"{path.name} has {count} pictures; give a video or at most {MOST_PICTURES} pictures.")
    if count * image.width * image.height > MOST_PIXELS:
        raise MediaError(
            f"{path.name} has {count} pictures of {image.width} x {image.height}, which take minutes to decode; give a "
            "video of it, or a smaller or shorter one."
        )
    return count


def _no_picture(path: Path) -> MediaError:
    return MediaError(f"{path.name} has no picture that can be decoded; use another copy.")
