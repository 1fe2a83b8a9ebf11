"""Very large pictures, made smaller while they are read: PNG, TIFF, WebP and AVIF a band at a time.

Pillow decodes a picture as a whole, four bytes a pixel and more. A band of it is a picture too: rows of a PNG, with the
row above them in front because filters refer to it, or strips and tiles of a TIFF, each in a small file of its own that
is built in memory. So the decoders are the usual ones, and memory holds one band and the small result. A WebP or
an AVIF is decoded as a whole, but by FFmpeg and to the samples that it stores; they become colours a band at a time.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from magi_lite.video.colour import matrix_of
from magi_lite.video.containers import open_header, open_media, png_chunks

BAND_BYTES = 16 << 20
"""Decoded bytes of one band."""
LARGEST_PIECE = 256 << 20
"""Decoded bytes of a strip or a tile of a TIFF, which is never taken apart."""
SMALL_PIXELS = 24_000_000
"""Pictures up to this size are decoded as a whole; no result of `reduced` is larger."""
_BT601 = 5
"""The matrix of WebP (RFC 6386, 9.2), as the scaler numbers it."""
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_COPIED_TAGS = (258, 259, 262, 266, 277, 284, 292, 293, 317, 320, 338, 339, 347, 530)
"""What tells a TIFF decoder how a strip or a tile is stored."""


class CannotReduce(Exception):
    """The picture is stored in a way that has no bands: as a whole, interlaced, or in planes."""


def reduced(path: Path, image: Image.Image, longest: int, background: tuple[int, int, int]) -> Image.Image:
    """A large picture, opaque, made smaller by a whole number so that its shorter side stays above `longest`.

    Args:
        path: the file.
        image: it, opened by Pillow and not yet decoded: a PNG, a TIFF, a WebP or an AVIF.
        longest: what the shorter side should not fall below, if memory allows.
        background: shows through transparent parts.

    Returns:
        "L", "RGB", "CMYK" or "F", with the information of `image`.

    Raises:
        CannotReduce: it has no bands.
        OSError, ValueError, SyntaxError, zlib.error: it is damaged.
    """
    factor, height = whole_factor(image.size, longest), image.height
    if image.format == "PNG":
        bands = _png_bands(path, factor, background)
    elif image.format == "WEBP":
        bands = _webp_bands(path, image, factor)
    elif image.format == "AVIF":
        bands = _avif_bands(path, image, factor)
    else:
        height = image.tag_v2[257]  # type: ignore[attr-defined]  # as stored, not yet turned
        bands = _tiff_bands(path, image, factor)
    result, at = None, 0
    for band in bands:
        small = _reducible(band, background).reduce(factor)
        if result is None:
            result = Image.new(small.mode, (small.width, -(-height // factor)))
        result.paste(small, (0, at))
        at += small.height
    if result is None:
        raise ValueError("no pixels")
    kept = ("icc_profile", "exif", "gamma", "srgb", "cicp")
    result.info.update({name: image.info[name] for name in kept if name in image.info})
    turned = orientation(image)
    if turned != 1:
        result.getexif()[0x0112] = turned
    return result


def whole_factor(size: tuple[int, int], longest: int) -> int:
    """By what a large picture is made smaller: its shorter side stays above `longest`, if memory allows."""
    width, height = size
    return max(1, min(width, height) // longest, int(np.ceil(np.sqrt(width * height / SMALL_PIXELS))))


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of a picture that need not be decoded for it; a damaged EXIF says nothing."""
    try:  # a PNG's own `getexif` would decode it to look behind the pixels
        found = (Image.Image.getexif(image) if image.format == "PNG" else image.getexif()).get(0x0112, 1)
        return found if found in range(1, 9) else 1
    except Exception:  # readers of foreign files raise anything
        return 1


# --- JPEG ------------------------------------------------------------------------------------------------------------

