"""The videos on disk as the pages show them: found, searched, sorted, and grouped by version."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from magi_lite.errors import InputError, MagiLiteError, OutputError
from magi_lite.files import output_errors
from magi_lite.jobs.job import Job
from magi_lite.jobs.recover import job_of
from magi_lite.project import Project
from magi_lite.project.folder import runs_in
from magi_lite.ui.bin import Bin, run_named
from magi_lite.ui.entries import Entry, read_entry, settings_table, stamp_of, title
from magi_lite.ui.labels import Labels, changed, read_labels, write_labels

_MOST_THUMBNAILS = 60
"""Seconds of a video whose lost thumbnails are made again when it is opened, each in a tenth of a second."""
_MOST_CARDS = 12
"""Cards whose lost pictures are made again when a page asks for them; the others get theirs when it asks again."""
LOOK_EVERY = 1.0
"""Seconds between two looks at the folder for what is new."""
SHOW = ("all", "starred", "finished", "unfinished")
SORT = ("newest", "oldest", "name", "longest", "largest")
_UNFINISHED = ("paused", "stopped", "interrupted", "failed", "running")


def file_url(path: Path) -> str:
    """Where the page finds a file of the projects folder."""
    return "/gradio_api/file=" + quote(str(path))


def picture_of(folder: Path) -> Path:
    """The picture of a video's card: the thumbnails of its first second."""
    return folder / "chunks" / "00000.jpg"


