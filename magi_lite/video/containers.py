"""Opening foreign media files: by their content, and without anything else being opened with them.

A playlist or a list of files inside a "video" or a "sound" can name other files and addresses; only formats that hold
their own data are read, and from the file alone. Every other module opens media and pictures through this one.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from magi_lite.errors import MediaError

if TYPE_CHECKING:
    import av
    from PIL import Image

MAX_FRAME_PIXELS = 40_000_000
"""Largest frame of a video that is decoded: above 8K."""
MAX_ANIMATED_PIXELS = 12_000_000
"""Largest GIF, WebP, AVIF or PNG that moves: above 4K. Decoders hold up to four pictures, four bytes a pixel."""
DAMAGED = "is damaged or not a video that can be read; use an MP4, MOV or WebM."
NO_PICTURE = "is not an image that can be read; use PNG, JPEG or WebP."
_FORMATS = (
    "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "m4v", "h261",
    "h263", "h264", "hevc", "vvc", "av1", "obu", "ivf", "flv", "asf", "ogg", "mxf", "nut", "rm", "dv", "vc1", "wtv",
    "yuv4mpegpipe", "dnxhd", "mp3", "wav", "w64", "flac", "aac", "ac3", "eac3", "aiff", "caf", "au", "amr", "wv", "ape",
    "tta", "dts", "dtshd", "truehd",
)  # fmt: skip
"""Containers and raw streams that are read: none refers to other files."""
_BRANDS = {b"avif": "picture", b"avis": "picture", b"heic": "heif", b"heix": "heif", b"hevc": "heif", b"hevx": "heif"}
_BRANDS |= {b"heim": "heif", b"heis": "heif", b"mif1": "heif", b"msf1": "heif"}

_STARTS = (
    *(b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\1\0"),
    *(b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "),
)
"""How PNG, JPEG, GIF, TIFF, ICO and JPEG 2000 begin."""
RAW = "a raw picture of a camera"
_UNREAD = {
    b"8BPS": "a Photoshop picture", b"gimp xcf": "a GIMP picture", b"v/1\x01": "an OpenEXR picture",
    b"#?RADIANCE": "a Radiance picture", b"#?RGBE": "a Radiance picture", b"\xff\x0a": "a JPEG XL picture",
    b"\0\0\0\x0cJXL ": "a JPEG XL picture", b"FUJIFILMCCD-RAW": RAW, b"IIRO": RAW, b"IIRS": RAW, b"IIU\0": RAW,
}  # fmt: skip
"""How pictures begin that people have and that are not read."""
_CANON = b"crx "
"""The brand of a raw picture."""


def kind_of(path: Path) -> str:
    """What a file is by its first bytes: "picture", "heif" (a picture that needs pillow-heif), or "other"."""
    with path.open("rb") as file:
        head = file.read(64)
    if head[4:8] == b"ftyp":
        brands = [
            head[8:12],
            *(head[at : at + 4] for at in range(16, min(len(head), int.from_bytes(head[:4], "big")), 4)),
        ]
        found = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
        found += ["picture"] if head[8:12] == _CANON else []
        return "picture" if "picture" in found else "heif" if brands[0] in _BRANDS else "other"
    known = head.startswith(_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
    known |= head[:2] == b"BM" and head[6:10] == bytes(4)
    known |= head.startswith(tuple(_UNREAD))
    known |= head[:1] == b"P" and head[1:2] in b"1234567" and head[2:3].isspace()
    return "picture" if known or path.suffix.lower() == ".tga" else "other"


def check_read(path: Path) -> None:
    """Refuse a picture of a kind that is known and not read.

    Raises:
        MediaError: it is one; the sentence names its kind.
    """
    with path.open("rb") as file:
        head = file.read(16)
    raw = head[4:12] == b"ftyp" + _CANON or (head[:4] == b"II*\0" and head[4:11] == b"\x10\0\0\0CR\2")
    kind = RAW if raw else next((kind for start, kind in _UNREAD.items() if head.startswith(start)), "")
    if kind:
        raise MediaError(f"{path.name} {unread(kind)}")


def unread(kind: str) -> str:
    """The sentence for a kind of picture that is not read."""
    return f"is {kind}, which is not read; save it as PNG or JPEG."


@contextmanager
def open_media(
    source: Path | BinaryIO, options: dict[str, str] | None = None
) -> Iterator[av.container.InputContainer]:
    """A media file, of pictures or of sound, opened for reading: the one way in which media are opened.

    Args:
        source: a path, or the content.
        options: more of FFmpeg's.

    Raises:
        av.FFmpegError, OSError, ValueError: it is none, or of a format that refers to other files.
    """
    import av

    allowed = {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "file"}
    file = str(source.absolute()) if isinstance(source, Path) else source  # a relative "a:b.mp4" would be protocol a
    with av.open(file, options={**(options or {}), **allowed}) as container:
        yield container


def open_header(file: BinaryIO, formats: Sequence[str]) -> Image.Image:
    """A picture with its header read and its pixels not yet, by Pillow's readers of `formats`, in that order.

    `Image.open` would hold the size against a limit that belongs to the whole process. Here sizes are judged by the
    caller, for each kind of file, and that limit stays as it is, whatever other threads do.

    Raises:
        PIL.UnidentifiedImageError: it is of none of these formats.
        Exception: it is damaged; readers raise anything.
    """
    from PIL import Image, UnidentifiedImageError

    if any(name not in Image.OPEN for name in formats):
        Image.init()
    start = file.read(16)
    _check_parts(file, start)
    file, notes = _without_long_notes(file, start)
    for name in formats:
        read, fits = Image.OPEN.get(name, (None, None))
        if read is None or (fits is not None and fits(start) is not True):
            continue
        file.seek(0)
        try:
            image = read(file, "")
            image.info.update(notes)
            return image
        except (SyntaxError, IndexError, TypeError, struct.error):  # how a reader says that it is another format
            continue
    raise UnidentifiedImageError


_LONGEST_TEXT_HEADER = 1 << 16
"""Bytes in which a portable pixmap says its size, comments included."""
_MOST_CHUNKS, _MOST_NOTES = 1_000_000, 10_000
"""Chunks of a PNG, and those among them that hold no pixels."""
_PIXELS = (b"IDAT", b"fdAT", b"fcTL")


def _check_parts(file: BinaryIO, start: bytes) -> None:
    """Refuse what would keep Pillow's readers busy for minutes: they take text byte by byte, and chunks one by one.

    Raises:
        ValueError: in words that go on from "cannot be read".
    """
    if re.match(rb"P[1-6]\s", start):
        file.seek(0)
        words = re.sub(rb"#[^\r\n]*[\r\n]?", b" ", file.read(_LONGEST_TEXT_HEADER)).split()
        if len(words) < 3:
            raise ValueError("its size does not stand at its beginning")
    elif start.startswith(b"\x89PNG"):
        notes = 0
        for number, (_, _, kind) in enumerate(png_chunks(file), 1):
            notes += kind not in _PIXELS
            if number > _MOST_CHUNKS or notes > _MOST_NOTES:
                raise ValueError(f"it has more than {_MOST_NOTES if notes > _MOST_NOTES else _MOST_CHUNKS} parts")


def png_chunks(file: BinaryIO, at: int = 8) -> Iterator[tuple[int, int, bytes]]:
    """Place, length and kind of each chunk of a PNG from `at` on; the file stands at its content meanwhile."""
    file.seek(at)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        yield at, length, kind
        at += 12 + length
        file.seek(at)


_LONGEST_NOTE, _LONGEST_NOTES, _LONGEST_PROFILE = 1 << 20, 16 << 20, 16 << 20
"""Bytes of a text in a PNG that is read, as it is once inflated; of all of them; and of a colour profile or an EXIF."""
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


def _without_long_notes(file: BinaryIO, start: bytes) -> tuple[BinaryIO, dict[str, bytes]]:
    """A PNG without texts and private parts that are too long; its colour profile where that is long, and its EXIF.

    Pillow calls a PNG damaged that has a megabyte of text or profile, and holds every part of it that it does not know.
    An EXIF behind the pixels it does not see before they are decoded.
    """
    notes: dict[str, bytes] = {}
    if not start.startswith(b"\x89PNG"):
        return file, notes
    kept = [(0, 8)]
    texts = end = 0
    for at, length, kind in png_chunks(file):
        end, keep = at + 12 + length, True
        if kind in _TEXTS:
            size = length if length > _LONGEST_NOTE or texts > _LONGEST_NOTES else _inflated(file.read(length), kind)
            keep = size <= _LONGEST_NOTE and texts <= _LONGEST_NOTES
            texts += size
        elif kind == b"iCCP" and length <= _LONGEST_PROFILE:
            found = _inflate(file.read(length).partition(b"\0")[2][1:], _LONGEST_PROFILE)
            keep = len(found) <= _LONGEST_NOTE
            if not keep and len(found) <= _LONGEST_PROFILE:
                notes["icc_profile"] = found
        elif kind == b"eXIf":
            keep = length <= _LONGEST_PROFILE
            if keep:
                notes["exif"] = b"Exif\0\0" + file.read(length)
        elif kind not in _PIXELS and kind[0] & 0x20:  # a part that need not be understood
            keep = length <= _LONGEST_NOTE
        if keep and kept[-1][1] == at:
            kept[-1] = (kept[-1][0], end)
        elif keep:
            kept.append((at, end))
    whole = len(kept) == 1 and kept[0][1] == max(end, 8)
    return (file if whole else cast(BinaryIO, io.BufferedReader(_Parts(file, kept)))), notes


def _inflated(data: bytes, kind: bytes) -> int:
    """Bytes of a PNG's text, or one more than is read."""
    _, _, text = data.partition(b"\0")
    if kind == b"iTXt":
        packed, text = text[:1] == b"\1", text[2:].partition(b"\0")[2].partition(b"\0")[2]
    elif kind == b"zTXt":
        packed, text = True, text[1:]
    else:
        packed = False
    return len(_inflate(text, _LONGEST_NOTE)) if packed else len(text)


