"""Contact sheets: a row of frames for every clip, its caption above it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

_LINE = 13
"""Height of a caption in pixels."""


def contact_sheet(path: Path, clips: Sequence[np.ndarray], captions: Sequence[str], columns: int = 12) -> None:
    """Write a PNG: `columns` frames of every clip (T, H, W, 3) uint8, evenly spaced, first and last included."""
    from PIL import Image, ImageDraw

    height, width = clips[0].shape[1:3]
    sheet = Image.new("RGB", (columns * width, len(clips) * (height + _LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
        top = row * (height + _LINE)
        draw.text((2, top), caption[: columns * width // 6], fill="black")
        for column, frame in enumerate(np.linspace(0, len(clip) - 1, columns).round().astype(int)):
            sheet.paste(Image.fromarray(clip[frame]), (column * width, top + _LINE))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(128).save(path, optimize=True)
