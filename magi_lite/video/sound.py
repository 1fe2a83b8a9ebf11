"""Sound under an exported video: decoded from any audio file, resampled, cut or filled to the video's length."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from magi_lite.errors import MediaError
from magi_lite.files import check_source
from magi_lite.models import FPS
from magi_lite.video import labels
from magi_lite.video.clock import jumps, own_times, repeats, sound_packets
from magi_lite.video.containers import check_one_ogg, open_media

SOUND_RATE = 48000
"""Samples per second of a sound track."""
FADE = 0.05
"""Seconds in which a sound that is cut off fades out: long enough for no click, too short to be heard as a fade."""
_LARGEST_DRIFT = 0.1
"""Seconds by which times of sound may be off without meaning a gap; FFmpeg's programs use the same."""
_BLOCK = 1024


@dataclass(frozen=True)
class Sound:
    """A stretch of a sound track.

    Args:
        path: an audio or video file; None: silence.
        start: the moment in it that comes first, on its own clock; None: its first sample.
        seconds: how long the stretch is, filled with silence where the file ends before; None: to the video's end.
            Its sound fades out in the last `FADE` seconds where it is cut off, and always where `seconds` are given,
            for something comes behind it.
    """

    path: Path | None
    start: float | None = None
    seconds: float | None = None


def has_sound(path: Path) -> bool:
    """Whether there is a sound track in a file that can be read."""
    try:
        check_sound(path)
    except MediaError:
        return False
    return True


def check_sound(path: Path) -> None:
    """Refuse a file without sound in it.

    Raises:
        MediaError: one sentence.
    """
    import av

    check_source(path, "an audio file")
    try:
        with open_media(path) as container:
            found = any(stream.codec_context is not None for stream in container.streams.audio)
    except (av.FFmpegError, OSError, ValueError):
        raise MediaError(f"{path.name} is damaged or not a file with sound; use a WAV, FLAC, MP3 or M4A.") from None
    if not found:
        raise MediaError(f"{path.name} has no sound in it; use a WAV, FLAC, MP3 or M4A.")


def lay_sound(video: Path, sound: Sequence[Sound], codec: str, container: str) -> None:
    """Put a sound track, stretch behind stretch, beside a video's own packets, cut or filled to its length."""
    import av

    mixed = video.with_name(video.name + ".sound")
    options = {"movflags": "+faststart"} if container in ("mp4", "mov") else {}
    try:
        with (
            open_media(video) as source,
            av.open(str(mixed.absolute()), "w", format=container, options=options) as output,
        ):
            output.metadata.update(
                {k: v for k, v in source.metadata.items() if k.upper() in ("COMMENT", labels.SOURCE_TAG)}
            )
            pictures = source.streams.video[0]
            video_stream = output.add_stream_from_template(pictures, opaque=True)
            if pictures.codec_context.codec_tag == "hvc1":
                video_stream.codec_context.codec_tag = "hvc1"
            track = output.add_stream(codec, rate=SOUND_RATE, layout="stereo")
            packets: Iterator[Any] = (packet for packet in source.demux(pictures) if packet.dts is not None)
            length = _length(video)
            blocks = _sound_blocks(sound, track.codec_context, round(length * SOUND_RATE))
            heard = 0.0
            for packet in packets:
                while heard <= float(packet.dts * packet.time_base):
                    block = next(blocks, None)
                    if block is None:
                        break
                    heard = float((block.pts + block.samples) / SOUND_RATE)
                    output.mux(track.encode(block))
                packet.stream = video_stream
                output.mux(packet)
            for block in blocks:
                output.mux(track.encode(block))
            output.mux(track.encode(None))
        mixed.replace(video)
    finally:
        mixed.unlink(missing_ok=True)


def _length(video: Path) -> float:
    """Seconds of a video that was just written."""
    with open_media(video) as container:
        stream = container.streams.video[0]
        return sum(1 for packet in container.demux(stream) if packet.size) / FPS


def _sound_blocks(sound: Sequence[Sound], context: Any, samples: int) -> Iterator[Any]:
    """Audio frames of the encoder's own format and size, `samples` in all."""
    import av

    queue, made = av.AudioFifo(), 0
    for piece in _pieces(sound, context, samples):
        queue.write(piece)
        while (block := queue.read(_BLOCK)) is not None:
            yield _placed(block, made)
            made += block.samples
    if (block := queue.read(0, partial=True)) is not None:  # only the last may be shorter
        yield _placed(block, made)


def _pieces(sound: Sequence[Sound], context: Any, samples: int) -> Iterator[Any]:
    left = samples
    for stretch in sound:
        wanted = left if stretch.seconds is None else min(left, round(stretch.seconds * SOUND_RATE))
        left -= wanted
        for piece in _fading(stretch, context, wanted) if stretch.path else ():
            wanted -= piece.samples
            yield piece
        yield from _silence(context, wanted)
    yield from _silence(context, left)


