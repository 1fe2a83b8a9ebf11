"""Finished frames as a file of the user's choice: 10-bit video, lossless video, pictures, animations.

What can be written stands in `formats`. Frames come one by one as float32, so that more than 8 bits are real,
and go out one by one, so that the length of a video does not matter for memory. Colours are BT.709 and tagged so; the
conversion to Y'CbCr is done here in float (ITU-R BT.709, section 3), and encoders only drop chroma samples.

imageio's PyAV plugin writes the videos and animations, its Pillow plugin the 8-bit pictures. Every file or folder is
whole or absent.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

import imageio.v3 as iio
import numpy as np
from imageio.plugins.pyav import PyAVPlugin

from magi_lite.errors import InputError, OutputError
from magi_lite.files import check_writable, output_errors, replacing
from magi_lite.models import FPS
from magi_lite.video import labels
from magi_lite.video.formats import CONTAINERS, FORMATS, Format, missing_encoder
from magi_lite.video.priority import ordinary_threads
from magi_lite.video.sound import Sound, check_sound, lay_sound
from magi_lite.video.thumbnails import to_png
from quant.storage.files import write_all

if TYPE_CHECKING:
    import av

_BT709, _RGB, _LIMITED, _FULL = 1, 0, 1, 2


class FrameWriter(Protocol):
    """Takes frames (H, W, 3) float32 in [-1, 1], one after another."""

    def write(self, frame: np.ndarray) -> None: ...


def check_export(name: str, target: Path, size: tuple[int, int], overwrite: bool) -> None:
    """Refuse before any work what could not be written: a format that has no encoder here, a target that is there.

    Raises:
        OutputError: no encoder in this build of PyAV, too small for it, the target exists or cannot be written.
    """
    missing = missing_encoder(name)
    if missing:
        others = ", ".join(other for other in FORMATS if not missing_encoder(other))
        raise OutputError(f"The installed PyAV has no encoder {missing} for {name}; choose one of {others}.")
    least = FORMATS[name].least
    if min(size) < least:
        raise OutputError(
            f"{size[0]}x{size[1]} is too small for {name}, which begins at {least}x{least}; choose another format."
        )
    is_folder = FORMATS[name].kind == "pictures"
    if is_folder and target.is_dir():
        if not overwrite:
            raise OutputError(f"{target} exists; give another name, or add --overwrite.")
        foreign = next((path.name for path in target.iterdir() if not path.match("frame_[0-9]*.[pt][ni][gf]*")), None)
        if foreign:
            raise OutputError(f"{target} holds other files than frames, such as {foreign}; give another folder.")
        return
    check_writable(target)
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists; give another name, or add --overwrite.")


@contextlib.contextmanager
def open_export(
    name: str,
    target: Path,
    size: tuple[int, int],
    settings: dict[str, Any] | None = None,
    sound: Sequence[Sound] = (),
    overwrite: bool = False,
) -> Iterator[FrameWriter]:
    """Write frames to `target`; it is there, whole, when the block ends well, and untouched otherwise.

    Args:
        name: of a format.
        target: file, or folder for a format of kind "pictures".
        size: (width, height) in pixels, even.
        settings: kept in the metadata; None: only that a model made it.
        sound: laid under a video, stretch behind stretch, cut or filled with silence to its length.
        overwrite: whether a target that is there is replaced.

    Raises:
        OutputError: see `check_export`; or the encoder refuses the size, or the disk is full.
        InputError: sound under a format that has none; MediaError: no sound in that file.
    """
    import av

    av.logging.set_level(av.logging.FATAL)  # encoders' own lines would stand in the middle of ours
    chosen = FORMATS[name]
    if sound:
        if not chosen.sound:
            raise InputError(f"A file of format {name} has no sound; choose h264, hevc, av1, prores or ffv1.")
        for stretch in sound:
            if stretch.path is not None:
                check_sound(stretch.path)
    check_export(name, target, size, overwrite)
    try:
        if chosen.kind == "pictures":
            with _folder(target) as folder:
                yield _Pictures(chosen, folder, target, labels.xmp(settings))
            return
        with replacing(target) as temporary:
            if chosen.kind == "frame":
                yield _Frame(temporary, settings)
                return
            with _Sink(temporary.absolute()) as sink, _video(sink, target, chosen) as writer:
                writer.begin(chosen, size, settings)
                yield writer
            if sound:
                lay_sound(temporary, sound, chosen.sound, _muxer(chosen, target)["container"])
            _label(temporary, target.suffix.lower(), size, settings)
    except av.FFmpegError as error:
        if isinstance(error, OSError) and error.errno in (28, 122):
            raise OutputError(f"The disk is full at {target}; free some space or choose another folder.") from error
        width, height = size
        reason = f"{error.strerror or error}"
        raise OutputError(f"{width}x{height} cannot be written as {name} ({reason}); choose another format.") from error


def to_8_bit(frame: np.ndarray) -> np.ndarray:
    """[-1, 1] to bytes, truncated as the generated video's own frames are (see `vae.tiling.to_uint8`)."""
    return (frame * 127.5 + 127.5).clip(0, 255).astype(np.uint8)


