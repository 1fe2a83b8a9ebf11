"""One chunk, one MP4 fragment: the pieces that a crash-safe, growing video is made of.

A video is an init segment (`ftyp`, `moov`: codec, size, settings in the `comment` tag; `uuid`: that a model made it)
followed by a fragment (`moof`, `mdat`) per chunk. Every chunk is encoded by an encoder of its own, so it is a closed
group of pictures that needs no other chunk, and the same frames give the same bytes whatever came before. Fragments
are therefore the unit of everything: appending, cutting off, branching and rebuilding are copies of bytes, never a
second encoding. The road not taken, one encoder for the whole file, keeps the last chunk inside the muxer until the
next one starts.

Box layout: ISO/IEC 14496-12; the `avc1` codec string: RFC 6381, section 3.3.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from magi_lite.video import labels
from magi_lite.video.containers import open_media
from quant.storage.files import open_plain

TICKS_PER_FRAME = 1000
"""Units of the track's clock per frame."""
INIT_STEP = 4096
"""Init segments are padded to a multiple of this, so that other settings rarely move the fragments behind them."""
_LARGEST_HEADER = 64 << 20
"""Bytes of a box that describes pictures; one that claims more describes none."""
_BT709 = 1
_LIMITED_RANGE = 1
_THREADS = 1
"""More gain nothing: a second of 720 x 720 takes 0.6 s either way."""
X264_PARAMETERS = "stitchable=1:sliced-threads=0:cpu-independent=1"
"""`cpu-independent`, for equal frames must give equal bytes: without it, and on a processor with AVX-512, x264's
macroblock tree reads memory that nobody wrote, and codes the same frames in other and more bytes after whatever ran
before."""


@dataclass(frozen=True)
class Scan:
    """What is whole in a fragmented file: init segment, (offset, bytes, frames) per fragment, and where they end."""

    init: bytes
    fragments: tuple[tuple[int, int, int], ...]
    end: int

    @property
    def frames(self) -> int:
        return sum(frames for _, _, frames in self.fragments)


def encode_init(
    size: tuple[int, int], fps: int, crf: int, settings: dict[str, Any] | None, parameters: bytes | None = None
) -> bytes:
    """The init segment of a video of `size` (width, height), with `settings` in its `comment` tag.

    That a model made it stands in it in any case (see `labels`).

    Args:
        parameters: the `parameter_sets` of fragments that another version of the encoder made; None: ours.
    """
    buffer = io.BytesIO()
    container, _ = _open(buffer, size, fps, crf, settings)
    container.start_encoding()
    init = _with_parameters(buffer.getvalue(), parameters) + labels.mp4_box(labels.xmp())
    container.close()
    padding = -(len(init) + 8) % INIT_STEP
    return init + struct.pack(">I4s", padding + 8, b"free") + bytes(padding)


def encode_chunk(frames: np.ndarray, fps: int, crf: int) -> bytes:
    """Encode frames (T, H, W, 3) uint8, T >= 1, to a fragment (H.264, yuv420p, BT.709) that stands at time 0."""
    import av

    buffer = io.BytesIO()
    container, stream = _open(buffer, (frames.shape[2], frames.shape[1]), fps, crf, None)
    for number, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED_RANGE)
        frame.pts, frame.time_base = number, Fraction(1, fps)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    container.close()
    data = buffer.getvalue()
    pieces = [data[start:end] for kind, start, end in boxes(data) if kind in (b"moof", b"mdat")]
    assert len(pieces) == 2, "a chunk must be one fragment"
    return b"".join(pieces)


def place(fragment: bytes, number: int, first_frame: int) -> bytes:
    """The fragment as the `number`th (from 0) of a video, beginning at frame `first_frame`."""
    placed = bytearray(fragment)
    mfhd = _find(fragment, b"moof", b"mfhd")
    tfdt = _find(fragment, b"moof", b"traf", b"tfdt")
    struct.pack_into(">I", placed, mfhd + 12, number + 1)
    assert fragment[tfdt + 8] == 1, "the decode time must have 64 bits"
    struct.pack_into(">Q", placed, tfdt + 12, first_frame * TICKS_PER_FRAME)
    return bytes(placed)


def place_of(fragment: bytes) -> int:
    """The number (from 0) of a fragment in its video, or of its `moof` alone."""
    return struct.unpack_from(">I", fragment, _find(fragment, b"moof", b"mfhd") + 12)[0] - 1


def frame_count(fragment: bytes) -> int:
    """Frames in a fragment, or in its `moof` alone."""
    trun = _find(fragment, b"moof", b"traf", b"trun")
    return struct.unpack_from(">I", fragment, trun + 12)[0]


def codec_string(init: bytes) -> str:
    """The codec as a browser wants it named, such as `avc1.640020`."""
    return f"avc1.{parameter_sets(init)[1:4].hex()}"


def mime(init: bytes) -> str:
    """The file's type as MediaSource wants it, codec included."""
    return f'video/mp4; codecs="{codec_string(init)}"'


