"""A generation on disk, from which every second can be shown, continued, redone or branched after any crash.

NAME/
  project.json               the request with the timeline as edited, status, parent, history
  inputs/                    copies of the image or clip that the video starts from
  chunks/00000.safetensors   clean latents of second 0, (1, C, t, H, W), as the sampler made them
  chunks/00000.m4s           its frames, an H.264 fragment as it stands in video.mp4
  chunks/00000.jpg           a strip of thumbnails
  states/00000.safetensors   the sampler after stage 0: tensors, and the position as JSON in the header
  video.mp4                  init segment and all fragments; grows while the run goes on, plays at any moment
  log.txt                    what happened, a line each
  .lock                      held by the one process that writes

Why it survives any crash: each file is written whole under another name, synced and renamed, and none is changed in
place but video.mp4 (whole fragments appended, a torn tail cut off) and the log. A second is finished when its latents
AND its fragment are there and those of all seconds before it; whatever else lies around is dropped when someone writes
again. The order of writes never promises more than is there: a state counts only if the seconds it let go exist.

Frames are kept as encoded fragments, and video.mp4 is put together from them by copying bytes. So a second that is
kept, through resume, redo, extend or branch, keeps its latents, its frames and its bytes. The road not taken,
decoding the latents and encoding again, would make another second of it on another machine.

A finished second is never overwritten: `write_chunk` keeps what is there. To make it again: `redo_from`, `branch`.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from magi_lite.errors import InputError, OutputError
from magi_lite.files import output_errors, storage_errors, write_atomic, write_tensors
from magi_lite.models import FPS
from magi_lite.project.files import (
    LOCK_NAME,
    ProjectFiles,
    SavedState,
    Status,
    link,
    make_folder,
    now,
    read_json,
    write_json,
)
from magi_lite.request.json import request_to_json
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline import Timeline
from magi_lite.timeline.edit import splice
from quant.storage.lock import FileLock

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from magi_lite.video.writer import VideoWriter

__all__ = ["FIXED", "Project", "SavedState"]

FIXED = ("width", "height", "model", "steps", "window", "shortcut")
"""Settings of a request that kept seconds and states depend on."""
CHANGEABLE = ("out", "models_folder", "preset", "overrides")
"""Settings that a run may change where it goes on: finished seconds keep their bits."""
PREFIX_NAME = "prefix.safetensors"
"""In `inputs`: latents that the video starts from, kept by whoever encoded them; a branch takes them along."""


class StateLike(Protocol):
    """What `save_state` stores: `position` JSON-able, `tensors` by name."""

    position: dict[str, Any]
    tensors: dict[str, Tensor]


class Project(ProjectFiles):
    """One project folder. Reading takes no lock; the first write takes it, until `close`.

    Made by `create` or `open`; a context manager that closes itself.
    """

    def __init__(self, folder: Path, data: dict[str, Any]) -> None:
        super().__init__(folder, data)
        self._lock: FileLock | None = None
        self._writer: VideoWriter | None = None

    @classmethod
    def create(cls, root: Path | str, request: GenerationRequest) -> Project:
        """A new project of status "running", locked, in a folder of its own under `root`, which is made if missing.

        Raises:
            OutputError: the folder cannot be written.
        """
        return cls._new(make_folder(Path(root), request, None, lambda folder: None))

    @classmethod
    def open(cls, folder: Path | str) -> Project:
        """A project that exists.

        Raises:
            InputError: the folder is none, or its project.json is damaged or of a newer version.
        """
        return cls(Path(folder), read_json(Path(folder)))

    def lock(self) -> None:
        """Become the one writer; drops what a crashed writer left half done.

        Raises:
            OutputError: another process is writing, or there is no permission.
        """
        if self._lock is None:
            with storage_errors():
                self._lock = FileLock(self.folder / LOCK_NAME, self.folder.name)
            self._data = read_json(self.folder)
            self._sweep()

    def close(self) -> None:
        """Let others write."""
        self._close_video()
        if self._lock:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Project:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- while it runs -----------------------------------------------------------------------------------------------

    def write_chunk(self, index: int, latents: Tensor, frames: np.ndarray) -> bool:
        """Store second `index`; a second that is there is kept as it is.

        Args:
            index: at most `chunks`.
            latents: (1, C, t, H, W).
            frames: (T, H, W, 3) uint8, T >= 1.

        Returns:
            Whether it was written.

        Raises:
            OutputError: the disk refuses; the seconds before are kept.
        """
        from magi_lite.video import fragments
        from magi_lite.video.thumbnails import strip, to_jpeg

        self.lock()
        count = self.chunks
        if index < count:
            return False
        if index > count:
            raise ValueError(f"second {index} comes before second {count} is written")
        video = self._open_video()
        fragment = fragments.encode_chunk(frames, video.fps, video.crf)
        write_tensors(self._chunk(index, "safetensors"), {"latents": latents})
        write_atomic(self._chunk(index, "jpg"), to_jpeg(strip(frames)))
        write_atomic(self._chunk(index, "m4s"), fragments.place(fragment, index, video.frames))
        try:
            video.append_fragment(fragment)
        except OutputError:
            self._close_video()  # the second is kept; the video is put together anew when there is room
            raise
        return True

    def save_state(self, stage: int, state: StateLike) -> None:
        """Store the sampler's state after stage `stage` (from 0).

        Raises:
            OutputError: the disk refuses.
        """
        self.lock()
        write_tensors(self._state(stage), state.tensors, {"position": json.dumps(state.position)})

    def prune_states(self, keep: int) -> None:
        """Drop all but the newest `keep` states: an endless run need not remember every second."""
        self.lock()
        stages = self._stages()
        for stage in stages[: max(0, len(stages) - keep)]:
            self._state(stage).unlink(missing_ok=True)

    def edit_timeline(self, timeline: Timeline, from_chunk: int) -> None:
        """From second `from_chunk` on `timeline` holds; what was said before it stays on record."""
        self.lock()
        edited = splice(self.request.timeline, from_chunk, timeline)
        self._change("timeline", from_chunk, replace(self.request, timeline=edited))

    def run_as(self, request: GenerationRequest) -> None:
        """From now on it runs where, in which numbers and to which `out` file `request` says; what is kept stays."""
        self.lock()
        changed = replace(self.request, **{name: getattr(request, name) for name in CHANGEABLE})
        if changed != self.request:
            only_out = replace(changed, out=self.request.out) == self.request
            self._change("delivered" if only_out else "moved", self.chunks, changed)

    def set_status(self, status: Status, message: str = "") -> None:
        """Record how the run stands; when it ends, the settings inside the video are brought up to date."""
        self.lock()
        self._data |= {"status": status, "message": message}
        write_json(self.folder, self._data)
        if status != "running":
            self._close_video()
            self._open_video()

    def log(self, text: str) -> None:
        """Add a line to log.txt."""
        path = self.folder / "log.txt"
        with output_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(f"{now()} {' '.join(text.split())}\n")

    # --- another ending ----------------------------------------------------------------------------------------------

    def extend(self, seconds: int | None) -> None:
        """Ask for `seconds` more than asked for, or than an endless run has finished; None: go on without end.

        States that ran out at the old end, or had begun seconds behind the new one, are of no use any more and go.

        Raises:
            InputError: not at least 1.
        """
        if seconds is not None and seconds < 1:
            raise InputError(f"A video cannot be extended by {seconds} seconds; ask for at least 1.")
        self.lock()
        old = self.request.seconds
        end = self.chunks if old is None else old
        new = None if seconds is None else end + seconds
        self._change("extended", end, replace(self.request, seconds=new), "stopped")
        last = new if old is None else old
        for stage in reversed(self._stages()):
            if last is not None and stage >= last:
                self._state(stage).unlink(missing_ok=True)

    def redo_from(self, chunk: int, request: GenerationRequest | None = None) -> None:
        """Drop the seconds from `chunk` on, to be made again as `request` says (None: as before); earlier ones stay.

        Raises:
            InputError: there is no such second, or `request` changes what kept seconds depend on.
        """
        self.lock()
        changed = self._changed(chunk, request)
        if _sources(changed) != _sources(self.request):
            raise InputError("A video cannot be redone from another image or clip; start a new one with it.")
        self._close_video()
        for index in reversed(range(chunk, self.chunks)):
            for kind in ("m4s", "safetensors", "jpg"):
                self._chunk(index, kind).unlink(missing_ok=True)
        for stage in reversed(self._stages()):
            if stage >= chunk:
                self._state(stage).unlink(missing_ok=True)
        self._change("redone", chunk, changed, "stopped")
        self._open_video()

    def branch(self, from_chunk: int, request: GenerationRequest | None = None) -> Project:
        """A new project beside this one with the seconds before `from_chunk`, bit for bit; this one stays as it is.

        Raises:
            InputError: see `redo_from`.
            OutputError: the folder cannot be written.
        """
        changed = self._changed(from_chunk, request)

        def fill(folder: Path) -> None:
            for index in range(from_chunk):
                for kind in ("safetensors", "jpg", "m4s"):
                    link(self._chunk(index, kind), folder / "chunks" / f"{index:05}.{kind}")
            for stage in self._stages():
                if stage < from_chunk:
                    link(self._state(stage), folder / "states" / f"{stage:05}.safetensors")
            prefix = self.folder / "inputs" / PREFIX_NAME
            if _sources(changed) == _sources(self.request) and prefix.is_file():
                link(prefix, folder / "inputs" / PREFIX_NAME)

        parent = {"project": self.name, "from": from_chunk}
        return Project._new(make_folder(self.folder.parent, changed, parent, fill))

    # --- the whole ---------------------------------------------------------------------------------------------------

    def export(self, target: Path | str) -> Path:
        """Write the video as an ordinary MP4 with its index in front, without encoding again.

        Raises:
            OutputError: the target cannot be written.
            InputError: no second is finished.
        """
        from magi_lite.video.writer import finalize

        if not self.chunks:
            raise InputError(f"{self.name} has no finished second yet; let it run until the first one is done.")
        return finalize(self.video, target)

    def delete(self) -> None:
        """Remove the folder and all in it.

        Raises:
            OutputError: a process is writing it, or there is no permission.
        """
        self.lock()
        self.close()
        trash = self.folder.with_name(f".trash-{self.name}-{os.getpid()}")
        with output_errors(self.folder):
            self.folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)

    # --- inside ------------------------------------------------------------------------------------------------------

    @classmethod
    def _new(cls, folder: Path) -> Project:
        project = cls.open(folder)
        try:
            project.lock()
            project._open_video()
        except BaseException:
            project.close()
            raise
        return project

    def _change(self, what: str, chunk: int, request: GenerationRequest, status: Status | None = None) -> None:
        """Put another request on record."""
        data = {"request": request_to_json(request)}
        data["history"] = [*self._data["history"], {"at": now(), "what": what, "from": chunk}]
        if status:
            data |= {"status": status, "message": ""}
        self._data |= data
        write_json(self.folder, self._data)

    def _changed(self, chunk: int, request: GenerationRequest | None) -> GenerationRequest:
        """`request` with what was said before second `chunk` left on record."""
        mine = self.request
        if not 0 <= chunk <= self.chunks:
            raise InputError(f"{self.name} cannot go on from second {chunk}; it has {self.chunks} finished seconds.")
        if request is None:
            return mine
        if request.seconds is not None and request.seconds < chunk:
            raise InputError(
                f"{chunk} seconds are kept, more than the {request.seconds} asked for; ask for {chunk + 1} or more."
            )
        for name in FIXED:
            old, new = getattr(mine, name), getattr(request, name)
            if chunk and old != new:
                raise InputError(f"The seconds to keep have {name} {old}, not {new}; start a new video to change that.")
        return replace(request, timeline=splice(mine.timeline, chunk, request.timeline))

    def _sweep(self) -> None:
        """Remove temporary files, and files of seconds that are not whole."""
        count = self.chunks
        with output_errors(self.folder):
            for path in [*self.folder.glob(".*.tmp*"), *self.folder.glob("*/.*.tmp*")]:
                path.unlink(missing_ok=True)
            for path in (self.folder / "chunks").iterdir():
                if not path.stem.isdigit() or int(path.stem) >= count:
                    path.unlink(missing_ok=True)

    def _open_video(self) -> VideoWriter:
        """The writer of video.mp4, which holds exactly the finished seconds and the present settings."""
        from magi_lite.video.writer import VideoWriter, assemble

        if self._writer is None:
            request = self.request
            settings = request_to_json(request, paths=False) if request.embed_settings else None
            size, crf = (request.width, request.height), request.crf
            assemble(self.video, [self._chunk(i, "m4s") for i in range(self.chunks)], size, FPS, crf, settings)
            self._writer = VideoWriter(self.video, size, FPS, crf, settings, resume=True)
        return self._writer

    def _close_video(self) -> None:
        if self._writer:
            self._writer.close()
            self._writer = None


def _sources(request: GenerationRequest) -> tuple[str | None, ...]:
    """The names of the image and the clip that a request starts from."""
    return tuple(path and path.name for path in (request.image, request.video))