def to_16_bit(frame: np.ndarray) -> np.ndarray:
    """[-1, 1] to 0..65535, rounded."""
    return np.rint((frame.astype(np.float32) * 0.5 + 0.5).clip(0, 1) * 65535).astype(np.uint16)


def to_ycbcr(frame: np.ndarray, bits: int) -> np.ndarray:
    """(H, W, 3) in [-1, 1] to planes Y, Cb, Cr (3, H, W) of `bits` in limited range, BT.709."""
    red, green, blue = np.moveaxis((frame * 0.5 + 0.5).clip(0, 1), -1, 0)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    unit = 2.0 ** (bits - 8)
    planes = (
        (16 + 219 * luma) * unit,
        (128 + 224 * (blue - luma) / 1.8556) * unit,
        (128 + 224 * (red - luma) / 1.5748) * unit,
    )
    return np.rint(np.stack(planes)).astype(np.uint8 if bits == 8 else np.uint16)


# --- videos and animations -------------------------------------------------------------------------------------------


class _Sink:
    """A file that takes whatever a muxer gives it, and keeps the disk's first refusal until it is asked.

    An error inside of a muxer's own call ends as pages of tracebacks on the terminal.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)  # by which the muxer reads again what it moves behind the index
        self._file = path.open("wb", buffering=0)
        self._refusal: OSError | None = None

    def write(self, data: Any) -> int:
        if self._refusal is None:
            try:
                write_all(self._file.fileno(), data)
            except OSError as error:
                self._refusal = error
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    def check(self) -> None:
        """Raise OSError where the disk has refused something."""
        if self._refusal is not None:
            raise self._refusal

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _video(sink: _Sink, target: Path, chosen: Format) -> Iterator[_Video]:
    """The writer of a video or animation; raises OSError where the disk refuses."""
    import av

    file, options = cast(BinaryIO, sink), {"extension": target.suffix or chosen.suffix, **_muxer(chosen, target)}
    try:
        with iio.imopen(file, "w", plugin=_Video, **options) as opened:
            writer = cast(_Video, opened)
            try:
                yield writer
            except BaseException:
                writer.abandon()
                raise
    except av.FFmpegError:
        sink.check()
        raise
    sink.check()


class _Video(PyAVPlugin):
    """imageio's PyAV plugin with what it has no arguments for: the encoder's options, colour tags and palettes."""

    def begin(self, chosen: Format, size: tuple[int, int], settings: dict[str, Any] | None) -> None:
        """Set up the encoder; nothing is written before the first frame."""
        self._chosen = chosen
        if chosen.kind == "video":
            if settings is not None:
                self.container_metadata["comment"] = labels.comment(settings)
            if chosen.container == "matroska":
                self.container_metadata[labels.SOURCE_TAG] = labels.SOURCE_TYPE
        self.init_video_stream(chosen.codec, fps=FPS, pixel_format=chosen.pixels)
        stream: Any = self._video_stream
        stream.width, stream.height = size
        stream.options = chosen.options
        context = stream.codec_context
        container: Any = self._container
        if chosen.codec == "libx265" and container.format.name != "matroska":
            context.codec_tag = "hvc1"  # what Apple's players want it called
        if chosen.kind == "video":
            in_rgb = chosen.pixels.startswith("gbr")
            context.color_primaries = context.color_trc = _BT709
            context.colorspace = _RGB if in_rgb else _BT709
            context.color_range = _FULL if in_rgb else _LIMITED

    def close(self) -> None:
        """As the plugin does it; what fails is not tried again when the object is let go of."""
        try:
            super().close()
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Close without asking the encoder for what it still holds: after an error it may not answer."""
        import av

        self._video_stream = None
        container, self._container = self._container, None
        if container is not None:
            with contextlib.suppress(OSError, av.FFmpegError):
                container.close()

    def write(self, frame: np.ndarray) -> None:  # type: ignore[override]
        """Encode one frame; ProRes takes the colour tags from the frames, the others from the encoder."""
        import av

        pixels, bits = self._chosen.pixels, self._chosen.bits
        if pixels == "pal8":
            colours: Any = _palette(to_8_bit(frame))
            picture = av.VideoFrame.from_ndarray(colours, format="pal8")
        elif pixels == "bgra":
            picture = av.VideoFrame.from_ndarray(to_8_bit(frame), format="rgb24")
        elif pixels == "gbrp16le":
            picture = av.VideoFrame.from_ndarray(to_16_bit(frame), format="gbrp16le")
        else:
            picture = _from_planes(to_ycbcr(frame, bits), "yuv444p" if bits == 8 else f"yuv444p{bits}le")
            picture = picture.reformat(format=pixels)
        stream: Any = self._video_stream
        container: Any = self._container
        for tag in ("color_primaries", "color_trc", "colorspace", "color_range"):
            setattr(picture, tag, getattr(stream.codec_context, tag))
        picture.pts, picture.time_base = self.frames_written, Fraction(1, FPS)
        opens = self.frames_written == 0
        self.frames_written += 1
        with ordinary_threads() if opens else contextlib.nullcontext():
            packets = stream.encode(picture)
        for packet in packets:
            container.mux(packet)
        cast(_Sink, self.request.get_file()).check()


