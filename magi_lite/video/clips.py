"""The end of any clip, as 24 frames per second of upright pixels: what a continuation has to look at.

Two passes: the times of the last frames are read off the packets, without decoding; then only those frames that are
wanted are turned into pixels. A frame holds until the next one starts, whatever the rate (30, 23.976, variable), and
the last wanted moment shows the clip's last frame.
"""

from __future__ import annotations

import heapq
import itertools
import math
import struct
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from magi_lite.errors import MediaError
from magi_lite.files import check_source
from magi_lite.models import FPS
from magi_lite.video.clock import read_in_turn, repeats, steady_packets
from magi_lite.video.colour import is_wide, matrix_of, to_bt709
from magi_lite.video.containers import (
    DAMAGED,
    MAX_FRAME_PIXELS,
    check_one_ogg,
    kind_of,
    moving_pictures,
    open_media,
    too_large,
)
from magi_lite.video.images import BACKGROUND, Fit, fit_pixels, is_animated

if TYPE_CHECKING:
    import av

_TOLERANCE = 0.25 / FPS
"""Containers round times, to milliseconds for instance; a frame that starts this little late has started."""
_SEEK_MARGINS = (2.0, 20.0, float("inf"))
"""Seconds before the wanted ones that are read, for durations that are a little wrong; more where no picture that
stands for itself lies there, as in long groups of a file without an index."""
_REORDERED = 8
"""Frames of an AVI or a program stream that are held until it is known which time is the next."""
_HIGHEST_RATE = 1000
"""Frames per second that are believed."""
_LONGEST_CLIP = 12 * 3600
"""Seconds of a clip that are read as a whole: the moment of each frame is held."""
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
    return read_tail(Path(path), size, fit, frames)[0]


@dataclass(frozen=True)
class ClipFacts:
    """What is known of a clip that was read: the size that is shown, in square pixels, its length, and its rate."""

    width: int
    height: int
    seconds: float
    rate: float


def read_tail(path: Path, size: tuple[int, int], fit: Fit, frames: int) -> tuple[np.ndarray, ClipFacts]:
    """What `load_tail` gives, and what was seen of the clip on the way.

    Raises:
        MediaError: see `load_tail`.
    """
    check_source(path, "a video")
    if kind_of(path) != "other":
        _check_moves(path)
        from magi_lite.video.animations import animation_tail

        pixels, facts = animation_tail(path, size, fit, frames)
        return pixels, facts
    check_one_ogg(path)
    with _damage_named(path):
        clip = _Clip(path)
        return clip.tail(size, fit, frames), clip.facts()


def _check_moves(path: Path) -> None:
    if not is_animated(path):
        raise MediaError(f"{path.name} is a single image; start with it as an image instead.")


@dataclass(frozen=True)
class Whole:
    """A clip as it is read from its beginning.

    Attributes:
        start: the moment of its first frame, on the clock of its file; None: it has none, and no sound.
        count: frames at 24 per second.
        frames: (height, width, 3) uint8 each.
    """

    start: float | None
    count: int
    frames: Iterator[np.ndarray]


NOTHING = Whole(None, 0, iter(()))


def read_whole(path: Path, size: tuple[int, int], fit: Fit) -> Whole:
    """A clip from its beginning to its end; its last frames are those that `load_tail` gives.

    Raises:
        MediaError: see `load_tail`; also while frames are read.
    """
    check_source(path, "a video")
    if kind_of(path) != "other":
        _check_moves(path)
        from magi_lite.video.animations import animation_whole

        return animation_whole(path, size, fit)
    check_one_ogg(path)
    with _damage_named(path):
        whole = _Clip(path).whole(size, fit)
    return replace(whole, frames=_read(path, whole.frames))