def _inflate(data: bytes, most: int) -> bytes:
    """Data inflated, `most` bytes and one more at most; nothing where it cannot be."""
    try:
        return zlib.decompressobj().decompress(data, most + 1)
    except zlib.error:
        return b""


class _Parts(io.RawIOBase):
    """Some stretches of a file, as if there were nothing between them."""

    def __init__(self, file: BinaryIO, stretches: Sequence[tuple[int, int]]) -> None:
        self._file, self._at = file, 0
        self._stretches: list[tuple[int, int]] = []
        """Where each begins: here, and in the file."""
        end = 0
        for start, until in stretches:
            self._stretches.append((end, start))
            end += until - start
        self._end = end

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        number = bisect_right(self._stretches, self._at, key=lambda stretch: stretch[0]) - 1
        here, there = self._stretches[number]
        until = self._stretches[number + 1][0] if number + 1 < len(self._stretches) else self._end
        self._file.seek(there + self._at - here)
        data = self._file.read(max(0, min(len(buffer), until - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def moving_pictures(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """The stream of a clip's pictures, the one to show if a file says so; covers of music do not count.

    Raises:
        MediaError: there is none that can be decoded, or its frames are too large; one sentence.
    """
    import av

    pictures = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not (container.streams.video or container.streams.audio or container.streams.subtitles):
        raise MediaError(f"{name} {DAMAGED}")
    if not pictures:
        raise MediaError(f"{name} has no moving pictures in it; use an MP4, MOV or WebM.")
    known = [stream for stream in pictures if stream.codec_context is not None]
    if not known and _header_is_cut(container):
        raise MediaError(f"{name} {DAMAGED}")
    if not known:
        raise MediaError(f"{name} has pictures in a format that cannot be decoded; convert it to H.264 first.")
    stream = next((stream for stream in known if stream.disposition & av.stream.Disposition.default), known[0])
    if stream.codec_context.width * stream.codec_context.height > MAX_FRAME_PIXELS:
        raise MediaError(f"{name} {too_large()}")
    return stream


_MOST_BOXES = 10_000
"""Boxes of a file that are looked at; a film has some dozen, one made of fragments a few for every second."""


def _header_is_cut(container: av.container.InputContainer) -> bool:
    """Whether an MP4 or MOV ends within its header, so that what it holds is not known."""
    path = Path(container.name)
    if "mov" not in container.format.name or not path.is_file():
        return False
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        for _ in range(_MOST_BOXES):
            if at + 8 > size:
                break
            file.seek(at)
            length, kind = struct.unpack(">I4s", file.read(8))
            if length == 1 and len(longer := file.read(8)) == 8:  # of more than 4 GB
                length = int.from_bytes(longer, "big")
            if kind == b"moov":
                return at + length > size
            if length < 8:  # to the end of the file, or none
                return False
            at += length
    return False


def check_one_ogg(path: Path) -> None:
    """Refuse Ogg files joined in one, of which the reader knows the first, or stops where their kinds differ.

    Raises:
        MediaError: it is some; one sentence.
    """
    begun = False
    with path.open("rb") as file:
        while len(head := file.read(27)) == 27 and head[:4] == b"OggS":
            begins = bool(head[5] & 2)  # a stream; all of a recording begin before anything else (RFC 3533, 4)
            if begins and begun:
                raise MediaError(
                    f"{path.name} is several Ogg recordings in one file, which cannot be read as one; "
                    "give one of them, or join them in another format."
                )
            begun = begun or not begins
            file.seek(sum(file.read(head[26])), 1)


def too_large(most: int = MAX_FRAME_PIXELS) -> str:
    """The sentence for frames of more than `most` pixels, which are not decoded."""
    return f"has frames of more than {most // 10**6} megapixels; make it smaller."
