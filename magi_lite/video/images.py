"""Any picture a user has, as the pixels the model wants: upright, opaque, 8 bit, of the wanted size.

The road: refuse what is too large before a pixel is decoded; turn by EXIF; colours to sRGB; 16 bit and float to 8 bit;
transparent parts over a plain background; then scale and crop in one resampling.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import threading
import warnings
from pathlib import Path
from typing import Any, Literal

import imageio.v3 as iio
import numpy as np
from imageio.core.request import InitializationError, Request
from imageio.core.v3_plugin_api import PluginV3
from imageio.plugins.pillow import PillowPlugin
from PIL import Image, ImageCms, UnidentifiedImageError

from magi_lite.errors import MediaError
from magi_lite.files import check_source
from magi_lite.video.colour import from_light, is_wide, scale_of, to_bt709
from magi_lite.video.containers import (
    MAX_ANIMATED_PIXELS,
    NO_PICTURE,
    RAW,
    check_read,
    kind_of,
    open_header,
    too_large,
    unread,
)
from magi_lite.video.deep_tiff import DeepTiff, open_deep
from magi_lite.video.strips import (
    SMALL_PIXELS,
    CannotReduce,
    avif_colours,
    jpeg_factor,
    jpeg_frame,
    jpeg_scans,
    orientation,
    png_header,
    reduced,
    whole_factor,
)

Fit = Literal["crop", "pad", "stretch"]
MAX_PIXELS = 400_000_000
"""Largest picture that is read, twice what phones make: JPEG, PNG, TIFF and JPEG 2000 are made smaller on the way."""
MAX_WHOLE_PIXELS = 64_000_000
"""Largest picture of the kinds that can only be decoded as a whole, by libraries that take up to 7 bytes a pixel."""
MAX_CLEAR_AVIF_PIXELS = 32_000_000
"""Largest AVIF that is transparent or in pieces: of those Pillow's library takes 9 bytes a pixel."""
MAX_HELD_BYTES = 384_000_000
"""Largest JPEG of several passes, by what its decoder holds until the last of them, at whatever size it decodes."""
MAX_SCANS = 200
"""Passes of the JPEG that is read: encoders write some ten, and each takes time for the whole picture."""
_BAND_PIXELS = 4_000_000
"""Pixels whose colours are converted at once."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""
_SUBFILE_TYPE, _SUB_IFDS, _DNG_VERSION = 254, 330, 50706
"""Tags of TIFFs."""
_ONE_AT_A_TIME = threading.Lock()
"""Two large pictures at once would take twice the memory."""
BACKGROUND = (255, 255, 255)
"""What shows through transparent parts, as in a browser; `pad` bars are black."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "PPM", "ICO", "JPEG2000", "MPO", "HEIF", "TGA")
"""Formats that are read; others of Pillow's would start outside programs. TGA is last, for it has no first bytes."""


def load_image(
    path: Path | str, size: tuple[int, int], fit: Fit = "crop", background: tuple[int, int, int] = BACKGROUND
) -> np.ndarray:
    """Read a picture.

    Args:
        path: the file; of an animation its first frame is taken.
        size: (width, height) of the result.
        fit: "crop" fills the frame and cuts what sticks out, evenly; "pad" shows all, with black bars; "stretch"
            distorts.
        background: RGB under transparent parts.

    Returns:
        (height, width, 3) uint8, sRGB.

    Raises:
        MediaError: no such file, no picture, damaged, or too large; one sentence.
    """
    path = Path(path)
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oddly tagged pictures are judged below
        with open_picture(path) as picture:
            try:
                image = to_rgb(_decoded(path, picture.image, 2 * max(size), background), background, 2 * max(size))
                return fit_pixels(image, size, fit)
            except CannotReduce:
                raise MediaError(f"{path.name} {_too_large(picture.image)}") from None
            except MediaError:
                raise
            except Exception as error:  # decoders of foreign files raise anything
                raise _damaged(path, error) from None


def is_animated(path: Path) -> bool:
    """Whether a picture moves: a GIF, WebP, AVIF or PNG of more than one frame.

    Raises:
        MediaError: it is no picture.
    """
    with open_picture(path) as picture:
        image = picture.image
        return image.format in ("GIF", "WEBP", "AVIF", "PNG") and pictures_in(image) > 1


