"""Files that a page sends: what they really are, kept in a folder of their own, or one sentence why not."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from magi_lite.errors import MagiLiteError, MediaError
from magi_lite.models import FPS
from magi_lite.request.json import request_to_json
from magi_lite.request.settings import settings_from_data

LIMIT_BYTES = 500_000_000
"""Largest file taken."""
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
VIDEOS = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"})
_PROBE = (64, 64)


def look_at(path: Path, name: str) -> dict[str, Any]:
    """What a file is: {"kind", "name", "width", "height", "info", and for our own videos "settings"}.

    Raises:
        MediaError: empty, too large, of a kind that cannot be used, or damaged.
    """
    size = path.stat().st_size
    suffix = Path(name).suffix.lower()
    if size == 0:
        raise MediaError(f"{name} is empty (0 bytes); choose another file.")
    if size > LIMIT_BYTES:
        raise MediaError(f"{name} has {size / 1e6:.0f} MB; the largest file taken is {LIMIT_BYTES / 1e6:.0f} MB.")
    if suffix in IMAGES:
        return _image(path, name)
    if suffix in VIDEOS:
        return _video(path, name)
    raise MediaError(f"{name} is neither an image nor a video; drop a PNG, JPEG or WebP, or an MP4, MOV, MKV or WebM.")


def received_folder() -> Path:
    """Where Gradio puts what pages send."""
    from gradio.utils import get_upload_folder

    return Path(get_upload_folder())


def keep(path: Path, name: str, folder: Path) -> Path:
    """Copy a file into `folder` under a name made of its contents, so that a queued job finds it after a restart."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:20]
    kept = folder / f"{digest}{Path(name).suffix.lower()}"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_suffix(kept.suffix + ".part")
        shutil.copyfile(path, temporary)
        temporary.replace(kept)
    return kept


def clean(folder: Path, used: set[Path]) -> None:
    """Delete kept files that nothing refers to any more."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path not in used:
            path.unlink(missing_ok=True)


def _image(path: Path, name: str) -> dict[str, Any]:
    from PIL import Image

    from magi_lite.video.images import load_image

    try:
        load_image(path, _PROBE, "crop")
    except MediaError as error:
        raise MediaError(str(error).replace(path.name, name).replace(str(path), name)) from None
    with Image.open(path) as image:
        turned = image.getexif().get(0x0112, 1) >= 5
        width, height = image.size[::-1] if turned else image.size
    info = f"{width} × {height}, the first frame"
    return {"kind": "image", "name": name, "width": width, "height": height, "info": info}


def _video(path: Path, name: str) -> dict[str, Any]:
    import av

    from magi_lite.video.clips import load_tail
    from magi_lite.video.writer import read_settings

    try:
        load_tail(path, _PROBE, "crop", 1)
    except MediaError as error:
        raise MediaError(str(error).replace(path.name, name).replace(str(path), name)) from None
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        width, height = stream.codec_context.width, stream.codec_context.height
        seconds = float(container.duration or 0) / av.time_base
    info = f"{width} × {height}, {seconds:.1f} s" if seconds else f"{width} × {height}"
    rate = float(stream.average_rate or FPS)
    info += "" if round(rate) == FPS else f", {rate:.0f} frames per second"
    found = {"kind": "video", "name": name, "width": width, "height": height, "info": info}
    try:
        settings = read_settings(path)
        return found | ({"settings": request_to_json(settings_from_data(settings), paths=False)} if settings else {})
    except MagiLiteError as error:
        return {**found, "settings_error": f"The settings in {name} cannot be used: {error}"}
