"""A run's folder: built under a hidden name and renamed when it is whole; files shared, and moved aside."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from magi_lite.files import copy_source, output_errors, storage_errors
from magi_lite.project.record import Record, name_of_copy, origin_of, write_record
from magi_lite.request.checks import content_hash
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline import Segment, Timeline
from magi_lite.timeline.edit import with_pictures
from quant.errors import DiskError
from quant.storage.files import remove_folder
from quant.storage.lock import alone, is_locked

PARTS = ("chunks", "states", "inputs")
"""Folders in a run's folder."""
_NUMBER = re.compile("[0-9]{5,9}")
_STAMP = "%Y%m%d-%H%M%S"
"""Of the time at which a run was made, in front of its name."""


def make_folder(root: Path, record: Record, fill: Callable[[Path], None]) -> Path:
    """Build a run's folder under a hidden name, let `fill` put files in, and rename it when it is whole.

    Raises:
        OutputError: the folder cannot be written.
    """
    with output_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    name = _new_name(record.request, root)
    hidden = root / f".new-{name}"
    with storage_errors(), alone(hidden.with_name(f"{hidden.name}.lock"), name):
        remove_leftovers(root)
        return _fill(hidden, root / name, record, fill)


def _fill(hidden: Path, folder: Path, record: Record, fill: Callable[[Path], None]) -> Path:
    request = record.request
    try:
        with output_errors(folder):
            for part in PARTS:
                (hidden / part).mkdir(parents=True)
            known = request.source_sha256 if record.parent is None else None  # a version takes what is there
            for path in (request.image, request.video):
                if path and path.is_file():
                    copy_source(path, hidden / "inputs" / name_of_copy(path), known)
            own = adopt_pictures(request.timeline, hidden / "inputs", folder / "inputs")
            fill(hidden)
        request = replace(request, timeline=own)
        kept = record.parent is not None and record.parent["from"] > 0
        whole = replace(record, request=request)
        write_record(hidden, whole if kept else replace(whole, origin=origin_of(request)).asking(0, None))
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
            copy_source(segment.image, copies / copy, known)
        return replace(segment, image=inputs / copy, image_sha256=known)

    return with_pictures(timeline, own)


def numbers_in(folder: Path, suffix: str) -> list[int]:
    """The numbers of files called as ours are, in order; names that only look like numbers are somebody else's."""
    stems = [path.stem for path in folder.glob(f"*.{suffix}") if _NUMBER.fullmatch(path.stem)]
    return sorted(int(stem) for stem in stems if f"{int(stem):05}" == stem)


def share(source: Path, target: Path) -> None:
    """Link a file that is never changed in place, or copy it where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def move_aside(path: Path) -> None:
    """Keep a damaged file in the run's folder `damaged`, where nothing reads it; in another if a file is called so.

    Args:
        path: directly in the run's folder, or in one of its folders.

    Raises:
        OutputError: the disk refuses.
    """
    if not os.path.lexists(path):
        return
    run = path.parent if path.parent.name not in PARTS else path.parent.parent
    with output_errors(path):
        names = itertools.chain(["damaged"], (f"damaged-{number}" for number in itertools.count(1)))
        folder = next(run / name for name in names if (run / name).is_dir() or not os.path.lexists(run / name))
        folder.mkdir(exist_ok=True)
        known = (re.match("[0-9]{1,9}(?=-)", file.name) for file in folder.iterdir())
        numbers = [int(found[0]) for found in known if found]
        path.rename(folder / f"{max(numbers, default=-1) + 1:03}-{path.name}")


def remove_leftovers(root: Path) -> None:
    """Delete what crashed processes left hidden under `root`: what nobody holds the lock of, however old it seems."""
    for folder in root.glob(".trash-*"):
        remove_folder(folder)
    for name in {path.name.removesuffix(".lock") for path in root.glob(".new-*")}:
        lock = root / f"{name}.lock"
        if is_locked(lock):
            continue
        with contextlib.suppress(DiskError), alone(lock, name):
            remove_folder(root / name)


def runs_in(folder: Path) -> list[str]:
    """Names of the folders that may be runs; one that is being made or deleted has a hidden name.

    One whose name is no text, as old disks have them, cannot be named to a page or on record, and is left out.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and _is_text(entry.name))
    except OSError:
        return []


def is_run(path: Path) -> bool:
    """Whether there is a run's record in a folder; of no folder that cannot be, such as one of too long a name."""
    try:
        return (path / "project.json").is_file()
    except (OSError, ValueError):
        return False


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def place_in_time(name: str, created: str) -> str:
    """What runs are sorted by: the time in a run's name, or in its record where its name has none."""
    if _stamp_of(name):
        return name[:15]
    day, _, rest = created.partition("T")
    return f"{day.replace('-', '')}-{rest.replace(':', '')}"


def _new_name(request: GenerationRequest, root: Path) -> str:
    """Time, the prompt's beginning, and four random digits: sorts behind all that are there, and is unique.

    A clock that was put back shows a time that has been before; the name then takes the next free one.
    """
    text = request.timeline.global_prompt or next((s.prompt for s in request.timeline.segments), "")
    slug = "-".join(re.findall(r"[a-z0-9]+", text.lower())[:4])[:32] or "video"
    now = datetime.now(timezone.utc).replace(microsecond=0, tzinfo=None)
    with contextlib.suppress(OverflowError):
        latest = max((stamp for path in root.iterdir() if (stamp := _stamp_of(path.name))), default=None)
        now = now if latest is None else max(now, latest + timedelta(seconds=1))
    return f"{now.strftime(_STAMP)}-{slug}-{secrets.token_hex(2)}"


def _stamp_of(name: str) -> datetime | None:
    """The time in front of a run's name, if there is one."""
    try:
        return datetime.strptime(name[:15], _STAMP)
    except ValueError:
        return None