class Library:
    """Projects of one folder.

    Args:
        folder: where runs are kept; everything in it may be shown to the page.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[tuple[int, ...], Entry]] = {}
        self._lock = threading.Lock()
        self._changes = 0
        self._bin = Bin(folder)
        self._looked = (-math.inf, "")
        self._restored: set[Path] = set()
        self._job: tuple[tuple[int, ...], Job | None] = ((), None)

    # --- one video

    def path(self, name: str) -> Path:
        """The folder of a project.

        Raises:
            InputError: there is none of that name.
        """
        return run_named(self.folder, name, "in the gallery; it may have been deleted")

    def holds(self, path: Path | str) -> bool:
        """Whether a path, links resolved, lies in the folder; whether it exists is not looked at."""
        try:
            return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.folder))
        except (OSError, ValueError, TypeError):
            return False

    def open(self, name: str) -> Project:
        """A project by its name, for reading.

        Raises:
            InputError: there is none, or it is damaged.
        """
        return Project.open(self.path(name))

    def job(self, name: str) -> Job:
        """The job that would have ended with a project as it is, under its name; read again only when that changed.

        Raises:
            InputError: there is none, or it is damaged.
        """
        known, old = self._job  # one is enough for what a stage shows, and asks for twice a second
        with output_errors(self.folder / name):
            stamp = stamp_of(self.path(name))
        if old is None or old.id != name or known != stamp or old.state == "interrupted":
            old = job_of(self.open(name), name)
            self._job = (stamp, old)
        return old

    def details(self, name: str) -> dict[str, Any]:
        """A project's player, settings and what can be done with it; lost thumbnails of it are made again."""
        project = self.open(name)
        done = project.chunks
        with contextlib.suppress(OutputError):  # a disk that can only be read
            project.seconds.restore_thumbnails(_MOST_THUMBNAILS)
        labels = read_labels(project.folder)
        return {
            "id": name,
            "title": labels.name or title(project.request) or project.name,
            "name": labels.name,
            "starred": labels.starred,
            "main": labels.main,
            "done": done,
            "width": project.request.width,
            "height": project.request.height,
            "video_url": file_url(project.video) + f"?v={done}" if done else None,
            "place": str(project.video),
            "resumable": project.status in ("paused", "stopped", "interrupted", "failed"),
            "settings": settings_table(project.request),
            "continues": project.request.video.name if project.request.video else None,
        }

    def reveal(self, name: str) -> None:
        """Show the video in the file manager of the computer that runs the app.

        Raises:
            OutputError: there is no file manager; says where the file is.
        """
        video = self.open(name).video
        opener = {"win32": "explorer", "darwin": "open"}.get(sys.platform, "xdg-open")
        if shutil.which(opener) is None:
            raise OutputError(f"No file manager was found; the video is {video}.")
        target = ["/select,", str(video)] if opener == "explorer" else [str(video.parent)]
        subprocess.Popen([opener, *target], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    # --- lists

    def version(self) -> str:
        """Changes whenever the list does, at most LOOK_EVERY seconds later; every page asks twice a second."""
        looked, found = self._looked
        if time.monotonic() - looked > LOOK_EVERY:
            times = []
            for name in runs_in(self.folder):
                with contextlib.suppress(OSError):
                    times.append((name, Path(self.folder, name, "project.json").stat().st_mtime_ns))
            # all of them and not the newest: what is written after a clock was put back is older than what was there
            found = f"{len(times)}.{zlib.crc32(repr(times).encode()):08x}"
            self._looked = (time.monotonic(), found)
        return f"{found}.{self._changes}"

    def entries(self) -> list[Entry]:
        """All readable runs, the newest first. What did not change since the last call is not read again."""
        return self._read_all(self.folder, self._known)

    def _read_all(self, folder: Path, known: dict[str, tuple[tuple[int, ...], Entry]]) -> list[Entry]:
        found = {}
        with self._lock:
            for name in runs_in(folder):
                path = folder / name
                try:
                    stamp = stamp_of(path)
                    old = known.get(name)
                    if old and old[0] == stamp and old[1].status != "running":
                        found[name] = old
                    else:
                        found[name] = (stamp, read_entry(path))
                except (MagiLiteError, OSError):
                    continue
            known.clear()
            known.update(found)
        return sorted((entry for _, entry in found.values()), key=lambda entry: entry.order, reverse=True)

    def families(self) -> dict[str, list[Entry]]:
        """Versions that redo made of one video, the oldest first, by the name of the first one, newest video first."""
        return _families(self.entries())

    def versions(self, name: str) -> list[dict[str, Any]]:
        """A video with all that were made from it or beside it by redo, the oldest first."""
        family = next((some for some in self.families().values() if any(one.id == name for one in some)), [])
        return [
            {
                "name": one.id,
                "label": one.labels.name,
                "starred": one.labels.starred,
                "main": one.labels.main,
                "parent": one.parent,
                "from": one.from_second,
                "done": one.done,
                "video_url": file_url(self.folder / one.id / "video.mp4") if one.done else None,
            }
            for one in family
        ]

    def last_video(self) -> Path | None:
        """The newest video with a finished second; of several versions the one that was made the one to go on with."""
        for family in self.families().values():
            usable = [one for one in family if one.done]
            if usable:
                chosen = next((one for one in usable if one.labels.main), usable[-1])
                return self.folder / chosen.id / "video.mp4"
        return None

    def page(
        self,
        search: str = "",
        show: str = "all",
        model: str = "",
        sort: str = "newest",
        grouped: bool = False,
        offset: int = 0,
        limit: int | None = None,
        versions_of: str = "",
    ) -> dict[str, Any]:
        """A part of the list, as `Actions.gallery` describes it.

        Raises:
            InputError: a filter or an order that there is not.
        """
        for word, known, what in ((show, SHOW, "filter"), (sort, SORT, "order")):
            if word not in known:
                raise InputError(f"There is no {what} {word!r}; choose one of {', '.join(known)}.")
        entries = self.entries()
        wanted = search.lower().split()
        families = {one.id: family for family in _families(entries).values() for one in family}
        asked = families.get(versions_of, [])[::-1] if versions_of else entries
        fits = [one for one in asked if _fits(one, wanted, show, model)]
        if grouped:
            kept = {one.id for one in fits}
            fits = [one for one in fits if one is _chosen([other for other in families[one.id] if other.id in kept])]
        fits = _sorted(fits, sort)
        part = fits[offset : None if limit is None else offset + limit]
        self._restore_pictures([self.folder / one.id for one in part if one.done])
        return {
            "videos": [self._tile(one, families[one.id]) for one in part],
            "total": len(fits),
            "all": len(entries),
            "models": sorted({one.request.model for one in entries}),
            "binned": len(self._bin.names()),
        }

    def _restore_pictures(self, folders: list[Path]) -> None:
        """Make the pictures of cards that lost them again, each once: what cannot be decoded now never can."""
        lost = [one for one in folders if one not in self._restored and not picture_of(one).is_file()]
        for folder in lost[:_MOST_CARDS]:
            self._restored.add(folder)
            with contextlib.suppress(MagiLiteError, OSError):  # deleted meanwhile, or a disk that can only be read
                Project.open(folder).seconds.restore_thumbnails(1)

    def _tile(self, one: Entry, family: list[Entry]) -> dict[str, Any]:
        folder, request = self.folder / one.id, one.request
        version = f", from second {one.from_second} of another" if one.parent else ""
        return {
            "id": one.id,
            "title": one.title,
            "name": one.labels.name,
            "starred": one.labels.starred,
            "main": one.labels.main,
            "summary": f"{one.done} s, {one.status}{version}",
            "status": one.status,
            "created": one.created,
            "bytes": one.bytes,
            "done": one.done,
            "width": request.width,
            "height": request.height,
            "seed": request.seed,
            "model": request.model,
            "versions": [other.id for other in family],
            "thumbnail": file_url(picture_of(folder)) if one.done else None,
            "video_url": f"{file_url(folder / 'video.mp4')}?v={one.done}" if one.done else None,
        }

    # --- what people add

    def label(self, video: str, **changes: Any) -> Labels:
        """Give a video a name or a star, or make it the one of its versions to go on with; None leaves as it is.

        Raises:
            InputError: there is no such video; OutputError: the disk refuses.
        """
        old = read_labels(self.path(video))
        new = changed(old, changes)
        if new.main and not old.main:
            for other in self.versions(video):
                if other["main"] and other["name"] != video:
                    folder = self.path(other["name"])
                    write_labels(folder, replace(read_labels(folder), main=False))
        write_labels(self.path(video), new)
        self._changes += 1
        return new

    # --- the bin

    def binned(self) -> list[dict[str, Any]]:
        """The videos in the bin, the newest first."""
        found = []
        for name in self._bin.names():
            with contextlib.suppress(MagiLiteError, OSError):
                found.append(read_entry(self._bin.folder / name))
        found.sort(key=lambda entry: entry.order, reverse=True)
        self._restore_pictures([self._bin.folder / one.id for one in found if one.done])
        tiles = [self._tile(one, [one]) for one in found]
        for tile, one in zip(tiles, found, strict=True):
            folder = self._bin.folder / one.id
            tile["thumbnail"] = file_url(picture_of(folder)) if one.done else None
            tile["video_url"] = file_url(folder / "video.mp4") if one.done else None
        return tiles

    def throw(self, name: str) -> None:
        """Put a video into the bin.

        Raises:
            OutputError: it is being written, or the disk refuses.
        """
        self._bin.throw(self.path(name))
        self._changes += 1

    def restore(self, name: str) -> None:
        """Take a video out of the bin.

        Raises:
            InputError: it is not there; OutputError: another one has its name by now.
        """
        self._bin.restore(name)
        self._changes += 1

    def empty(self, names: Iterable[str] | None = None) -> int:
        """Delete videos in the bin for good, all of them or those named; how many.

        Raises:
            InputError: one is not there; OutputError: the disk refuses.
        """
        self._changes += 1
        return self._bin.empty(names)

    def delete(self, name: str) -> None:
        """Remove a project for good, past the bin.

        Raises:
            OutputError: it is being written.
        """
        self.open(name).delete()


def _families(entries: list[Entry]) -> dict[str, list[Entry]]:
    parents = {one.id: one.parent for one in entries}

    def root(name: str) -> str:
        seen = {name}
        while (parent := parents.get(name)) and parent not in seen:
            seen.add(name := parent)
        return name

    found: dict[str, list[Entry]] = {}
    for one in entries:
        found.setdefault(root(one.id), []).insert(0, one)
    return found


def _chosen(family: list[Entry]) -> Entry:
    """The version that stands for all."""
    return next((one for one in family if one.labels.main), family[-1])


def _fits(one: Entry, wanted: list[str], show: str, model: str) -> bool:
    shown = {
        "all": True, "starred": one.labels.starred, "finished": one.status == "finished",
        "unfinished": one.status in _UNFINISHED,
    }[show]  # fmt: skip
    return shown and model in ("", one.request.model) and all(word in one.words for word in wanted)


def _sorted(entries: list[Entry], order: str) -> list[Entry]:
    if order == "oldest":
        return entries[::-1]
    keys: dict[str, Callable[[Entry], Any]] = {
        "name": lambda one: one.title.lower(),
        "longest": lambda one: -one.done,
        "largest": lambda one: -one.bytes,
    }
    return sorted(entries, key=keys[order]) if order in keys else entries
