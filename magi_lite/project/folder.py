"""A run's folder: built under a hidden name and renamed when it is whole; files shared, and moved aside."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from magi_lite.files import output_errors
from magi_lite.project.record import Record, write_record
from magi_lite.request.checks import content_hash
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline import Segment, Timeline
from magi_lite.timeline.edit import with_pictures
from quant.storage.files import replacing

_STALE_SECONDS = 3600
"""Hidden folders older than this are left from a crash, not in the making."""


def make_folder(root: Path, record: Record, fill: Callable[[Path], None]) -> Path:
    """Build a run's folder under a hidden name, let `fill` put files in, and rename it when it is whole.

    Raises:
        OutputError: the folder cannot be written.
    """
    request = record.request
    name = _new_name(request)
    hidden, folder = root / f".new-{name}", root / name
    try:
        with output_errors(folder):
            root.mkdir(parents=True, exist_ok=True)
            remove_leftovers(root)
            for part in ("chunks", "states", "inputs"):
                (hidden / part).mkdir(parents=True)
            for path in (request.image, request.video):
                if path and path.is_file():
                    shutil.copyfile(path, hidden / "inputs" / path.name)
            own = adopt_pictures(request.timeline, hidden / "inputs", folder / "inputs")
            fill(hidden)
        write_record(hidden, replace(record, request=replace(request, timeline=own)))
        with output_errors(folder):
            hidden.rename(folder)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    return folder


def adopt_pictures(timeline: Timeline, copies: Path, inputs: Path) -> Timeline:
    """Copy the pictures of a timeline's blocks, each content once, and let the blocks name the copies.

    Args:
        copies: the folder that they are copied to; inputs: what that folder is called once the run's folder is whole.

    Raises:
        MediaError: a picture cannot be read.
        OSError: the disk refuses.
    """

    def own(segment: Segment) -> Segment:
        assert segment.image is not None
        if not segment.image.is_file():
            return segment
        known = segment.image_sha256 or content_hash(segment.image)
        copy = f"{known[:12]}-{segment.image.name.removeprefix(known[:12] + '-')[-60:]}"
        if not (copies / copy).is_file():
            with replacing(copies / copy) as temporary:
                shutil.copyfile(segment.image, temporary)
        return replace(segment, image=inputs / copy, image_sha256=known)

    return with_pictures(timeline, own)


def share(source: Path, target: Path) -> None:
    """Link a file that is never changed in place, or copy it where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def move_aside(path: Path) -> None:
    """Keep a damaged file in the run's folder `damaged`, where nothing reads it.

    Args:
        path: directly in the run's folder, or in one of its folders.

    Raises:
        OutputError: the disk refuses.
    """
    if not os.path.lexists(path):
        return
    run = path.parent if path.parent.name not in ("chunks", "states", "inputs") else path.parent.parent
    with output_errors(path):
        folder = run / "damaged"
        folder.mkdir(exist_ok=True)
        numbers = [int(known.name[:3]) for known in folder.iterdir() if known.name[:3].isdigit()]
        path.rename(folder / f"{max(numbers, default=-1) + 1:03}-{path.name}")


def remove_leftovers(root: Path) -> None:
    """Delete what crashed processes left hidden under `root`."""
    for folder in [*root.glob(".new-*"), *root.glob(".trash-*")]:
        with contextlib.suppress(OSError):  # its maker may just have given it its name
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _new_name(request: GenerationRequest) -> str:
    """Time, the prompt's beginning, and four random digits: sorts by time and is unique."""
    text = request.timeline.global_prompt or next((s.prompt for s in request.timeline.segments), "")
    slug = "-".join(re.findall(r"[a-z0-9]+", text.lower())[:4])[:32] or "video"
    return f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{slug}-{secrets.token_hex(2)}"
