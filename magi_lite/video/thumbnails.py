"""Small pictures of a video for timelines and galleries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from magi_lite.files import write_atomic


def strip(frames: np.ndarray, count: int = 4, height: int = 72) -> np.ndarray:
    """`count` evenly spaced frames side by side.

    Args:
        frames: (T, H, W, 3) uint8, T >= 1.
        count: pictures in the strip; frames repeat if there are fewer.
        height: of the strip in pixels; the width follows.

    Returns:
        (height, count * width, 3) uint8.
    """
    from PIL import Image

    width = max(1, round(height * frames.shape[2] / frames.shape[1]))
    chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
    small = [Image.fromarray(frames[i]).resize((width, height), Image.Resampling.BOX) for i in chosen]
    return np.concatenate([np.asarray(image) for image in small], axis=1)


def to_jpeg(image: np.ndarray, quality: int = 85, *, made: bool = True) -> bytes:
    """JPEG bytes of an image (H, W, 3) uint8; `made`: labelled as made by a model."""
    import imageio.v3 as iio

    from magi_lite.video import labels

    label: dict[str, Any] = {"xmp": labels.xmp()} if made else {}
    return iio.imwrite("<bytes>", image, plugin="pillow", extension=".jpg", quality=quality, **label)


def to_png(image: np.ndarray, settings: dict[str, Any] | None = None) -> bytes:
    """PNG bytes of an image (H, W, 3) uint8, labelled as made by a model and with `settings` if given."""
    import imageio.v3 as iio

    from magi_lite.video import labels

    png = iio.imwrite("<bytes>", image, plugin="pillow", extension=".png")
    return labels.label_png(png, labels.xmp(settings))


def save_image(path: Path, image: np.ndarray) -> None:
    """Write an image (H, W, 3) uint8 as .jpg or .png by the path's ending, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    if path.suffix.lower() in (".jpg", ".jpeg"):
        write_atomic(path, to_jpeg(image))
    else:
        write_atomic(path, to_png(image))