def _read(path: Path, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames, with what goes wrong in reading them as one sentence; not what goes wrong in using them."""
    while True:
        with _damage_named(path):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    import av

    try:
        yield
    except (av.FFmpegError, OSError, ValueError, IndexError):
        raise MediaError(f"{path.name} {DAMAGED}") from None


class _Clip:
    """One video file; opened anew for each pass, because decoders do not all survive seeking back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shown: tuple[int, int] | None = None
        """Width and height as shown, of the frames that were turned into pixels."""
        self._end, self._rate = 0.0, float(FPS)
        self._keys: list[tuple[float, int]] | None = None
        """Times and numbers of packets to begin at, of a file whose clock may jump, so that it is not sought."""
        self._timed, self._is_avi, self._is_program = True, False, False
        self._began = 0.0
        """The moment of the first frame, where it has no time of its own."""
        self._careful = self._hurt = False
        """Whether frames are decoded one after the other; whether some were lost, more than are damaged in threads."""

    def facts(self) -> ClipFacts:
        """Of a clip whose tail was read."""
        assert self._shown is not None
        return ClipFacts(*self._shown, self._end, self._rate)

    def tail(self, size: tuple[int, int], fit: Fit, frames: int) -> np.ndarray:
        first, newest, end = self._span(frames)
        picked, last = self._pick(_wanted(first, end, frames), size, fit)
        if last is not None and last < newest - 1.5 / FPS:  # the end is damaged: take what comes before it
            picked, last = self._pick(_wanted(min(first, last), last + 1 / FPS, frames), size, fit)
        if last is None:
            raise MediaError(f"{self.path.name} has no frame that can be decoded; use another copy.")
        return np.stack(picked)

    def whole(self, size: tuple[int, int], fit: Fit) -> Whole:
        self._careful = True
        with self._open() as (container, stream):
            span, self._timed = self._packet_span(container, stream, sought=False)
            self._rate = _rate(stream) if self._timed else float(stream.guessed_rate or FPS)
        if not self._timed:
            span = self._decoded_span()
        if span is None:
            raise MediaError(f"{self.path.name} has no frame that can be decoded; use another copy.")
        first, last, length = span
        end = last + min(max(length, 1 / FPS), _LONGEST_FRAME)
        if end - first > _LONGEST_CLIP:  # a single frame may say so
            raise MediaError(f"{self.path.name} lasts {(end - first) / 3600:.0f} hours by its own times; cut it first.")
        wanted = _wanted(first, end, sys.maxsize)
        return Whole(wanted[0], len(wanted), self._all(wanted, size, fit))

    def _all(self, wanted: list[float], size: tuple[int, int], fit: Fit) -> Iterator[np.ndarray]:
        """The pixels shown at each wanted time; a frame holds where those behind it are damaged."""
        held, shown, done = None, None, 0
        for time, frame in self._in_order(0.0):
            while held is not None and done < len(wanted) and wanted[done] + _TOLERANCE < time:
                shown = self._pixels(held, size, fit) if shown is None else shown
                yield shown
                done += 1
            held, shown = frame, None
        if held is None:
            raise MediaError(f"{self.path.name} has no frame that can be decoded; use another copy.")
        last = self._pixels(held, size, fit)
        for _ in range(len(wanted) - done):
            yield last

    def _span(self, frames: int) -> tuple[float, float, float]:
        """Where the last frames start, when the last begins and ends: `frames` / 24 s or more, if there are so many."""
        need = frames / FPS + _SEEK_MARGINS[0]
        for start_before_end in (need, None):
            with self._open() as (container, stream):
                sought = not read_in_turn(container) and _seek(container, stream, start_before_end)
                self._rate = _rate(stream)
                began = float((stream.start_time or 0) * stream.time_base)
                span, self._timed = self._packet_span(container, stream, sought)
                if not self._timed:
                    if sought:
                        continue
                    self._rate = float(stream.guessed_rate or FPS)
                    span = self._decoded_span()
            if span is not None and (not sought or span[1] - span[0] >= frames / FPS):
                first, last, length = span
                end = last + min(max(length, 1 / FPS), _LONGEST_FRAME)
                self._end = end - (began if self._keys is None and self._timed else first)
                return first, last, end
        raise MediaError(f"{self.path.name} has no frame that can be decoded; use another copy.")

    def _decoded_span(self) -> _Span | None:
        """What `_packet_span` gives, of a file in which packets carry no times: all of them, or some.

        Matroska has no times below 0. Who cuts a film in front of a key frame may leave frames there, which then have
        none; they are shown before the first that has one.
        """
        times, length, untimed = _Extent(), 1 / self._rate, 0
        for time, frame in self._decode(0.0):
            if times.span is None and frame.pts is None:
                untimed += 1
                continue
            if times.span is None:
                self._began = time - untimed * length
                times.add(self._began, length)
            times.add(time, length)
        if times.span is None and untimed:
            times.add(0.0, length)
            times.add((untimed - 1) * length, length)
        return times.span

    def _pick(self, wanted: list[float], size: tuple[int, int], fit: Fit) -> tuple[list[np.ndarray], float | None]:
        """The pixels shown at each wanted time, and the time of the last frame that could be decoded."""
        for margin in _SEEK_MARGINS:
            start = max(0.0, wanted[0] - margin) if self._timed else 0.0
            picked = self._picked_from(start, wanted, size, fit)
            if self._hurt and not self._careful:
                self._careful = True
                picked = self._picked_from(start, wanted, size, fit)
            if picked is not None or not start:
                break
        return picked or ([], None)

    def _picked_from(
        self, start: float, wanted: list[float], size: tuple[int, int], fit: Fit
    ) -> tuple[list[np.ndarray], float | None] | None:
        """What `_pick` gives, of frames from `start` on; None where it is too late for the first wanted time."""
        picked: list[np.ndarray] = []
        held, time = None, None
        for time, frame in self._in_order(start):
            if held is None and start and time > wanted[0] + _TOLERANCE:
                return None
            due = [t for t in wanted[len(picked) :] if t + _TOLERANCE < time]
            if due and held is not None:
                picked += [self._pixels(held, size, fit)] * len(due)
            held = frame
        if held is None:
            return None
        rest = len(wanted) - len(picked)
        return picked + ([self._pixels(held, size, fit)] * rest if rest else []), time

    def _decode(self, start: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """(time, frame) from a key frame before `start` on; damaged packets are passed over, fields woven."""
        with self._open() as (container, stream):
            skipped = 0
            if self._keys is not None:
                # from the start means the first frame, whose time is below 0 where the clock is about to wrap
                skipped = max((number for time, number in self._keys if start and time <= start), default=0)
            elif start > 0:
                container.seek(int(start / stream.time_base), stream=stream)
            time, length = self._began, 0.0
            sought = self._keys is None and start > 0
            for frame in _deinterlaced(self._frames(container, stream, skipped, sought), stream):
                if frame.width * frame.height > MAX_FRAME_PIXELS:
                    raise MediaError(f"{self.path.name} {too_large()}")
                time = time + length if frame.pts is None else frame.time
                length = 1 / self._rate
                yield time, frame

    def _in_order(self, start: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """What `_reordered` gives; frames of a program stream come in the order in which they are shown, and no sooner.

        FFmpeg reads the time 0 of such a file as none and takes that of a later frame, and it writes frames whose times
        go back.
        """
        frames = self._reordered(start)
        if not self._is_program:
            yield from frames
            return
        length = 1 / self._rate
        held: deque[tuple[float, av.VideoFrame]] = deque()
        earliest = -math.inf
        while True:
            held.extend(itertools.islice(frames, _REORDERED - len(held)))
            if not held:
                return
            latest = min(time - place * length for place, (time, _) in enumerate(held))
            time, frame = max(latest, earliest), held.popleft()[1]
            earliest = time + length
            yield time, frame

    def _reordered(self, start: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """What `_decode` gives, each frame with the earliest of the times that are left.

        An AVI holds no times of its pictures, only the order in which they are stored, which decoders pass on: of
        pictures that are stored before others that are shown sooner, times come mixed up.
        """
        times: list[float] = []
        frames: deque[av.VideoFrame] = deque()
        for time, frame in self._decode(start):
            heapq.heappush(times, time)
            frames.append(frame)
            if len(frames) > (_REORDERED if self._is_avi else 0):
                yield heapq.heappop(times), frames.popleft()
        while frames:
            yield heapq.heappop(times), frames.popleft()

    def _packet_span(
        self, container: av.container.InputContainer, stream: Any, sought: bool
    ) -> tuple[_Span | None, bool]:
        """The span of a stream's packets from here on, and whether there are any and each has a time."""
        times, timed, usual = _Extent(), True, 1 / _rate(stream)
        self._keys = [] if read_in_turn(container) else None
        for number, packet in enumerate(steady_packets(container, stream, sought=sought)):
            if repeats(packet):
                times.hold(float((packet.pts + (packet.duration or 0)) * packet.time_base))
            elif packet.size and not packet.is_discard:
                if packet.pts is None:
                    timed = False
                    continue
                time = float(packet.pts * packet.time_base)
                times.add(time, float((packet.duration or 0) * packet.time_base) or usual)
                if self._keys is not None and packet.is_keyframe:
                    self._keys.append((time, number))
        if self._is_program:
            times.last_at_least(usual)
        return times.span, timed and times.span is not None

    def _frames(
        self, container: av.container.InputContainer, stream: Any, skipped: int, sought: bool
    ) -> Iterator[av.VideoFrame]:
        """Every frame that can be decoded, but of the first `skipped` packets; sought: from where the file stands."""
        import av

        context = stream.codec_context
        library = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(context.name)
        if stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) == "1" and library:
            context = av.CodecContext.create(library, "r")  # FFmpeg's own decoders leave transparency out
            context.extradata = stream.codec_context.extradata
        else:
            context.thread_type = "SLICE" if self._careful else "AUTO"
        if context.width * context.height > MAX_FRAME_PIXELS // 4:
            context.thread_count = 2  # each thread holds a frame
        sent = came = 0
        for packet in itertools.islice(steady_packets(container, stream, sought=sought), skipped, None):
            if repeats(packet):
                continue
            sent += bool(packet.size)
            try:
                decoded = context.decode(packet if packet.size else None)
            except (av.InvalidDataError, av.EOFError):
                continue
            came += len(decoded)
            for frame in decoded:
                frame.time_base = stream.time_base  # those that come at the end have none
                yield frame
        self._hurt = came < sent

    @contextmanager
    def _open(self) -> Iterator[tuple[av.container.InputContainer, Any]]:
        with open_media(self.path) as container:
            stream = moving_pictures(container, self.path.name)
            aspect = float(stream.sample_aspect_ratio or 1)
            self._aspect = aspect if 1 / 8 <= aspect <= 8 else 1.0
            self._is_avi, self._is_program = container.format.name == "avi", container.format.name == "mpeg"
            yield container, stream

    def _pixels(self, frame: av.VideoFrame, size: tuple[int, int], fit: Fit) -> np.ndarray:
        """A frame as it is shown: colours in BT.709, opaque, turned by its display matrix."""
        from PIL import Image

        transposed, mirrored, flipped = _orientation(frame)
        width, height, aspect = frame.width * self._aspect, frame.height, self._aspect
        if transposed:
            width, height, aspect = height, width, 1 / aspect
        self._shown = (max(1, round(width)), max(1, round(height)))
        pixels = _rgb(frame, max(size))
        pixels = pixels.swapaxes(0, 1) if transposed else pixels
        pixels = pixels[:: -1 if flipped else 1, :: -1 if mirrored else 1]
        return fit_pixels(Image.fromarray(np.ascontiguousarray(pixels)), size, fit, aspect)


_Span = tuple[float, float, float]
"""The first and the last time of frames, and how long the last is shown, in seconds."""


class _Extent:
    """The span of times that come in any order; a film's packets, or even its times, do not fit into memory."""

    def __init__(self) -> None:
        self.span: _Span | None = None
        self._count = 0

    def add(self, time: float, length: float) -> None:
        self._count += 1
        first, last, shown = self.span or (time, time, length)
        self.span = (min(first, time), time, length) if time >= last else (min(first, time), last, shown)

    def last_at_least(self, length: float) -> None:
        """The latest frame comes no sooner than behind all others, shown for `length` each."""
        if self.span is not None:
            first, last, shown = self.span
            self.span = (first, max(last, first + (self._count - 1) * length), shown)

    def hold(self, until: float) -> None:
        """The latest frame is shown until then at least."""
        if self.span is not None:
            first, last, shown = self.span
            self.span = (first, last, max(shown, until - last))


def _rate(stream: Any) -> float:
    """Frames per second."""
    rates = (float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate)
    return next((rate for rate in rates if rate <= _HIGHEST_RATE), float(FPS))


def _deinterlaced(frames: Iterator[av.VideoFrame], stream: Any) -> Iterator[av.VideoFrame]:
    """Frames with their fields made whole, from the first interlaced frame on; others pass as they are."""
    import av

    graph: Any = None
    kind: tuple[int, int, str] | None = None

    def finished() -> Iterator[av.VideoFrame]:
        while True:
            try:
                yield graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return

    for frame in frames:
        if graph is not None and kind != (frame.width, frame.height, frame.format.name):  # a graph has one size
            graph.push(None)
            yield from finished()
            graph = None
        if graph is None and frame.interlaced_frame:
            kind = (frame.width, frame.height, frame.format.name)
            graph = av.filter.Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=stream.time_base
            )
            graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
            graph.configure()
        if graph is None:
            yield frame
        else:
            graph.push(frame)
            yield from finished()
    if graph is not None:
        graph.push(None)
        yield from finished()


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Transposed, then mirrored left to right, then turned upside down: what a frame's display matrix says.

    The matrix maps (x, y) to (a x + c y, b x + d y), in 16.16 fixed point (ISO/IEC 14496-12, 6.2.2).
    """
    side_data: Any = frame.side_data
    for item in side_data:
        if item.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack_from("=5i", bytes(item))
            if abs(a) + abs(d) >= abs(b) + abs(c):
                return False, a < 0, d < 0
            return True, c < 0, b < 0
    return False, False, False


def _rgb(frame: av.VideoFrame, longest: int) -> np.ndarray:
    """A frame's pixels (H, W, 3) uint8 in BT.709, opaque; HDR is made smaller first where `longest` allows it."""
    transfer, primaries = int(frame.color_trc), int(frame.color_primaries)
    matrix = matrix_of(int(frame.colorspace), primaries, frame.width, frame.height)
    if is_wide(transfer, primaries):
        scale = min(1.0, 2 * longest / min(frame.width, frame.height))
        width, height = round(frame.width * scale), round(frame.height * scale)
        frame = frame.reformat(width, height, "rgb48le", src_colorspace=matrix)
        return to_bt709(frame.to_ndarray().astype(np.float32) / 65535, transfer, primaries)
    names = {component.is_alpha for component in frame.format.components}
    if True in names or frame.format.has_palette:
        values = frame.reformat(format="rgba", src_colorspace=matrix).to_ndarray()
        alpha = values[..., 3:].astype(np.float32) / 255
        return np.rint(values[..., :3] * alpha + np.array(BACKGROUND, np.float32) * (1 - alpha)).astype(np.uint8)
    return frame.reformat(format="rgb24", src_colorspace=matrix).to_ndarray()


def _seek(container: av.container.InputContainer, stream: Any, before_end: float | None) -> bool:
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
