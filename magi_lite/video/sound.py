"""Sound under an exported video: decoded from any audio file, resampled, cut or filled to the video's length."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from magi_lite.errors import MediaError
from magi_lite.files import check_source
from magi_lite.models import FPS
from magi_lite.video import labels

SOUND_RATE = 48000
"""Samples per second of a sound track."""
_BLOCK = 1024


def check_sound(path: Path) -> None:
    """Refuse a file without sound in it.

    Raises:
        MediaError: one sentence.
    """
    import av

    check_source(path, "an audio file")
    try:
        with av.open(str(path.absolute())) as container:
            found = any(stream.codec_context is not None for stream in container.streams.audio)
    except (av.FFmpegError, OSError, ValueError):
        raise MediaError(f"{path.name} is damaged or not a file with sound; use a WAV, FLAC, MP3 or M4A.") from None
    if not found:
        raise MediaError(f"{path.name} has no sound in it; use a WAV, FLAC, MP3 or M4A.")


def lay_sound(video: Path, sound: Path, codec: str, container: str) -> None:
    """Put a sound track beside a video's own packets, cut or filled with silence to its length."""
    import av

    mixed = video.with_name(video.name + ".sound")
    options = {"movflags": "+faststart"} if container in ("mp4", "mov") else {}
    try:
        with (
            av.open(str(video.absolute())) as source,
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
            packets = (packet for packet in source.demux(pictures) if packet.dts is not None)
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
    import av

    with av.open(str(video.absolute())) as container:
        stream = container.streams.video[0]
        return sum(1 for packet in container.demux(stream) if packet.size) / FPS


def _sound_blocks(path: Path, context: Any, samples: int) -> Iterator[Any]:
    """Audio frames of the encoder's own format, `samples` in all."""
    import av

    resampler = av.AudioResampler(format=context.format, layout="stereo", rate=SOUND_RATE, frame_size=_BLOCK)
    made = 0
    with av.open(str(path.absolute())) as container:
        stream = container.streams.audio[0]

        def decoded() -> Iterator[Any]:
            for packet in container.demux(stream):
                try:
                    yield from packet.decode()
                except av.InvalidDataError:
                    continue
            yield None

        for frame in decoded():
            if frame is not None:
                frame.pts = None
            for block in resampler.resample(frame):
                if made >= samples:
                    return
                yield _cut(block, made, min(block.samples, samples - made))
                made += block.samples
    while made < samples:
        size = min(_BLOCK, samples - made)
        planes = 2 if context.format.is_planar else 1
        kind = np.dtype({"s16": "<i2", "s32": "<i4", "flt": "<f4"}[context.format.name.removesuffix("p")])
        silence = av.AudioFrame.from_ndarray(
            np.zeros((planes, size if planes == 2 else 2 * size), kind), context.format.name, "stereo"
        )
        silence.rate = SOUND_RATE
        yield _cut(silence, made, size)
        made += size


def _cut(block: Any, start: int, samples: int) -> Any:
    """The first `samples` of a block, standing at sample `start`."""
    import av

    if samples < block.samples:
        values = block.to_ndarray()
        kept = values[:, :samples] if block.format.is_planar else values[:, : samples * 2]
        shorter = av.AudioFrame.from_ndarray(np.ascontiguousarray(kept), block.format.name, "stereo")
        shorter.rate = SOUND_RATE
        block = shorter
    block.pts, block.time_base = start, Fraction(1, SOUND_RATE)
    return block