def _from_planes(planes: np.ndarray, pixels: str) -> av.VideoFrame:
    """A frame of planes (3, H, W) in a planar format; PyAV itself takes few of them from arrays."""
    import av

    picture = av.VideoFrame(planes.shape[2], planes.shape[1], pixels)
    for plane, values in zip(picture.planes, planes, strict=True):
        memory: Any = plane
        lines = np.frombuffer(memory, values.dtype).reshape(plane.height, -1)
        lines[:, : plane.width] = values
    return picture


def _palette(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A frame in 256 colours of its own, dithered: indices (H, W) and colours (256, 4) as alpha, red, green, blue."""
    from PIL import Image

    image = Image.fromarray(pixels).quantize(256)
    colours = np.full((256, 4), 255, np.uint8)
    used = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    colours[: len(used), 1:] = used
    return np.asarray(image), colours


def _muxer(chosen: Format, target: Path) -> dict[str, Any]:
    """Arguments of the container."""
    container = CONTAINERS.get(target.suffix.lower(), chosen.container)
    options = {"mp4": {"movflags": "+faststart"}, "mov": {"movflags": "+faststart"}}.get(container, {})
    return {"container": container, "options": {"loop": "0"} if chosen.kind == "animation" else options}


def _label(path: Path, suffix: str, size: tuple[int, int], settings: dict[str, Any] | None) -> None:
    """Add the XMP packet to a finished file of those kinds that keep one."""
    packet = labels.xmp(settings)
    if suffix == ".webp":
        with path.open("r+b") as file:
            labels.label_webp(file, packet, size)
    label = {".gif": labels.label_gif, ".mp4": labels.label_mp4, ".mov": labels.label_mp4}
    if suffix in label:
        with path.open("r+b") as file:
            label[suffix](file, packet)


# --- pictures --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _folder(target: Path) -> Iterator[Path]:
    """A hidden folder that takes the place of `target` when the block ends well."""
    hidden = target.with_name(f".{target.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with output_errors(target):
        hidden.mkdir()
    try:
        yield hidden
        with output_errors(target):
            old = hidden.with_suffix(".old")
            if target.exists():
                target.rename(old)
            hidden.rename(target)
            shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


class _Pictures:
    """A file per frame: frame_00000.png and so on."""

    def __init__(self, chosen: Format, folder: Path, target: Path, packet: bytes) -> None:
        self._chosen, self._folder, self._target, self._packet, self._count = chosen, folder, target, packet, 0

    def write(self, frame: np.ndarray) -> None:
        suffix = ".tif" if self._chosen.codec == "tiff" else ".png"
        path = self._folder / f"frame_{self._count:05}{suffix}"
        if self._chosen.bits == 8:
            data = labels.label_png(
                iio.imwrite("<bytes>", to_8_bit(frame), plugin="pillow", extension=".png"), self._packet
            )
        else:
            data = _encode_16_bit(to_16_bit(frame), self._chosen.codec)
            data = (labels.label_tiff if suffix == ".tif" else labels.label_png)(data, self._packet)
        with output_errors(self._target):
            path.write_bytes(data)
        self._count += 1


class _Frame:
    """One picture: of several frames the last one stays."""

    def __init__(self, path: Path, settings: dict[str, Any] | None) -> None:
        self._path, self._settings = path, settings

    def write(self, frame: np.ndarray) -> None:
        self._path.write_bytes(to_png(to_8_bit(frame), self._settings))


def _encode_16_bit(pixels: np.ndarray, codec: str) -> bytes:
    """A PNG or TIFF file of (H, W, 3) uint16 pixels; Pillow has no 16-bit colour, FFmpeg's codecs do."""
    import av

    context: Any = av.CodecContext.create(codec, "w")
    context.width, context.height, context.time_base = pixels.shape[1], pixels.shape[0], Fraction(1, FPS)
    context.pix_fmt = "rgb48be" if codec == "png" else "rgb48le"
    if codec == "tiff":
        context.options = {"compression_algo": "deflate"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb48le").reformat(format=context.pix_fmt)
    out = io.BytesIO()
    for packet in [*context.encode(frame), *context.encode(None)]:
        out.write(bytes(packet))
    return out.getvalue()
