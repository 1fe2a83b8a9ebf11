"""The end of any clip, as 24 frames per second of upright pixels: what a continuation has to look at.

Two passes: the times of the last frames are read off the packets, without decoding; then only those frames that are
wanted are turned into pixels. A frame holds until the next one starts, whatever the rate (30, 23.976, variable), and
the last wanted moment shows the clip's last frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from magi_lite.errors import MediaError
from magi_lite.files import check_source
from magi_lite.models import FPS
from magi_lite.video.images import Fit, fit_pixels

if TYPE_CHECKING:
    import av

MAX_FRAME_PIXELS = 40_000_000
"""Largest frame that is decoded: above 8K."""
_TOLERANCE = 0.25 / FPS
"""Containers round times, to milliseconds for instance; a frame that starts this little late has started."""
_SEEK_MARGIN = 2.0
"""Seconds before the wanted ones that are read, for durations that are a little wrong."""
_DAMAGED = "is damaged or not a video that can be read; use an MP4, MOV or WebM."
_LONGEST_FRAME = 1.0
"""Seconds that the last frame of a clip is taken to be shown at most."""


def load_tail(path: Path | str, size: tuple[int, int], fit: Fit = "crop", frames: int = 4 * FPS) -> np.ndarray:
    """Read the last `frames` frames of a clip, resampled to 24 frames per second.

    Args:
        path: any video file.
        size: (width, height) of the result.
        fit: see `images.load_image`.
        frames: wanted at 24 per second; fewer come back if the clip is shorter.

    Returns:
        (T, height, width, 3) uint8, 1 <= T <= frames.

    Raises:
        MediaError: no such file, no video in it, or damaged; one sentence.
    """
    import av

    path = Path(path)
    check_source(path, "a video")
    try:
        return _Clip(path).tail(size, fit, frames)
    except (av.FFmpegError, OSError, ValueError, IndexError):
        raise MediaError(f"{path.name} {_DAMAGED}") from None


class _Clip:
    """One video file; opened anew for each pass, because decoders do not all survive seeking back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._aspect = 1.0

    def tail(self, size: tuple[int, int], fit: Fit, frames: int) -> np.ndarray:
        first, end = self._span(frames)
        picked, last = self._pick(_wanted(first, end, frames), size, fit)
        if last is not None and last < end - _LONGEST_FRAME:  # the end is damaged: take what comes before it
            picked, last = self._pick(_wanted(min(first, last), last + 1 / FPS, frames), size, fit)
        if last is None:
            raise MediaError(f"{self.path.name} has no frame that can be decoded; use another copy.")
        return np.stack(picked)

    def _span(self, frames: int) -> tuple[float, float]:
        """Where the last frames start and end, in seconds: at least `frames` / 24 apart if there are so many."""
        need = frames / FPS + _SEEK_MARGIN
        for start_before_end in (need, None):
            container, stream = self._open()
            with container:
                sought = _seek(container, stream, start_before_end)
                packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
                rate = float(stream.average_rate or stream.guessed_rate or FPS)
                if packets and all(p.pts is not None for p in packets):
                    times = sorted(float(p.pts * p.time_base) for p in packets)
                    shown = max(packets, key=lambda p: p.pts).duration
                    length = float(shown * packets[0].time_base) if shown else 1 / rate
                elif sought:
                    continue
                else:
                    times, length = self._decoded_times(rate), 1 / rate
            if times and (not sought or times[-1] - times[0] >= frames / FPS):
                return times[0], times[-1] + min(max(length, 1 / FPS), _LONGEST_FRAME)
        raise MediaError(f"{self.path.name} has no frame that can be decoded; use another copy.")

    def _decoded_times(self, rate: float) -> list[float]:
        """Times of all frames of a file whose packets carry none."""
        return [time for time, _ in self._decode(0.0, rate)]

    def _pick(self, wanted: list[float], size: tuple[int, int], fit: Fit) -> tuple[list[np.ndarray], float | None]:
        """The pixels shown at each wanted time, and the time of the last frame that could be decoded."""
        picked: list[np.ndarray] = []
        held, time = None, None
        for time, frame in self._decode(max(0.0, wanted[0] - _SEEK_MARGIN)):
            due = [t for t in wanted[len(picked) :] if t + _TOLERANCE < time]
            if due and held is not None:
                picked += [self._pixels(held, size, fit)] * len(due)
            held = frame
        if held is not None:
            rest = len(wanted) - len(picked)
            picked += [self._pixels(held, size, fit)] * rest if rest else []
        return picked, time

    def _decode(self, start: float, rate: float = FPS) -> Iterator[tuple[float, av.VideoFrame]]:
        """(time, frame) from a key frame before `start` on; damaged packets are passed over."""
        import av

        container, stream = self._open()
        with container:
            stream.thread_type = "AUTO"
            if start > 0:
                container.seek(int(start / stream.time_base), stream=stream)
            number = 0
            for packet in container.demux(stream):
                try:
                    decoded = packet.decode()
                except av.InvalidDataError:
                    continue
                for frame in decoded:
                    yield (number / rate if frame.pts is None else frame.time), frame
                    number += 1

    def _open(self) -> tuple[av.container.InputContainer, av.VideoStream]:
        import av

        container = av.open(str(self.path.absolute()))  # a relative "a:b.mp4" would be taken for protocol a
        pictures = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        name = container.format.name
        problem = None
        if not container.streams.video and not container.streams.audio:
            problem = _DAMAGED
        elif not pictures:
            problem = "has no moving pictures in it; use an MP4, MOV or WebM."
        elif name.endswith("_pipe") or name == "image2":
            problem = "is a single image; start with it as an image instead."
        elif pictures[0].codec_context.width * pictures[0].codec_context.height > MAX_FRAME_PIXELS:
            problem = f"has frames of more than {MAX_FRAME_PIXELS // 10**6} megapixels; make it smaller."
        if problem:
            container.close()
            raise MediaError(f"{self.path.name} {problem}")
        self._aspect = float(pictures[0].sample_aspect_ratio or 1)
        return container, pictures[0]

    def _pixels(self, frame: av.VideoFrame, size: tuple[int, int], fit: Fit) -> np.ndarray:
        """Upright pixels of a frame; its display matrix turns counterclockwise."""
        from PIL import Image

        pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
        aspect = 1 / self._aspect if round(frame.rotation / 90) % 2 else self._aspect
        return fit_pixels(Image.fromarray(np.ascontiguousarray(pixels)), size, fit, aspect)


def _seek(container: av.container.InputContainer, stream: av.VideoStream, before_end: float | None) -> bool:
    """Go to `before_end` seconds before the end, where the end is known and far enough; whether it was done."""
    if before_end is None or not stream.duration:
        return False
    end = float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    if end - before_end <= 0:
        return False
    container.seek(int((end - before_end) / stream.time_base), stream=stream)
    return True


def _wanted(first: float, end: float, frames: int) -> list[float]:
    """The last `frames` moments 1/24 s apart between `first` and `end`, the last one 1/24 s before the end."""
    count = max(1, min(frames, int((end - first + _TOLERANCE) * FPS)))
    return [end - (count - number) / FPS for number in range(count)]