def parameter_sets(init: bytes) -> bytes:
    """The decoder configuration (`avcC` content) of an init segment: equal ones can share a video.

    Raises:
        ValueError: there is none.
    """
    position = init.index(b"avcC")
    (length,) = struct.unpack_from(">I", init, position - 4)
    return init[position + 4 : position - 4 + length]


def decodes(init: bytes, fragment: bytes) -> bool:
    """Whether a fragment's pictures come out whole behind an init segment, which then has its parameter sets."""
    import av

    try:
        with open_media(io.BytesIO(init + place(fragment, 0, 0)), {"err_detect": "explode"}) as container:
            context = container.streams.video[0].codec_context
            context.thread_count, context.options = 1, {"err_detect": "explode"}
            return sum(1 for _ in container.decode(video=0)) == frame_count(fragment)
    except (av.FFmpegError, ValueError, IndexError):
        return False


def frames_of(init: bytes, fragment: bytes) -> np.ndarray:
    """The pictures (T, H, W, 3) uint8 of a fragment, behind an init segment of its size and parameter sets.

    Raises:
        av.FFmpegError, ValueError, IndexError: they cannot be decoded.
    """
    with open_media(io.BytesIO(init + place(fragment, 0, 0))) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _with_parameters(init: bytes, parameters: bytes | None) -> bytes:
    """An init segment with another decoder configuration; the sizes of the boxes around it follow."""
    if parameters is None or parameters == parameter_sets(init):
        return init
    changed, place_of = bytearray(init), init.index(b"avcC")
    more = len(parameters) - len(parameter_sets(init))
    for kind in (b"avcC", b"avc1", b"stsd", b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        start = init.rindex(kind, 0, place_of + 4) - 4
        (size,) = struct.unpack_from(">I", init, start)
        struct.pack_into(">I", changed, start, size + more)
    changed[place_of + 4 : place_of + 4 + len(parameter_sets(init))] = parameters
    return bytes(changed)


def scan(path: Path) -> Scan:
    """Find the whole fragments of a file of ours; a torn tail is left out.

    Raises:
        ValueError: the file is not a fragmented MP4.
        OSError: it cannot be read.
    """
    init, end, frames, moof_start = b"", 0, 0, 0
    fragments: list[tuple[int, int, int]] = []
    with open_plain(path) as file:
        for kind, start, size in _headers(file):
            if kind != b"mdat" and size > _LARGEST_HEADER:
                break
            if kind in (b"ftyp", b"moov", b"uuid", b"free") and not fragments:
                init += _read(file, start, size)
                end = start + size
            elif kind == b"moof":
                moof_start, frames = start, frame_count(_read(file, start, size))
            elif kind == b"mdat" and frames:
                end = start + size
                fragments.append((moof_start, end - moof_start, frames))
                frames = 0
            else:
                break
    if b"mvex" not in init:
        raise ValueError(f"{path} is not a fragmented MP4")
    return Scan(init, tuple(fragments), end)


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of the boxes in data[start:end]; a torn last one is left out."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        if size < 8 or start + size > end:
            return
        yield kind, start, start + size
        start += size


def _find(data: bytes, *path: bytes) -> int:
    """Where the box at `path` starts."""
    start, end = 0, len(data)
    for depth, name in enumerate(path):
        inside = start + 8 if depth else start
        found = next((box for box in boxes(data, inside, end) if box[0] == name), None)
        if found is None:
            raise ValueError(f"the fragment has no {name.decode()} box")
        _, start, end = found
    return start


def _headers(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, size) of the whole top-level boxes of a file."""
    total, start = file.seek(0, io.SEEK_END), 0
    while start + 8 <= total:
        size, kind = struct.unpack(">I4s", _read(file, start, 8))
        if size == 1 and start + 16 <= total:
            (size,) = struct.unpack(">Q", _read(file, start + 8, 8))
        if size < 8 or start + size > total:
            return
        yield kind, start, size
        start += size


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _open(
    buffer: io.BytesIO, size: tuple[int, int], fps: int, crf: int, settings: dict[str, Any] | None
) -> tuple[Any, Any]:
    """A muxer into `buffer` and its encoder: closed groups, no B-frames, headers that do not depend on the pictures."""
    import av

    flags = "+frag_keyframe+empty_moov+default_base_moof"
    options = {"movflags": flags, "video_track_timescale": str(fps * TICKS_PER_FRAME)}
    container = av.open(buffer, "w", format="mp4", options=options)
    if settings is not None:
        container.metadata["comment"] = labels.comment(settings)
    encoder = {
        "crf": str(crf),
        "preset": "medium",
        "bf": "0",
        "g": "100000",
        "sc_threshold": "0",
        "threads": str(_THREADS),
        "x264-params": X264_PARAMETERS,
    }
    stream = container.add_stream("libx264", rate=fps, options=encoder)
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.color_primaries = context.color_trc = context.colorspace = _BT709
    context.color_range = _LIMITED_RANGE
    return container, stream
