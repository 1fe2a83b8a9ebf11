"""Any picture a user has, as the pixels the model wants: upright, opaque, 8 bit, of the wanted size.

The road: refuse what is too large before a pixel is decoded; turn by EXIF; colours to sRGB; 16 bit and float to 8 bit;
transparent parts over a plain background; then scale and crop in one resampling.
"""

from __future__ import annotations

import importlib.util
import io
import warnings
from pathlib import Path
from typing import Literal

import imageio.v3 as iio
import numpy as np
from imageio.core.request import InitializationError
from imageio.plugins.pillow import PillowPlugin
from PIL import Image, ImageCms, ImageOps

from magi_lite.errors import MediaError
from magi_lite.files import check_source
from magi_lite.video.containers import NO_PICTURE, kind_of

Fit = Literal["crop", "pad", "stretch"]
MAX_PIXELS = 120_000_000
"""Largest picture that is decoded: more than any camera makes, 360 MB in memory."""
BACKGROUND = (255, 255, 255)
"""What shows through transparent parts, as in a browser; `pad` bars are black."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "PPM", "TGA", "ICO", "JPEG2000", "MPO", "HEIF")
"""Formats that are read; others of Pillow's would start outside programs."""


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # large or oddly tagged pictures are judged below
        with open_picture(path) as picture:
            image = picture.image
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise MediaError(
                    f"{path.name} has {pixels / 1e6:.0f} megapixels; make it smaller than {MAX_PIXELS // 10**6} first."
                )
            try:
                image.draft("RGB", (2 * max(size), 2 * max(size)))  # a JPEG far too large is decoded at a fraction
                image.load()
                image = to_rgb(image, background)
            except Exception as error:  # decoders of foreign files raise anything
                raise _damaged(path, error) from None
    return fit_pixels(image, size, fit)


def is_animated(path: Path) -> bool:
    """Whether a picture moves: a GIF, WebP, AVIF or PNG of more than one frame.

    Raises:
        MediaError: it is no picture.
    """
    with open_picture(path) as picture:
        image = picture.image
        return image.format in ("GIF", "WEBP", "AVIF", "PNG") and getattr(image, "n_frames", 1) > 1


def shown_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture as it is shown, upright.

    Raises:
        MediaError: it is no picture.
    """
    with open_picture(path) as picture:
        image = picture.image
        try:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        except Exception:  # a damaged EXIF says nothing
            turned = False
        return (image.height, image.width) if turned else (image.width, image.height)


def to_rgb(image: Image.Image, background: tuple[int, int, int] = BACKGROUND) -> Image.Image:
    """A decoded picture upright, in sRGB, opaque, with 8 bits a colour."""
    return _opaque(_to_srgb(_upright(image)), background)


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

    @property
    def image(self) -> Image.Image:
        return self._image


def open_picture(path: Path) -> Picture:
    """The picture with its header read only; close it."""
    check_source(path, "an image")
    if kind_of(path) == "heif" and importlib.util.find_spec("pillow_heif") is None:
        raise MediaError(f"{path.name} is a HEIC picture; install pillow-heif to read it, or save it as JPEG.")
    try:
        picture = iio.imopen(path.absolute(), "r", plugin=Picture)
    except Exception as error:  # imageio wraps what a decoder raises
        cause = error.__cause__
        if isinstance(cause, Image.DecompressionBombError):
            limit = MAX_PIXELS // 10**6
            raise MediaError(f"{path.name} has more than {limit} megapixels; make it smaller first.") from None
        if cause is None or isinstance(cause, InitializationError):
            raise MediaError(f"{path.name} {NO_PICTURE}") from None
        raise _damaged(path, cause) from None
    if picture.image.format not in FORMATS:
        picture.close()
        raise MediaError(f"{path.name} {NO_PICTURE}")
    return picture


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; a damaged EXIF says nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_srgb(image: Image.Image) -> Image.Image:
    """Colours of an embedded profile in sRGB; a damaged profile is left aside."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, source, target, outputMode=mode) or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


def _opaque(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """RGB, 8 bit, without transparency."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        image = _to_8_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        under = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(under, image).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bit (0..65535), 32 bit or float (0..1, or 0..255) to 8 bit; Pillow's own conversion clips instead."""
    values = np.asarray(image).astype(np.float32)
    values = np.nan_to_num(values, posinf=0, neginf=0)
    highest = float(values.max(initial=0))
    if image.mode == "F":
        scale = 255.0 if highest <= 1 else 1.0
    else:
        scale = 255 / 65535 if highest > 255 or image.mode.startswith("I;16") else 1.0
    return Image.fromarray((values * scale).clip(0, 255).round().astype(np.uint8))


def _damaged(path: Path, error: Exception) -> MediaError:
    """The sentence for a decoder's complaint."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    reason = text if len(text) <= 80 else text[:79] + "…"
    return MediaError(f"{path.name} is damaged and cannot be read ({reason}); use another copy.")
