"""Files that a page sends: what they really are, kept in a folder of their own, or one sentence why not."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from magi_lite.errors import InputError, MagiLiteError, MediaError
from magi_lite.files import copy_source, is_file, output_errors
from magi_lite.models import FPS
from magi_lite.request.checks import content_hash
from magi_lite.request.json import request_to_json
from magi_lite.request.settings import settings_from_data
from magi_lite.video.containers import DAMAGED, NO_PICTURE, kind_of

NOT_UPLOADED = "This file was not uploaded through the page; drop it into the box."
LIMIT_BYTES = 500_000_000
"""Largest file taken."""
ARRIVING = ".arriving"
"""Folder beside the runs for what pages send, until it is looked at and kept."""
FORGOTTEN_SECONDS = 24 * 3600.0
"""After which a file that was sent and not kept is deleted; an app that starts deletes them all."""
KEPT_SECONDS = 14 * 24 * 3600.0
"""For which a picture or clip that no job uses is kept: a page keeps what is in its form over any number of starts."""
_PICTURES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".apng", ".heic", ".heif",
    ".jp2", ".ico", ".ppm", ".tga",
)  # fmt: skip
_CLIPS = (
    ".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".3gp", ".3g2", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv",
    ".asf", ".flv", ".ogv", ".mxf", ".vob",
)  # fmt: skip
SUFFIXES = frozenset(_PICTURES + _CLIPS)
"""Endings that kept files may have; what a file is shows in its content alone."""


def look_at(path: Path, name: str) -> dict[str, Any]:
    """What a file is: {"kind", "name", "width", "height", "info", and for our own videos "settings"}.

    Raises:
        MediaError: empty, too large, of a kind that cannot be used, or damaged.
    """
    from magi_lite.video.look import look_at as look

    size = path.stat().st_size
    if size == 0:
        raise MediaError(f"{name} is empty (0 bytes); choose another file.")
    if size > LIMIT_BYTES:
        raise MediaError(f"{name} has {size / 1e6:.0f} MB; the largest file taken is {LIMIT_BYTES / 1e6:.0f} MB.")
    try:
        seen = look(path)
    except MediaError as error:
        suffix = Path(name).suffix.lower()
        if DAMAGED in str(error) and suffix in _PICTURES:
            raise MediaError(f"{name} {NO_PICTURE}") from None
        if DAMAGED in str(error) and suffix not in _CLIPS:
            raise MediaError(
                f"{name} is neither an image nor a video; drop a PNG, JPEG or WebP, or an MP4, MOV, MKV or WebM."
            ) from None
        raise MediaError(str(error).replace(path.name, name).replace(str(path), name)) from None
    found = {"kind": seen.kind, "name": name, "width": seen.width, "height": seen.height}
    if seen.kind == "image":
        return {**found, "info": f"{seen.width} × {seen.height}, the first frame"}
    info = f"{seen.width} × {seen.height}, {seen.seconds:.1f} s"
    if round(seen.rate) != FPS:
        rate = f"{seen.rate:.0f}" if seen.rate >= 10 else f"{seen.rate:.2g}"
        info += f", {rate} {'frame' if rate == '1' else 'frames'} per second"
    return {**found, "info": info, **_settings(path, name)}


def _settings(path: Path, name: str) -> dict[str, Any]:
    """The settings inside a video of ours, checked, or the sentence why they cannot be used."""
    from magi_lite.video.writer import read_settings

    if kind_of(path) != "other":  # an animated picture
        return {}
    try:
        settings = read_settings(path)
        return {"settings": request_to_json(settings_from_data(settings), paths=False)} if settings else {}
    except MagiLiteError as error:
        return {"settings_error": f"The settings in {name} cannot be used: {error}"}


def received_folder() -> Path:
    """Where Gradio puts what pages send."""
    from gradio.utils import get_upload_folder

    return Path(get_upload_folder())


def arriving_folder(projects: Path) -> Path:
    """The empty folder for what pages will send; what a run of the app before has left there is deleted.

    Raises:
        OutputError: the disk refuses.
    """
    folder = projects / ARRIVING
    with output_errors(folder):
        if folder.is_symlink() or folder.is_file():  # never through a link: what lies behind it is not ours
            folder.unlink()
        forget(folder)
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def forget(folder: Path, older_than: float = 0.0) -> None:
    """Delete what pages sent, whole or cut off in the middle, and nobody came back to for `older_than` seconds.

    What a form or a job uses was copied when it came (`keep`).
    """
    before = time.time() - older_than
    old = []
    for path in folder.rglob("*"):
        with suppress(OSError):  # gone in between
            if path.lstat().st_mtime <= before:
                old.append(path)
    for path in sorted(old, reverse=True):  # what lies in a folder before the folder
        with suppress(OSError):  # still open on Windows, or a folder that holds something newer
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()


def received(path: str) -> Path:
    """A file that a page has sent.

    Raises:
        InputError: the path is not one of those.
    """
    try:
        found = Path(path).resolve()
    except (OSError, ValueError):  # nothing can be called so
        raise InputError(NOT_UPLOADED) from None
    if not found.is_relative_to(received_folder().resolve()) or not is_file(found):
        raise InputError(NOT_UPLOADED)
    return found


def keep(path: Path, name: str, folder: Path) -> Path:
    """Copy a file into `folder` under a name made of its contents, so that a queued job finds it after a restart."""
    digest = content_hash(path)
    suffix = Path(name).suffix.lower()
    kept = folder / (digest[:20] + (suffix if suffix in SUFFIXES else ".media"))  # never one that a browser would run
    if kept.exists():
        with suppress(OSError):  # its time tells when it was wanted last
            kept.touch()
    else:
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        copy_source(path, kept, digest)
    return kept


def clean(folder: Path, used: set[Path]) -> None:
    """Delete kept files that no job refers to and that came `KEPT_SECONDS` ago: a form may still show a younger one.

    Behind a link, whose they are is not known.
    """
    before = time.time() - KEPT_SECONDS
    for path in folder.iterdir() if folder.is_dir() and not folder.is_symlink() else ():
        with suppress(OSError):
            if path not in used and path.lstat().st_mtime <= before:
                path.unlink()