def pictures_in(image: Image.Image) -> int:
    """How many pictures a file holds; of one that is cut, those before the damage, of which the last may be broken."""
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # decoders of foreign files raise anything
        pass
    count = 1
    with contextlib.suppress(Exception):
        image.seek(0)
        while True:
            image.seek(count)
            count += 1
    with contextlib.suppress(Exception):
        image.seek(0)
    return count


def shown_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture as it is shown, upright.

    Raises:
        MediaError: it is no picture.
    """
    with open_picture(path) as picture:
        return turned_size(picture.image)


def turned_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a picture as it is shown; Pillow turns a TIFF's itself."""
    turned = image.format != "TIFF" and orientation(image) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else (image.width, image.height)


def to_rgb(
    image: Image.Image, background: tuple[int, int, int] = BACKGROUND, longest: int | None = None
) -> Image.Image:
    """A decoded picture upright, in sRGB, opaque, with 8 bits a colour.

    Colours are converted in bands, for each step of it makes a copy.

    Args:
        image: decoded.
        background: shows through transparent parts.
        longest: what the shorter side need not exceed; None: the size stays.
    """
    factor = 1 if longest is None else whole_factor(image.size, longest) if _pixels(image) > SMALL_PIXELS else 1
    scale = _range_of(image)
    rows = max(1, _BAND_PIXELS // (image.width * factor)) * factor
    if rows >= image.height and factor == 1:
        result = _band_to_rgb(image, background, scale)
    else:
        result = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
        for top in range(0, image.height, rows):
            band = image.crop((0, top, image.width, min(top + rows, image.height)))
            small = _band_to_rgb(band, background, scale)
            result.paste(small.reduce(factor) if factor > 1 else small, (0, top // factor))
    turn = _TURNS.get(orientation(image))
    return result if turn is None else result.transpose(turn)


def _pixels(image: Image.Image) -> int:
    return image.width * image.height


def _band_to_rgb(image: Image.Image, background: tuple[int, int, int], scale: float | None) -> Image.Image:
    if scale != 1 or _is_deep(image):
        image = _to_8_bit(image, scale)
    primaries, transfer = image.info.get("cicp", (1, 13))
    if is_wide(transfer, primaries):
        signal = np.asarray(_opaque(image, background), np.float32) / 255
        return Image.fromarray(to_bt709(signal, transfer, primaries))
    return _opaque(_to_srgb(image), background)


def _decoded(path: Path, image: Image.Image, longest: int, background: tuple[int, int, int]) -> Image.Image:
    """The picture with its pixels, at a size whose shorter side is `longest` or more where that saves memory."""
    if image.format == "PNG":
        chunks = png_header(path)[1]
        if len(chunks.get(b"cICP", b"")) >= 2:
            image.info["cicp"] = tuple(chunks[b"cICP"][:2])
    elif "icc_profile" not in image.info and image.format in ("AVIF", "HEIF"):
        found = avif_colours(path) if image.format == "AVIF" else _heif_colours(image)
        if found and is_wide(found[1], found[0]):
            image.info["cicp"] = found
    if isinstance(image, DeepTiff):
        return image.decoded(path, longest, background)
    pixels = _pixels(image)
    if image.format in ("JPEG", "MPO"):
        frame = jpeg_frame(path)
        if frame.held > MAX_HELD_BYTES or (not frame.scalable and pixels > MAX_WHOLE_PIXELS):
            raise CannotReduce
        if frame.held and jpeg_scans(path, MAX_SCANS) > MAX_SCANS:
            raise MediaError(f"{path.name} has more than {MAX_SCANS} passes in a JPEG; save it as baseline.")
        if frame.scalable:
            factor = jpeg_factor(image.size, longest)
            image.draft("RGB", (image.width // factor, image.height // factor))
    elif image.format == "JPEG2000":
        halvings = max(0, min(5, (min(image.size) // longest).bit_length() - 1))
        if halvings:
            image.reduce = halvings  # type: ignore[method-assign, assignment]  # an attribute here, as Pillow documents
    elif image.format in ("WEBP", "AVIF") and pixels > MAX_ANIMATED_PIXELS and pictures_in(image) > 1:
        raise MediaError(f"{path.name} {too_large(MAX_ANIMATED_PIXELS)}")
    elif pixels > SMALL_PIXELS and (image.format in ("PNG", "TIFF") or _is_decoded_first(image, pixels)):
        try:
            return reduced(path, image, longest, background)
        except CannotReduce:
            if pixels > (MAX_CLEAR_AVIF_PIXELS if image.format == "AVIF" else MAX_WHOLE_PIXELS):
                raise
    elif pixels > MAX_WHOLE_PIXELS:
        raise CannotReduce
    image.load()
    return image


def _heif_colours(image: Image.Image) -> tuple[int, int] | None:
    """Primaries and transfer as pillow-heif found them; None: not known."""
    known = image.info.get("nclx_profile") or {}
    return (known["color_primaries"], known["transfer_characteristics"]) if known else None


def _is_decoded_first(image: Image.Image, pixels: int) -> bool:
    """Whether bands can be made of it once it is decoded as a whole."""
    return image.format in ("WEBP", "AVIF") and pixels <= MAX_WHOLE_PIXELS


def _too_large(image: Image.Image) -> str:
    """The sentence for a picture that cannot be made smaller while it is read."""
    megapixels = f"{_pixels(image) / 1e6:.0f} megapixels"
    if image.format in ("JPEG", "MPO"):
        return f"has {megapixels} in a progressive or lossless JPEG; save it as baseline, or make it smaller."
    return f"has {megapixels} in one piece; save it as JPEG, or make it smaller."


def fit_pixels(image: Image.Image, size: tuple[int, int], fit: Fit, pixel_aspect: float = 1.0) -> np.ndarray:
    """Scale an RGB image to `size` (width, height); `pixel_aspect` is the width of its pixels over their height.

    Returns:
        (height, width, 3) uint8.
    """
    width, height = size
    shown = image.width * pixel_aspect  # width in square pixels
    if fit == "stretch":
        return np.array(image.resize(size, Image.Resampling.LANCZOS))
    if fit == "crop":
        scale = max(width / shown, height / image.height)
        across, down = width / scale / pixel_aspect, height / scale
        left, top = max(0.0, (image.width - across) / 2), max(0.0, (image.height - down) / 2)
        box = (left, top, min(image.width, left + across), min(image.height, top + down))
        return np.array(image.resize(size, Image.Resampling.LANCZOS, box=box))
    scale = min(width / shown, height / image.height)
    inner = (min(width, max(1, round(shown * scale))), min(height, max(1, round(image.height * scale))))
    canvas = Image.new("RGB", size)
    canvas.paste(image.resize(inner, Image.Resampling.LANCZOS), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return np.array(canvas)


class Picture(PillowPlugin):
    """imageio's Pillow plugin, which hands out the picture itself: its header is read, its pixels are not yet.

    imageio's own `read` decodes at full size and knows neither `draft` nor colour profiles.
    """

    def __init__(self, request: Request) -> None:
        PluginV3.__init__(self, request)
        if importlib.util.find_spec("pillow_heif") is not None:
            from pillow_heif import register_heif_opener

            register_heif_opener()
        self._image, self.images_to_write = None, []
        try:
            self._image = open_deep(request.get_file()) or open_header(request.get_file(), FORMATS)
        except UnidentifiedImageError:
            raise InitializationError(NO_PICTURE) from None

    def __enter__(self) -> Picture:
        return self

    @property
    def image(self) -> Image.Image:
        return self._image


def open_picture(path: Path) -> Picture:
    """The picture with its header read only; close it."""
    check_source(path, "an image")
    check_read(path)
    if kind_of(path) == "heif" and importlib.util.find_spec("pillow_heif") is None:
        raise MediaError(f"{path.name} is a HEIC picture; install pillow-heif to read it, or save it as JPEG.")
    try:
        picture = iio.imopen(path.absolute(), "r", plugin=Picture)
    except Exception as error:  # imageio wraps what a decoder raises
        cause = error.__cause__
        if kind_of(path) == "heif":
            raise MediaError(
                f"{path.name} is damaged, or a kind of HEIC that pillow-heif does not read; save it as JPEG."
            ) from None
        if cause is None or isinstance(cause, InitializationError):
            raise MediaError(f"{path.name} {NO_PICTURE}") from None
        raise _damaged(path, cause) from None
    if _is_preview(picture.image):
        picture.close()
        raise MediaError(f"{path.name} {unread(RAW)}")
    if picture.image.width * picture.image.height > MAX_PIXELS:
        picture.close()
        raise MediaError(f"{path.name} has more than {MAX_PIXELS // 10**6} megapixels; make it smaller first.")
    return picture


def _is_preview(image: Image.Image) -> bool:
    """Whether it is the small picture in front of a camera's raw one: DNG, NEF, ARW and others are TIFFs."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    kind = tags.get(_SUBFILE_TYPE, 0)
    return _DNG_VERSION in tags or (_SUB_IFDS in tags and isinstance(kind, int) and bool(kind & 1))


def _to_srgb(image: Image.Image) -> Image.Image:
    """Colours of an embedded profile, or a PNG's gamma, in sRGB; a damaged profile is left aside."""
    profile = image.info.get("icc_profile")
    if "cicp" in image.info or not profile:
        gamma = image.info.get("gamma", 0)
        plain = "cicp" in image.info or "srgb" in image.info or image.mode not in ("L", "LA", "RGB", "RGBA", "P")
        return image if plain or not 0.1 < gamma < 3 or abs(gamma - 1 / 2.2) < 0.03 else _by_gamma(image, gamma)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.mode == "PA" or "transparency" in image.info else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
        colours = image.convert({"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode))
        if space == "RGB" and colours.mode == "L":
            colours = colours.convert("RGB")
        if (space, colours.mode) not in (("RGB", "RGB"), ("GRAY", "L"), ("CMYK", "CMYK")):
            return image
        done: Any = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        if alpha is not None:
            done.putalpha(alpha)
        elif image.mode in ("L", "RGB") and "transparency" in image.info:
            return image  # a colour that means "clear" would not be found again
        return done
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


def _by_gamma(image: Image.Image, gamma: float) -> Image.Image:
    """Samples that are light to the power of `gamma`, as sRGB (PNG specification, gAMA)."""
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    light = (np.arange(256) / 255) ** (1 / gamma)
    coded = np.where(light < 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    table = np.rint(coded * 255).clip(0, 255).astype(int).tolist()
    bands = {"L": table, "RGB": table * 3, "LA": [*table, *range(256)], "RGBA": [*table * 3, *range(256)]}
    return image.point(bands[image.mode])


def _opaque(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """RGB, 8 bit, without transparency."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        under = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(under, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _is_deep(image: Image.Image) -> bool:
    """Whether it is grey of 16 bit, 32 bit or float."""
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def _range_of(image: Image.Image) -> float | None:
    """What samples of a grey picture are multiplied with to be 0..255; 1 for all others, None for light.

    They are 0..65535 (16 bit), or what `colour.scale_of` says.
    """
    if not _is_deep(image):
        return 1.0
    if image.mode.startswith("I;16"):
        return 255 / 65535
    rows, highest, up_to_1, whole = max(1, _BAND_PIXELS // image.width), 0.0, 0, True
    for top in range(0, image.height, rows):
        values = _finite(image.crop((0, top, image.width, min(top + rows, image.height))))
        highest, up_to_1 = max(highest, float(values.max())), up_to_1 + int((values <= 1).sum())
        whole = whole and bool((values == np.rint(values)).all())
    full = 65535.0 if image.mode == "F" else 2.0**31 - 1
    return scale_of(highest, up_to_1 / _pixels(image), whole, floats=image.mode == "F", full=full)


def _finite(image: Image.Image) -> np.ndarray:
    return np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0, neginf=0)


def _to_8_bit(image: Image.Image, scale: float | None) -> Image.Image:
    """Grey samples as `_range_of` says, as 8 bit, with what is transparent; Pillow's own conversion clips instead."""
    values = _finite(image)
    done = Image.fromarray(
        from_light(values) if scale is None else (values * scale).clip(0, 255).round().astype(np.uint8)
    )
    left_out = ("transparency", "icc_profile") if scale is None else ("transparency",)  # light is not by a profile
    done.info.update({name: value for name, value in image.info.items() if name not in left_out})
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # a sample of the depth that the picture has
        done.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return done


def _damaged(path: Path, error: BaseException) -> MediaError:
    """The sentence for a decoder's complaint."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    reason = text if len(text) <= 80 else text[:79] + "…"
    return MediaError(f"{path.name} is damaged and cannot be read ({reason}); use another copy.")