def _fading(stretch: Sound, context: Any, samples: int) -> Iterator[Any]:
    """What a stretch holds, at most `samples`, faded out at its end where it should be."""
    assert stretch.path is not None
    longest = round(FADE * SOUND_RATE)
    held: deque[Any] = deque()
    kept, cut = 0, False
    for piece in _heard(stretch.path, stretch.start, context, samples + 1):  # one more shows that the sound goes on
        cut = kept + piece.samples > samples
        wanted = min(piece.samples, samples - kept)
        if wanted:
            held.append(_cut(piece, 0, wanted))
            kept += wanted
        while held and sum(one.samples for one in held) - held[0].samples >= longest:
            yield held.popleft()
    left = sum(one.samples for one in held)
    fade = min(left, longest)
    for piece in held:
        loudness = np.minimum(1, np.arange(left, left - piece.samples, -1) / (fade + 1))
        left -= piece.samples
        yield _softened(piece, loudness) if cut or stretch.seconds is not None else piece


def _softened(piece: Any, loudness: np.ndarray) -> Any:
    """A piece of sound, each sample times its loudness (n,), 0 to 1."""
    values = piece.to_ndarray()
    scale = loudness if piece.format.is_planar else np.repeat(loudness, 2)
    return _frame((values * scale).astype(values.dtype), piece.format.name)


def _heard(path: Path, start: float | None, context: Any, samples: int) -> Iterator[Any]:
    """What a file holds from a moment on, at most `samples`; what is missing in between is silence.

    Raises:
        MediaError: it cannot be read to its end.
    """
    made = 0
    with open_media(path) as container:
        stream = next(stream for stream in container.streams.audio if stream.codec_context is not None)
        for moment, run in _runs(_decoded(path, container, stream), timed=start is not None):
            place = made if start is None or moment is None else round((moment - start) * SOUND_RATE)
            if place > made:
                gap = min(place, samples) - made
                yield from _silence(context, gap)
                made += gap
            early = made - place  # samples before the stretch, or that were there before
            for block in _resampled(run, context):
                first = min(early, block.samples)
                last = min(block.samples, first + samples - made)
                early -= first
                if first < last:
                    yield _cut(block, first, last)
                    made += last - first
                if made == samples:
                    return


def _decoded(path: Path, container: Any, stream: Any) -> Iterator[Any]:
    """Frames of sound, on the clock of the pictures beside it."""
    import av

    known = [one for one in container.streams.video if one.codec_context is not None]
    together = jumps(container) and known
    alone = container.demux(stream) if jumps(container) else own_times(container, stream, container.demux(stream))
    packets = sound_packets(container, known[0], stream) if together else alone
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError, ValueError):
            check_one_ogg(path)
            raise MediaError(f"{path.name} is damaged and cannot be read to its end; use another copy.") from None
        if packet is None:
            return
        if repeats(packet):
            continue
        try:
            yield from packet.decode()
        except av.FFmpegError:
            continue


def _runs(frames: Iterable[Any], timed: bool) -> Iterator[tuple[float | None, Iterator[Any]]]:
    """Stretches of sound without a gap, each with the moment of its first frame; all is one if it is not `timed`."""
    run: tuple[int, float | None] = (0, None)
    length = 0.0

    def run_of(frame: Any) -> tuple[int, float | None]:
        nonlocal run, length
        number, moment = run
        off = None in (moment, frame.time) or abs(frame.time - moment - length) > _LARGEST_DRIFT
        if number == 0 or (timed and frame.time is not None and off):
            run, length = (number + 1, frame.time), 0.0
        length += frame.samples / frame.sample_rate
        return run

    for (_, moment), alike in groupby(frames, run_of):
        yield moment, alike


def _resampled(frames: Iterable[Any], context: Any) -> Iterator[Any]:
    """Frames at one rate, in stereo; their own rate, channels and format may change on the way."""
    import av

    for _, alike in groupby(frames, lambda frame: (frame.sample_rate, frame.layout.name, frame.format.name)):
        resampler = av.AudioResampler(format=context.format, layout="stereo", rate=SOUND_RATE)
        for frame in alike:
            frame.pts = None
            yield from resampler.resample(frame)
        yield from resampler.resample(None)


def _silence(context: Any, samples: int) -> Iterator[Any]:
    planes = 2 if context.format.is_planar else 1
    kind = np.dtype({"s16": "<i2", "s32": "<i4", "flt": "<f4"}[context.format.name.removesuffix("p")])
    while samples > 0:
        size = min(_BLOCK, samples)
        yield _frame(np.zeros((planes, size if planes == 2 else 2 * size), kind), context.format.name)
        samples -= size


def _cut(block: Any, first: int, last: int) -> Any:
    """Samples of a block, from the first to the one before the last."""
    if last - first < block.samples:
        step = 1 if block.format.is_planar else 2
        block = _frame(block.to_ndarray()[:, first * step : last * step], block.format.name)
    block.pts = None
    return block


def _frame(values: np.ndarray, kind: str) -> Any:
    """Samples (2, n), or (1, 2 n) interleaved, as a piece of sound."""
    import av

    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(values), kind, "stereo")
    frame.rate = SOUND_RATE
    return frame


def _placed(block: Any, start: int) -> Any:
    block.pts, block.time_base = start, Fraction(1, SOUND_RATE)
    return block
