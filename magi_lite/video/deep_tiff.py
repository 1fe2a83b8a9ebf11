"""TIFFs of samples that Pillow has no mode for, or takes for others: floats, 32 and 64 bit, planes of 16 bit.

Pillow only unpacks them: a strip or a tile goes through it as a grey picture of bytes (see `strips`). Predictors, order
of bytes and planes are undone here. Sums over squares of pixels are kept, so that memory holds one strip and the small
result. What the numbers mean is worked out last: see `colour.scale_of`, and the profile where there is one.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from magi_lite.video.colour import from_light, scale_of
from magi_lite.video.strips import BAND_BYTES, LARGEST_PIECE, CannotReduce, tiff_piece

_MOST_PIECES, _MOST_PACKED = 1_000_000, 20_000
"""Strips or tiles: each that is packed takes half a millisecond."""
_MOST_PIXELS = 6_000_000
"""Pixels of the result."""
_UNPACKED = (1, 5, 8, 32773, 32946, 34925, 50000)
"""Compressions that Pillow undoes without a look at the samples: none, LZW, Deflate, PackBits, LZMA and Zstandard."""
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_KINDS = {_UNSIGNED: "u", _SIGNED: "i", _FLOAT: "f"}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2
_LINEAR_GREY = range(185, 192)
"""What a grey of 128 becomes in sRGB if samples are light."""


class _Layout(NamedTuple):
    """How samples are stored: `channels` of a pixel, together or in planes; strips are tiles as wide as the picture."""

    width: int
    height: int
    kind: int
    size: int
    channels: int
    planes: bool
    photometric: int
    across: int
    down: int


class DeepTiff(Image.Image):
    """A picture with its header read; `decoded` gives the pixels. Its size is that which is shown, as of Pillow's."""

    format = "TIFF"

    def __init__(self, tags: Any, layout: _Layout, order: str) -> None:
        super().__init__()
        self.tag_v2, self._layout, self._order = tags, layout, order
        self._mode = "RGB"
        turned = tags.get(274, 1) in (5, 6, 7, 8)
        self._size = (layout.height, layout.width) if turned else (layout.width, layout.height)
        if 34675 in tags:
            self.info["icc_profile"] = tags[34675]

    def decoded(self, path: Path, longest: int, background: tuple[int, int, int]) -> Image.Image:
        """The pixels, opaque, in 8 bit; not yet turned, and with the profile if they are still by it.

        Args:
            path: the file.
            longest: what the shorter side should not fall below.
            background: shows through transparent parts.

        Raises:
            CannotReduce: it is too large in one piece.
            OSError, ValueError, SyntaxError: it is damaged.
        """
        layout = self._layout
        factor = max(
            1,
            min(layout.width, layout.height) // longest,
            int(np.ceil(np.sqrt(layout.width * layout.height / _MOST_PIXELS))),
        )
        rows, columns = -(-layout.height // factor), -(-layout.width // factor)
        if rows * columns > 2 * _MOST_PIXELS:  # much longer than wide
            raise CannotReduce
        sums = np.zeros((rows, columns, min(4, layout.channels)), np.float32)
        colours = 3 if layout.photometric == _RGB else 1
        seen, up_to_1, highest, whole = 0, 0, 0.0, True
        for channel, top, left, values in _pieces(path, self.tag_v2, layout, self._order):
            used = values[..., : sums.shape[2] - channel]
            looked_at = used[..., : max(0, colours - channel)]
            if looked_at.size:
                highest, seen = max(highest, float(looked_at.max())), seen + looked_at.size
                up_to_1 += int((looked_at <= 1).sum())
                whole = whole and bool((looked_at == np.rint(looked_at)).all())
            small = np.add.reduceat(used, _borders(top, len(used), factor), 0)
            small = np.add.reduceat(small, _borders(left, used.shape[1], factor), 1)
            place = np.s_[top // factor :, left // factor :, channel:]
            sums[place][: small.shape[0], : small.shape[1], : small.shape[2]] += small
        counts = [np.diff([*range(0, side, factor), side]) for side in (layout.height, layout.width)]
        pixels = sums / np.outer(*counts)[..., None].astype(np.float32)
        if (layout.kind, layout.size) == (_UNSIGNED, 2):  # as of those that Pillow reads
            scale: float | None = 255 / 65535
        else:
            scale = scale_of(highest, up_to_1 / max(1, seen), whole, floats=layout.kind == _FLOAT, full=_full(layout))
        return self._shown(pixels, colours, scale, highest, background)

    def _shown(
        self, pixels: np.ndarray, colours: int, scale: float | None, highest: float, background: tuple[int, int, int]
    ) -> Image.Image:
        """The picture of samples (H, W, colours or one more), of which `scale` makes 0..255; None: they are light."""
        samples, profile = pixels[..., :colours], self.info.get("icc_profile")
        alpha, kind = None, (*self.tag_v2.get(338, (0,)), 0)[0]
        if pixels.shape[2] > colours and kind in (1, 2):
            alpha = (pixels[..., colours:] / (1.0 if self._layout.kind == _FLOAT else _full(self._layout))).clip(0, 1)
            samples = samples / np.maximum(alpha, 1e-6) if kind == 1 else samples
        light = _light_of(profile, colours) if profile and self._layout.kind == _FLOAT else None
        if light is not None:
            samples, scale = (samples @ light.T).astype(np.float32), None
        elif profile and self._layout.kind == _FLOAT and highest < 16:
            scale = 255.0  # by the profile, 1 is white, whatever is above
        if scale is None:
            values = from_light(samples, bright=highest > 1)
        else:
            values = np.rint((samples * scale).clip(0, 255)).astype(np.uint8)
        if self._layout.photometric == _WHITE_IS_ZERO:
            values = 255 - values
        image = Image.fromarray(np.ascontiguousarray(values if colours == 3 else values[..., 0]))
        if alpha is not None:
            image.putalpha(Image.fromarray(np.rint(alpha[..., 0] * 255).astype(np.uint8)))
        image.getexif()[0x0112] = self.tag_v2.get(274, 1)
        if profile and scale is not None:
            image.info["icc_profile"] = profile
        return image


def open_deep(file: BinaryIO) -> DeepTiff | None:
    """A TIFF of such samples with its header read; None: it is another file, and Pillow's to read or refuse."""
    try:
        head = file.read(8)
        if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return None
        tags = ImageFileDirectory_v2(head + file.read(8) if 43 in head[2:4] else head)
        file.seek(tags.next)
        tags.load(file)
        order = "<" if head[:2] == b"II" else ">"
        layout = _layout(tags, order)
        return None if layout is None else DeepTiff(tags, layout, order)
    except Exception:  # readers of foreign files raise anything; Pillow has its sentence for them
        return None
    finally:
        file.seek(0)


def _layout(tags: Any, order: str) -> _Layout | None:
    """How samples are stored; None: as Pillow reads them rightly, or as nobody does."""
    channels, planar, photometric = tags.get(277, 1), tags.get(284, 1), tags.get(262)
    bits, kinds = set(tags.get(258, (1,))), set(tags.get(339, (_UNSIGNED,)))
    if len(bits) != 1 or len(kinds) != 1 or photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB):
        return None
    (depth,), (kind,) = bits, kinds
    grey, planes = channels == 1, planar == 2 and channels > 1
    known = {
        16: kind == _UNSIGNED and planar == 1 and photometric != _WHITE_IS_ZERO,
        32: grey and kind in (_SIGNED, _FLOAT) and planar == 1 and photometric == _BLACK_IS_ZERO and order == "<",
    }
    if kind not in _KINDS or depth not in (16, 32, 64) or known.get(depth, False):
        return None
    if tags.get(259, 1) not in _UNPACKED or channels < (3 if photometric == _RGB else 1):
        return None
    width, height = tags[256], tags[257]
    across, down = (tags[322], tags[323]) if 324 in tags else (width, min(height, tags.get(278, height)))
    if not all(isinstance(side, int) and side > 0 for side in (width, height, across, down, channels)):
        return None
    return _Layout(width, height, kind, depth // 8, channels, planes, photometric, across, down)


def _pieces(path: Path, tags: Any, layout: _Layout, order: str) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """Of every strip or tile its first channel, its first row and column, and its samples (h, w, channels) float32."""
    together = 1 if layout.planes else layout.channels
    line = layout.across * together * layout.size
    tiled = 324 in tags
    offsets, sizes = (tags[324], tags[325]) if tiled else (tags[273], tags[279])
    columns, rows = -(-layout.width // layout.across), -(-layout.height // layout.down)
    raw = tags.get(259, 1) == 1
    most = _MOST_PIECES if raw else _MOST_PACKED
    if (1 if raw and not tiled else layout.down) * line > LARGEST_PIECE or len(offsets) > most:
        raise CannotReduce
    if len(offsets) < columns * rows * (layout.channels if layout.planes else 1):
        raise ValueError("image file is truncated")
    at_once = max(1, BAND_BYTES // line) if raw and not tiled else layout.down
    bytes_only = {258: 8, 259: tags.get(259, 1), 262: _BLACK_IS_ZERO, 277: 1}
    with path.open("rb") as file:
        for number, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
            channel, place = divmod(number, columns * rows)
            top, left = place // columns * layout.down, place % columns * layout.across
            height = layout.down if tiled else min(layout.down, layout.height - top)
            for first in range(0, height, at_once):
                count = min(at_once, height - first)
                file.seek(offset + (first * line if raw else 0))
                data = file.read(count * line if raw else size)
                if not raw:
                    unpacked = tiff_piece([data], line, count, count, bytes_only, order)
                    data = np.asarray(unpacked).tobytes()
                if len(data) < count * line:
                    raise ValueError("image file is truncated")
                values = _numbers(data, count, together, tags.get(317, 1), layout, order)
                yield channel, top + first, left, values[: layout.height - top - first, : layout.width - left]


def _numbers(data: bytes, rows: int, together: int, predictor: int, layout: _Layout, order: str) -> np.ndarray:
    """Bytes as samples (rows, across, together) float32 (TIFF 6.0, section 14; Adobe's technical note 3)."""
    shape, kind = (rows, layout.across, together), f"{_KINDS[layout.kind]}{layout.size}"
    if predictor == 3:
        summed = np.cumsum(np.frombuffer(data, np.uint8).reshape(rows, -1, together), axis=1, dtype=np.uint8)
        swapped = summed.reshape(rows, layout.size, -1).transpose(0, 2, 1)
        samples = np.ascontiguousarray(swapped).view(f">{kind}").reshape(shape)
    elif predictor == 2:
        steps = np.frombuffer(data, f"{order}u{layout.size}").astype(f"u{layout.size}").reshape(shape)
        samples = np.cumsum(steps, axis=1, dtype=steps.dtype).view(kind)
    else:
        samples = np.frombuffer(data, order + kind).reshape(shape)
    with np.errstate(over="ignore"):
        return np.nan_to_num(samples.astype(np.float32), posinf=0, neginf=0)


def _borders(start: int, length: int, factor: int) -> list[int]:
    """Where squares begin among `length` pixels from number `start` on."""
    return [0, *range(factor - start % factor, length, factor)]


def _full(layout: _Layout) -> float:
    """The highest sample that whole numbers can be."""
    return float(2 ** (8 * layout.size - (layout.kind == _SIGNED)) - 1)


def _light_of(profile: bytes, colours: int) -> np.ndarray | None:
    """What makes linear sRGB of light by a profile (colours x colours); None: its samples are no light."""
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        mode = "RGB" if colours == 3 else "L"
        grey = Image.new(mode, (1, 1), (128,) * 3 if colours == 3 else 128)
        done: Any = ImageCms.profileToProfile(grey, source, target, outputMode="RGB")
        if done.getpixel((0, 0))[1] not in _LINEAR_GREY:
            return None
        if colours == 1:
            return np.ones((1, 1))
        primaries = [
            np.array([getattr(one, f"{name}_colorant")[0] for name in ("red", "green", "blue")]).T
            for one in (source.profile, target)
        ]
        return np.linalg.inv(primaries[1]) @ primaries[0]
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, np.linalg.LinAlgError):
        return None