_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Markers that begin a frame (ITU-T T.81, table B.1)."""
_PROGRESSIVE, _LOSSLESS = (0xC2, 0xC6, 0xCA, 0xCE), (0xC3, 0xC7, 0xCB, 0xCF)
_NO_LENGTH = (0x00, 0x01, *range(0xD0, 0xDA))


class JpegFrame(NamedTuple):
    """How a JPEG is stored.

    Attributes:
        scalable: whether it can be decoded at a fraction; of a lossless one libjpeg would write far behind its buffer.
        held: bytes that its decoder holds of the whole picture, at every scale: coefficients, if they come in several
            passes; a picture of one pass is decoded row by row.
    """

    scalable: bool
    held: int


def jpeg_frame(path: Path) -> JpegFrame:
    """How a JPEG is stored, by the headers before its pixels; one without them is damaged and not scalable."""
    kind = coefficients = components = 0
    with path.open("rb") as file:
        file.seek(2)
        while True:
            mark = file.read(1)
            while mark and mark != b"\xff":
                mark = file.read(1)
            while mark == b"\xff":
                mark = file.read(1)
            if not mark:
                return JpegFrame(False, 0)
            if mark[0] in _NO_LENGTH:
                continue
            content = file.read(max(0, int.from_bytes(file.read(2), "big") - 2))
            if mark[0] in _FRAMES and len(content) >= 6:
                kind = mark[0]
                height, width, components = struct.unpack_from(">HHB", content, 1)
                factors = [(byte >> 4, byte & 15) for byte in content[7::3][:components]]
                if not factors or not all(across and down for across, down in factors):
                    return JpegFrame(False, 0)
                most_across, most_down = max(a for a, _ in factors), max(d for _, d in factors)
                units = -(-width // (8 * most_across)) * -(-height // (8 * most_down))
                coefficients = 64 * units * sum(across * down for across, down in factors)
            elif mark[0] == 0xDA and content:
                passes = kind in _PROGRESSIVE or content[0] < components
                return JpegFrame(kind not in (0, *_LOSSLESS), 2 * coefficients if passes else 0)


_MARKER = re.compile(rb"\xff+([^\x00\x01\xff\xd0-\xd8])", re.DOTALL)
"""A marker that is no byte of pixels and not one of those without a length (ITU-T T.81, B.1.1); the end is one, too."""


def jpeg_scans(path: Path, most: int) -> int:
    """How many passes over its pixels a JPEG has; one more than `most` where there are more."""
    scans, at = 0, 2
    with path.open("rb") as file:
        while scans <= most:
            file.seek(at)
            piece = file.read(1 << 16)
            if len(piece) < 2:
                break
            where = 0
            while scans <= most and (found := _MARKER.search(piece, where)) and found.end() + 2 <= len(piece):
                if found[1] == b"\xd9":
                    return scans
                scans += found[1] == b"\xda"
                where = found.end() + max(2, int.from_bytes(piece[found.end() : found.end() + 2], "big"))
            if where < len(piece) < 1 << 16:
                break
            at += max(where, len(piece) - 3)  # a marker and its length may be cut in two
    return scans


def jpeg_factor(size: tuple[int, int], longest: int) -> int:
    """The fraction at which a JPEG is decoded, 1, 2, 4 or 8: as `whole_factor`, as far as decoders know it."""
    most_detail = 1 << max(0, (min(size) // longest).bit_length() - 1)
    pixels = size[0] * size[1]
    least_memory = next((factor for factor in (1, 2, 4) if pixels <= SMALL_PIXELS * factor**2), 8)
    return min(8, max(most_detail, least_memory))


# --- PNG -------------------------------------------------------------------------------------------------------------


def png_header(path: Path) -> tuple[tuple[int, ...], dict[bytes, bytes], int]:
    """Width, height, depth, colour, compression, filter, interlace; small chunks before the pixels; where these are.

    Raises:
        ValueError: no pixels.
    """
    chunks: dict[bytes, bytes] = {}
    with path.open("rb") as file:
        for at, size, kind in png_chunks(file):
            if kind == b"IDAT":
                return struct.unpack(">IIBBBBB", chunks[b"IHDR"][:13]), chunks, at
            if size <= 1 << 16:
                chunks[kind] = file.read(size)
    raise ValueError("no pixels")


def _png_data(path: Path, at: int) -> Iterator[bytes]:
    """The compressed bytes of the pixels, in pieces."""
    with path.open("rb") as file:
        for _, size, kind in png_chunks(file, at):
            if kind == b"IEND":
                return
            left = size if kind == b"IDAT" else 0
            while left:
                piece = file.read(min(left, 1 << 16))
                if not piece:
                    return
                left -= len(piece)
                yield piece


def _png_bands(path: Path, factor: int, background: tuple[int, int, int]) -> Iterator[Image.Image]:
    (width, height, depth, colour, _, _, interlace), chunks, at = png_header(path)
    if interlace:
        raise CannotReduce
    bits = depth * _CHANNELS[colour]
    line = 1 + (width * bits + 7) // 8
    rows = max(factor, BAND_BYTES // max(line, 4 * width) // factor * factor)
    above = None
    done = 0
    for block in _blocks(_png_data(path, at), line, rows, height):
        raw = _unfiltered(block, above, line - 1, max(1, bits // 8))
        above = raw[-1].tobytes()
        yield Image.fromarray(_png_pixels(raw, width, depth, colour, chunks, background))
        done += len(raw)
    if done < height:
        raise ValueError("image file is truncated")


def _blocks(pieces: Iterator[bytes], line: int, rows: int, height: int) -> Iterator[bytes]:
    """Decompressed filtered lines, `rows` at a time."""
    inflate, left, wanted = zlib.decompressobj(), b"", height
    buffer = bytearray()
    for piece in pieces:
        data = left + piece
        while data and wanted:
            need = min(rows, wanted) * line - len(buffer)
            buffer += inflate.decompress(data, need)
            data = inflate.unconsumed_tail
            if len(buffer) == min(rows, wanted) * line:
                wanted -= len(buffer) // line
                yield bytes(buffer)
                buffer = bytearray()
            elif inflate.eof:
                data = b""
        left = bytes(data)
    whole = len(buffer) // line
    if whole:
        yield bytes(buffer[: whole * line])


def _unfiltered(block: bytes, above: bytes | None, line: int, pixel: int) -> np.ndarray:
    """Bytes (rows, line) of filtered lines: decoded as a PNG of 8 or 16 bits whose pixels are as many bytes."""
    rows = len(block) // (line + 1)
    if above is not None:
        block, rows = b"\0" + above + block, rows + 1
    depth, colour = {1: (8, 0), 2: (8, 4), 3: (8, 2), 4: (8, 6), 6: (16, 2), 8: (16, 6)}[pixel]
    header = struct.pack(">IIBBBBB", line // pixel, rows, depth, colour, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(block, 0)), (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    if depth == 8:
        with open_header(io.BytesIO(data), ("PNG",)) as image:
            raw = np.asarray(image).reshape(rows, line)
    else:
        raw = _decode_16_bit(data).view(np.uint8).reshape(rows, line)
    return raw[1:] if above is not None else raw


def _decode_16_bit(data: bytes) -> np.ndarray:
    """A PNG of 16-bit colours, big-endian; Pillow would keep 8 of the bits."""
    import av

    context = av.CodecContext.create("png", "r")
    frames = [*context.decode(av.Packet(data)), *context.decode(None)]
    return frames[0].to_ndarray().astype(">u2")


def _png_pixels(
    raw: np.ndarray, width: int, depth: int, colour: int, chunks: dict[bytes, bytes], background: tuple[int, int, int]
) -> np.ndarray:
    """8-bit grey (rows, width) or colour (rows, width, 3) of a band's bytes, transparent parts on the background."""
    channels, clear = _CHANNELS[colour], chunks.get(b"tRNS")
    if depth < 8:
        bits = np.unpackbits(raw, axis=1)[:, : width * depth].reshape(len(raw), width, depth)
        values: np.ndarray = np.zeros((len(raw), width), np.uint8)
        for bit in range(depth):
            values = (values << 1) | bits[..., bit]
        samples: np.ndarray = values[..., None]
        top = samples if colour == 3 else samples * (255 // (2**depth - 1))
    else:
        size = depth // 8
        samples = raw.reshape(len(raw), width, channels, size)
        top = samples[..., 0]
        if size == 2 and clear:
            samples = samples.astype(np.uint16)
            samples = samples[..., 0] << 8 | samples[..., 1]
        elif clear:
            samples = samples[..., 0]
    if colour == 3:
        palette = np.zeros((256, 3), np.uint8)
        colours = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
        palette[: len(colours)] = colours
        alpha = np.full(256, 255, np.uint8)
        if clear:
            alpha[: len(clear)] = np.frombuffer(clear, np.uint8)
        return _on(palette[top[..., 0]], alpha[top[..., 0]] if clear else None, background)
    if colour in (4, 6):
        return _on(top[..., :-1], top[..., -1], background)
    if clear:
        key = np.frombuffer(clear, ">u2")[:channels]
        return _on(top, np.where((samples == key).all(-1), 0, 255).astype(np.uint8), background)
    return np.ascontiguousarray(top[..., 0] if channels == 1 else top)


def _on(colours: np.ndarray, alpha: np.ndarray | None, background: tuple[int, int, int]) -> np.ndarray:
    """Colours (rows, width, 1 or 3) over a background, by alpha (rows, width)."""
    colours = np.repeat(colours, 3, -1) if colours.shape[-1] == 1 else colours
    if alpha is None:
        return np.ascontiguousarray(colours)
    share = alpha[..., None].astype(np.uint16)
    under = np.array(background, np.uint16)
    return ((colours * share + under * (255 - share) + 127) // 255).astype(np.uint8)


# --- WebP ------------------------------------------------------------------------------------------------------------


def _webp_bands(path: Path, image: Image.Image, factor: int) -> Iterator[Image.Image]:
    import av

    data = path.read_bytes()
    if len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise ValueError("image file is truncated")
    context = av.CodecContext.create("webp", "r")
    context.thread_count = 1
    try:
        frame = [*context.decode(av.Packet(data)), *context.decode(None)][0]
    except (av.FFmpegError, IndexError):
        raise ValueError("its pixels cannot be decoded") from None
    del data
    if (frame.width, frame.height) != image.size:
        raise ValueError("its pixels are of another size")
    yield from _frame_bands(frame, factor, _BT601, "rgba")


def _frame_bands(frame: Any, factor: int, matrix: int, pixels: str) -> Iterator[Image.Image]:
    """Bands of a decoded frame as `pixels`, "rgb24" or "rgba"; the matrix as the scaler numbers it."""
    import av

    step = 2 * factor  # colours may have half the lines
    rows = max(step, BAND_BYTES // (16 * frame.width) // step * step)
    for top in range(0, frame.height, rows):
        band = av.VideoFrame(frame.width, min(rows, frame.height - top), frame.format.name)
        band.color_range = frame.color_range
        for whole, part in zip(frame.planes, band.planes, strict=True):
            lines = np.frombuffer(memoryview(whole), np.uint8).reshape(-1, whole.line_size)
            first = top if whole.height == frame.height else top // 2
            kept = np.zeros((part.buffer_size // part.line_size, part.line_size), np.uint8)
            used = min(whole.line_size, part.line_size)
            kept[: part.height, :used] = lines[first : first + part.height, :used]
            part.update(kept.tobytes())
        yield Image.fromarray(band.reformat(format=pixels, src_colorspace=matrix).to_ndarray())


# --- AVIF ------------------------------------------------------------------------------------------------------------


def _avif_bands(path: Path, image: Image.Image, factor: int) -> Iterator[Image.Image]:
    """By FFmpeg, which leaves transparency out; of a picture in pieces it gives the first, which has another size."""
    import av

    if image.mode != "RGB":
        raise CannotReduce
    frame = None
    with contextlib.suppress(av.FFmpegError, IndexError, OSError, ValueError), open_media(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        frame = next(container.decode(stream), None)
    if frame is None or (frame.width, frame.height) != image.size:
        raise CannotReduce
    matrix = matrix_of(int(frame.colorspace), int(frame.color_primaries), *image.size)
    yield from _frame_bands(frame, factor, matrix, "rgb24")


def avif_colours(path: Path) -> tuple[int, int] | None:
    """Primaries and transfer of an AVIF (numbers of ITU-T H.273), which Pillow does not tell; None: not known."""
    import av

    with contextlib.suppress(av.FFmpegError, IndexError, OSError, ValueError), open_media(path) as container:
        context: Any = container.streams.video[0].codec_context
        return int(context.color_primaries), int(context.color_trc)
    return None


# --- TIFF ------------------------------------------------------------------------------------------------------------


def _tiff_bands(path: Path, image: Any, factor: int) -> Iterator[Image.Image]:
    tags = image.tag_v2
    width, height = tags[256], tags[257]  # the picture itself says them turned
    if (tags.get(284, 1) != 1 and tags.get(277, 1) > 1) or tags.get(259, 1) == 6:
        raise CannotReduce
    tiled = 324 in tags
    across, down = (tags[322], tags[323]) if tiled else (width, min(height, tags.get(278, height)))
    offsets, sizes = (tags[324], tags[325]) if tiled else (tags[273], tags[279])
    columns = -(-width // across)
    pixel_bytes = max(4, sum(tags.get(258, (1,))) // 8)
    if across * down * pixel_bytes > LARGEST_PIECE:
        raise CannotReduce
    pieces_at_once = columns if tiled else max(1, BAND_BYTES // (across * down * pixel_bytes))
    gathered: Any = None
    with path.open("rb") as file:
        order = "<" if file.read(2) == b"II" else ">"
        for first in range(0, len(offsets), pieces_at_once):
            pieces = []
            for number in range(first, min(first + pieces_at_once, len(offsets))):
                file.seek(offsets[number])
                pieces.append(file.read(sizes[number]))
            top = first // columns * down
            if top >= height:
                break
            band: Any = None
            if tiled:
                for column, piece in enumerate(pieces):
                    tile = tiff_piece([piece], across, down, down, tags, order)
                    band = band or Image.new(tile.mode, (width, min(down, height - top)))
                    band.paste(tile, (column * across, 0))
            else:
                band = tiff_piece(pieces, width, min(len(pieces) * down, height - top), down, tags, order)
            gathered = band if gathered is None else _below(gathered, band)
            usable = gathered.height // factor * factor
            if usable:
                yield gathered.crop((0, 0, width, usable))
                gathered = gathered.crop((0, usable, width, gathered.height)) if usable < gathered.height else None
    if gathered is not None:
        yield gathered


def _below(above: Image.Image, below: Image.Image) -> Image.Image:
    both = Image.new(above.mode, (above.width, above.height + below.height))
    both.paste(above)
    both.paste(below, (0, above.height))
    return both


def tiff_piece(pieces: list[bytes], width: int, height: int, rows: int, tags: Any, order: str) -> Image.Image:
    """Some strips, or one tile as a strip, decoded by Pillow from a TIFF of their own."""
    entries: dict[int, tuple[int, bytes, int]] = {}

    def put(tag: int, values: Any, kind: str = "H") -> None:
        if isinstance(values, bytes):
            entries[tag] = 7, values, len(values)
            return
        values = values if isinstance(values, tuple) else (values,)
        kind = "I" if max(values) > 65535 else kind
        entries[tag] = {"H": 3, "I": 4}[kind], struct.pack(f"{order}{len(values)}{kind}", *values), len(values)

    for tag in _COPIED_TAGS:
        if tag in tags:
            put(tag, tags[tag])
    put(256, width, "I")
    put(257, height, "I")
    put(278, rows, "I")
    put(279, tuple(len(piece) for piece in pieces), "I")
    put(273, (0,) * len(pieces), "I")
    table = 8 + 2 + 12 * len(entries) + 4
    start = table + sum(len(data) + len(data) % 2 for _, data, _ in entries.values() if len(data) > 4)
    places = [start + sum(len(piece) for piece in pieces[:number]) for number in range(len(pieces))]
    put(273, tuple(places), "I")
    directory, beyond = struct.pack(f"{order}H", len(entries)), b""
    for tag, (kind, data, count) in sorted(entries.items()):
        if len(data) > 4:
            value = struct.pack(f"{order}I", table + len(beyond))
            beyond += data + b"\0" * (len(data) % 2)
        else:
            value = data.ljust(4, b"\0")
        directory += struct.pack(f"{order}HHI", tag, kind, count) + value
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    whole = head + directory + bytes(4) + beyond + b"".join(pieces)
    with open_header(io.BytesIO(whole), ("TIFF",)) as image:
        image.load()
        return image.copy()


def _reducible(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """A band in a mode that Pillow can make smaller."""
    if image.mode in ("P", "PA"):
        return image.convert("RGB")
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float32)
        return Image.fromarray(values if image.mode == "I" else values / 65535)
    if image.mode in ("RGBA", "LA"):
        under = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(under, image.convert("RGBA")).convert("RGB")
    if image.mode == "RGBX":
        return image.convert("RGB")
    return image.copy()
