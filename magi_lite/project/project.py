"""A generation on disk, from which every second can be shown, continued, redone or branched after any crash.

NAME/
  project.json               the request with the timeline as edited, status, parent, history
  inputs/                    copies of the image or clip that the video starts from, and of its blocks' pictures
  chunks/00000.safetensors   clean latents of second 0, (1, C, t, H, W), as the sampler made them
  chunks/00000.m4s           its frames, an H.264 fragment as it stands in video.mp4
  chunks/00000.jpg           a strip of thumbnails
  states/00000.safetensors   the sampler after stage 0: tensors, and the position as JSON in the header
  video.mp4                  init segment and all fragments; grows while the run goes on, plays at any moment
  log.txt                    what happened, a line each
  damaged/                   what was damaged or left half written, moved aside
  .lock                      held by the one process that writes

Why it survives any crash: each file is written whole under another name, synced and renamed, and none is changed in
place but video.mp4 (whole fragments appended, a torn tail cut off) and the log. A second is finished when its latents
AND its fragment are there and those of all seconds before it; whatever else lies around is dropped when someone writes
again. The order of writes never promises more than is there: a state counts only if the seconds it let go exist.

Frames are kept as encoded fragments, and video.mp4 is put together from them by copying bytes. So a second that is
kept, through resume, redo, extend or branch, keeps its latents, its frames and its bytes. The road not taken,
decoding the latents and encoding again, would make another second of it on another machine.

A finished second is never overwritten: `write_chunk` keeps what is there. To make it again: `branch`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from magi_lite.errors import InputError, OutputError
from magi_lite.files import output_errors, storage_errors
from magi_lite.models import FPS
from magi_lite.project.folder import PARTS, adopt_pictures, make_folder, move_aside, share
from magi_lite.project.record import (
    PICTURE_NAME,
    PREFIX_NAME,
    Record,
    Status,
    new_record,
    now,
    origin_of,
    read_record,
    write_record,
)
from magi_lite.project.seconds import FRAGMENT, THUMBNAILS, Seconds
from magi_lite.project.states import SavedState, StateLike, States
from magi_lite.project.tensors import Damaged
from magi_lite.request.build import DEMO
from magi_lite.request.json import request_to_json
from magi_lite.request.request import OPTIONS, GenerationRequest
from magi_lite.sentences import count
from magi_lite.timeline import Shot, Timeline
from magi_lite.timeline.edit import splice
from quant.storage.files import open_own, remove_folder
from quant.storage.lock import FileLock, is_locked

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from magi_lite.video.writer import VideoWriter

T = TypeVar("T")
__all__ = ["FIXED", "Project"]

FIXED = tuple(
    option.field for option in OPTIONS.values() if option.changes == "never" and option.field and option.kind != "path"
)
"""Fields of a request that kept seconds and states depend on; a picture or clip is known by its content."""
_RESUMABLE = {option.part or option.field: None for option in OPTIONS.values() if option.changes == "resume"}
CHANGEABLE = tuple(name for name in _RESUMABLE if name not in ("", "timeline", "seconds"))
"""Fields that a run may change where it goes on, without its length and prompts, which `extend` and `edit_timeline` do:
finished seconds keep their bits."""
LOCK_NAME = ".lock"
_OWN_FILES = {
    "project.json", "inputs", "chunks", "states", "video.mp4", "log.txt", "labels.json", "damaged"
}  # fmt: skip
"""In a run's folder; `exports` and whatever else lies there is no part of the run."""
_RECOMPUTED = 4
"""Finished seconds that are rather computed again than taken as a prefix: the same bits for a moment's work."""


class Project:
    """One run's folder. Reading takes no lock; the first write takes it, until `close`.

    Made by `create` or `open`; a context manager that closes itself.
    """

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder, self._record = folder, record
        self._recording = threading.Lock()
        """Held while the record changes and is written: seconds come from a thread beside the one that redirects."""
        self.states = States(folder / "states", lambda: self._record)
        self.seconds = Seconds(folder / "chunks", self.states, lambda: self._record, self._list)
        self.notices: list[str] = []
        """What the user should know of it: a sentence for each second that was found damaged, and the like."""
        self.moved = False
        """Whether `run_as` changed precision or placement."""
        self._lock: FileLock | None = None
        self._writer: VideoWriter | None = None

    @classmethod
    def create(cls, root: Path | str, request: GenerationRequest) -> Project:
        """A new run of status "running", locked, in a folder of its own under `root`, which is made if missing.

        Raises:
            OutputError: the folder cannot be written.
        """
        return cls._new(Path(root), new_record(request, None), lambda folder: None)

    @classmethod
    def open(cls, folder: Path | str) -> Project:
        """A run that exists.

        Raises:
            InputError: the folder is none, or its project.json is damaged or of a newer version.
        """
        return cls(Path(folder), read_record(Path(folder)))

    def lock(self) -> None:
        """Become the one writer, and repair what is damaged as far as what is whole allows; see `notices`.

        Raises:
            OutputError: another process is writing, there is no permission, or the disk is full.
        """
        if self._lock is None:
            self._acquire()
            self._make_folders()
            self._remove_temporary_files()
            self.notices = self.seconds.repair(self.video, self._pasted, self.request.seconds, self._finished)
            held = self.seconds.compared_with(self.video)
            if held == "other":
                self.notices.append(
                    f"{self.video.name} was damaged, or held other frames than the run's seconds; it was put together "
                    "again from them, and the old one is kept in the folder damaged."
                )
            if held != "same":
                move_aside(self.video)
            for sentence in self.notices:
                self.log(sentence)

    def check_whole(self, before: int | None = None, *, restore: bool = True) -> None:
        """Refuse a run of which finished seconds are damaged or missing; those that can be are restored first.

        Who only reads seconds, or copies them into another run, has not seen them `lock`ed and repaired.

        Args:
            before: only the seconds before this one count; None: all.
            restore: False leaves the run as it is, for somebody who only looks at it.

        Raises:
            InputError: some can only be made again; says which, and how.
        """
        lost = self._lost(before)
        if lost and restore and self._lock is None:
            with contextlib.suppress(OutputError):  # being written, or on a disk that can only be read
                self._restore()
            lost = self._lost(before)
        if lost:
            phrases = [phrase for piece in lost.values() for phrase in piece]
            more = f" and {count(len(phrases) - 2, 'other piece')}" if len(phrases) > 2 else ""
            what = (", " if more else " and ").join(phrases[:2]) + more
            raise InputError(
                f"{what[0].upper()}{what[1:]} in {self.name} are damaged or missing; resume the run to restore them or "
                "make them again."
            )

    def _lost(self, before: int | None) -> dict[int, list[str]]:
        """See `Seconds.lost`."""
        lost = self.seconds.lost(self.video, self._pasted, self.request.seconds, self._finished)
        while lost and self._lock is None and (record := read_record(self.folder)).made != self._record.made:
            self._record = record  # somebody is making seconds meanwhile
            lost = self.seconds.lost(self.video, self._pasted, self.request.seconds, self._finished)
        return {index: phrases for index, phrases in lost.items() if before is None or index < before}

    @property
    def _finished(self) -> int:
        """How many seconds are on record as finished."""
        length = self.request.seconds
        return length if self._record.status == "finished" and length is not None else 0

    def _restore(self) -> None:
        """Make whole what can be, as the one writer for as long as that takes; the rest stays as it is."""
        self._acquire()
        try:
            self._make_folders()
            length, finished = self.request.seconds, self._finished
            for sentence in self.seconds.repair(self.video, self._pasted, length, finished, only_whole=True):
                self.notices.append(sentence)
                self.log(sentence)
        finally:
            self.close()

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

    # --- what it holds -----------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def created(self) -> str:
        """UTC, ISO 8601."""
        return self._record.created

    @property
    def request(self) -> GenerationRequest:
        """The request as it stands now; its image or clip is the run's own copy."""
        return self._record.request

    @property
    def shot(self) -> Shot:
        """The shot that the second to be made next belongs to; the last one where all are finished."""
        return self.request.timeline.shot_of(self.chunks, self.request.seconds)

    @property
    def status(self) -> Status:
        """As last set; "interrupted" where its process is gone, or a finished second is not there any more."""
        status, seconds = self._record.status, self.request.seconds
        gone = status == "running" and not is_locked(self.folder / LOCK_NAME)
        lost = status == "finished" and seconds is not None and self.chunks < seconds
        return "interrupted" if gone or lost else status

    @property
    def message(self) -> str:
        """Why it failed, in one sentence; empty otherwise."""
        return self._record.message

    @property
    def history(self) -> tuple[dict[str, Any], ...]:
        """What was done, see `Record`."""
        return self._record.history

    @property
    def parent(self) -> dict[str, Any] | None:
        """`project` (its name) and `from` (second) of the run that this is a version of."""
        return self._record.parent

    @property
    def video(self) -> Path:
        """The growing video: a fragmented MP4 with every finished second."""
        return self.folder / "video.mp4"

    @property
    def chunks(self) -> int:
        """Finished seconds on disk; what lies behind the video's end is none."""
        length = self.request.seconds
        return self.seconds.count() if length is None else min(self.seconds.count(), length)

    @property
    def started(self) -> int:
        """Seconds that are settled where the run goes on: finished, or in the window of the latest state."""
        state = self.latest_state()
        return max(self.chunks, 0 if state is None else self.shot.until(state.stage + 1))

    def thumbnail(self, chunk: int) -> Path:
        """The strip of thumbnails of a finished second (JPEG)."""
        return self.seconds.path(chunk, THUMBNAILS)

    def read_latents(self, index: int) -> Tensor:
        """Latents (1, C, t, H, W) of a finished second.

        Raises:
            InputError: it does not exist or is damaged.
        """
        return self._read(index, self.seconds.read_latents)

    def latent_shape(self, index: int) -> tuple[int, ...]:
        """(1, C, t, H, W) of a finished second, without reading its latents.

        Raises:
            InputError: it does not exist or is damaged.
        """
        return self._read(index, self.seconds.latent_shape)

    def read_fragment(self, index: int) -> bytes:
        """The frames of a finished second, as an H.264 fragment.

        Raises:
            InputError: it does not exist or is damaged.
        """
        return self._read(index, self.seconds.read_fragment)

    def _read(self, index: int, read: Callable[[int], T]) -> T:
        if not 0 <= index < self.chunks:
            raise InputError(f"{self.name} has no finished second {index}; it has {self.chunks}.")
        try:
            return read(index)
        except Damaged as error:
            what = "frames" if error.path.suffix == ".m4s" else "latents"
            sentence = f"The {what} of second {index} in {self.name} are damaged; resume the run to restore them."
            raise InputError(sentence) from None

    # --- where a run goes on -----------------------------------------------------------------------------------------

    def latest_state(self) -> SavedState | None:
        """The newest state from which the shot's finished seconds are found again bit for bit, or None.

        Their number is on disk, few of them come again, and those that do are asked for as they were then.
        """
        chunks, shot, window = self.chunks, self.shot, self.request.window

        def fits(stage: int) -> bool:
            clean = shot.until(max(shot.start, stage + 2 - window))
            asked_as_now = stage + 1 >= min(chunks, self._changed_at)
            return stage >= shot.start and clean <= chunks <= clean + self._few and asked_as_now

        for stage in filter(fits, reversed(self.states.stages())):
            state = self.states.read(stage)
            if state and state.shot == shot.start:
                return state
        return None

    def state_before(self, chunk: int) -> SavedState | None:
        """The state from which second `chunk` is the next to enter the window; None if not there, or chunk is 0."""
        return self.states.read(chunk - 1) if chunk else None

    @property
    def restarts(self) -> bool:
        """Whether, with no state, the shot begins anew and its finished seconds are found again bit for bit."""
        start = self.shot.start
        return self.chunks == start or (self._changed_at <= start and self.chunks - start <= self._few)

    @property
    def _few(self) -> int:
        """Finished seconds that may be computed again; a crash costs one, a window that fills anew its length."""
        return max(_RECOMPUTED, self.request.window)

    @property
    def _changed_at(self) -> int:
        """Seconds before this one were, or may have been, asked for otherwise than is known now."""
        unknown = [e for e in self.history if e["what"] in ("branched", "redone", "extended") and "started" not in e]
        return max((entry["from"] for entry in unknown), default=0)

    def _entered(self) -> int:
        """Seconds that had entered a window before the next one, as the newest state of its shot says."""
        shot = self.shot
        for stage in reversed(self.states.stages()):
            state = self.states.read(stage)
            if state and state.shot == shot.start:
                return shot.until(stage + 1)
        return 0

    def length_asked(self, second: int) -> int | None:
        """How long the video was to be when a second started (None: endless), which its caption says to the model.

        Made again from an earlier state, it is asked for as it was then.
        """
        for entry in self.history:
            if entry["what"] == "extended" and second < entry.get("started", 0):
                length: int | None = entry["seconds"]
                return length
        return self.request.seconds

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

        self.lock()
        finished = self.chunks
        if index < finished:
            return False
        if index > finished:
            raise ValueError(f"second {index} comes before second {finished} is written")
        video = self._open_video()
        encoded = fragments.encode_chunk(frames, video.fps, video.crf)
        placed = fragments.place(encoded, index, video.frames)
        kept = self.seconds.write(index, latents, frames, placed, self._encoder())
        if self.chunks > index + 1:  # it filled a gap: what was behind it counts again
            self._close_video()
            self._open_video()
            return True
        try:
            video.append_fragment(kept)
        except OutputError:
            self._close_video()  # the second is kept; the video is put together anew when there is room
            raise
        return True

    def parameters(self) -> bytes:
        """The parameter sets that the finished seconds were encoded with; without any, those of this encoder.

        Raises:
            OutputError: they differ among the seconds.
        """
        from magi_lite.video import fragments

        recorded = [self.seconds.parameters(index) for index in range(self.chunks)]
        found = {known for known in recorded if known is not None}
        if None in recorded:  # an earlier version's, which used one encoder and kept its parameters in the video
            try:
                found.add(fragments.parameter_sets(fragments.scan(self.video).init))
            except (OSError, ValueError):
                found.add(self._unrecorded(recorded.index(None)))
        if len(found) > 1 or b"" in found:
            raise OutputError(
                f"The seconds of {self.name} were encoded by other versions of the video encoder; resume the run to "
                "encode them alike."
            )
        return found.pop() if found else self._encoder()

    def _unrecorded(self, index: int) -> bytes:
        """What a second's fragment can be decoded with where nothing says so: ours, or none (empty)."""
        from magi_lite.video import fragments

        request = self.request
        ours = fragments.encode_init((request.width, request.height), FPS, request.crf, None)
        return self._encoder() if fragments.decodes(ours, self.seconds.read_fragment(index)) else b""

    def _encoder(self) -> bytes:
        """The parameter sets of what is encoded now."""
        from magi_lite.video import fragments

        request = self.request
        return fragments.parameter_sets(fragments.encode_init((request.width, request.height), FPS, request.crf, None))

    def free_frames(self, appending: bool) -> str:
        """Take frames out that cannot stand in one video, because another version of the encoder made them.

        Their latents stay, from which they are decoded again.

        Args:
            appending: whether seconds of this encoder will follow; else all may be of another one.

        Returns:
            What the user should know of it, in a sentence; empty where nothing was taken out.

        Raises:
            OutputError: the disk refuses.
        """
        from magi_lite.video import fragments

        self.lock()
        ours = self._encoder()
        try:
            in_video = fragments.parameter_sets(fragments.scan(self.video).init)
        except (OSError, ValueError):
            in_video = b""
        made = [self.seconds.parameters(n) or in_video or self._unrecorded(n) for n in range(self.chunks)]
        foreign = [index for index, parameters in enumerate(made) if parameters != ours]
        if not foreign or (not appending and len(set(made)) == 1 and b"" not in made):
            return ""
        self._close_video()
        for path in [*(self.seconds.path(index, FRAGMENT) for index in foreign), self.video]:
            move_aside(path)
        which = f"second {foreign[0]}" if len(foreign) == 1 else f"seconds {foreign[0]} to {foreign[-1]}"
        sentence = (
            f"The frames of {which} were encoded by another version of the video encoder; they are encoded again from "
            "their latents, and the old ones are kept in the folder damaged."
        )
        self.log(sentence)
        return sentence

    def save_state(self, stage: int, state: StateLike) -> None:
        """Store the sampler's state after stage `stage` (from 0).

        Raises:
            OutputError: the disk refuses.
        """
        self.lock()
        self.states.save(stage, state)

    def prune_states(self, keep: int) -> None:
        """Drop all but the newest `keep` states: an endless run need not remember every second."""
        self.lock()
        self.states.prune(keep)

    def edit_timeline(self, timeline: Timeline, from_chunk: int) -> None:
        """From second `from_chunk` on `timeline` holds; the prompts of earlier seconds stay on record."""
        self.lock()
        edited = self.adopt(splice(self.request.timeline, from_chunk, timeline))
        self._change("timeline", from_chunk, replace(self.request, timeline=edited))

    def adopt(self, timeline: Timeline) -> Timeline:
        """The timeline with the run's own copies in the place of its blocks' pictures; they are made where missing.

        Raises:
            OutputError: the disk refuses.
            MediaError: a picture cannot be read.
        """
        self.lock()
        with output_errors(self.folder):
            return adopt_pictures(timeline, self.folder / "inputs", self.folder / "inputs")

    def run_as(self, request: GenerationRequest) -> None:
        """From now on it runs with the placement, precision and `out` file of `request`; what is kept stays."""
        self.lock()
        changed = replace(self.request, **{name: getattr(request, name) for name in CHANGEABLE})
        if changed != self.request:
            with_places = replace(changed, out=self.request.out, models_folder=self.request.models_folder)
            self.moved = with_places != self.request
            self._change("moved" if self.moved else "delivered", self.chunks, changed)

    def check_autoencoder(self, identity: str) -> None:
        """Refuse an autoencoder that cannot read the finished seconds' latents, for it did not make them.

        Raises:
            InputError: it is another one.
        """
        known = self._record.autoencoder
        other = known != identity if known else self.request.model == DEMO  # which is no more what it was in 0.1.0
        if self.chunks and other:
            raise InputError(
                f"{self.name} was made with another autoencoder than the one of {self.request.model} that is here, "
                "which cannot read its seconds; export its MP4 as it is, or make the video anew with its settings."
            )

    def made_with(self, identity: str) -> None:
        """Put the autoencoder that makes its latents on record, if it may."""
        self.check_autoencoder(identity)
        if self._record.autoencoder != identity:
            self.lock()
            with self._recording:
                self._record = replace(self._record, autoencoder=identity)
                write_record(self.folder, self._record)

    def set_status(self, status: Status, message: str = "") -> None:
        """Record how the run stands; when it ends, the settings inside the video are brought up to date."""
        self.lock()
        with self._recording:
            self._record = replace(self._record, status=status, message=message)
            write_record(self.folder, self._record)
        if status != "running":
            self._close_video()
            self._open_video()

    def log(self, text: str) -> None:
        """Add a line to log.txt."""
        path = self.folder / "log.txt"
        with output_errors(path), os.fdopen(open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as file:
            file.write(f"{now()} {' '.join(text.split())}\n".encode("utf-8", "replace"))

    # --- another ending ----------------------------------------------------------------------------------------------

    def extend(self, seconds: int | None) -> None:
        """Ask for `seconds` more than asked for, or than an endless run has finished; None: go on without end.

        States that ran out at the old end, or had begun seconds behind the new one, are of no use any more and go.

        Raises:
            InputError: not at least 1.
        """
        if seconds is not None and seconds < 1:
            raise InputError(f"A video cannot be extended by {count(seconds, 'second')}; ask for at least 1.")
        self.lock()
        old = self.request.seconds
        end = self.chunks if old is None else old
        new = None if seconds is None else end + seconds
        started = max(self.chunks, self._entered())
        more = {"started": started, "seconds": old}
        self._change("extended", end, replace(self.request, seconds=new), "stopped", more)
        last = new if old is None else old
        if last is not None:
            self.states.drop([stage for stage in self.states.stages() if stage >= last])

    def branch(self, from_chunk: int, request: GenerationRequest | None = None) -> Project:
        """A new version beside this run with the seconds before `from_chunk`, bit for bit; this one stays as it is.

        Raises:
            InputError: there is no such second, one is damaged, or `request` changes what kept seconds depend on.
            OutputError: the folder cannot be written.
        """
        from magi_lite.video.fragments import scan

        self.check_whole(from_chunk)
        changed = self._changed(from_chunk, request)

        def fill(folder: Path) -> None:
            self.seconds.share(folder / "chunks", from_chunk)
            self.states.share(folder / "states", from_chunk)
            with contextlib.suppress(OSError, ValueError):  # what the fragments are decoded with, see `parameters`
                (folder / self.video.name).write_bytes(scan(self.video).init)
            prefix = self.folder / "inputs" / PREFIX_NAME
            if _sources(changed) == _sources(self.request) and prefix.is_file():
                share(prefix, folder / "inputs" / PREFIX_NAME)
            if _frame(changed) == _frame(self.request):
                for latents in (self.folder / "inputs").glob(PICTURE_NAME.format("*")):
                    share(latents, folder / "inputs" / latents.name)

        record = new_record(changed, {"project": self.name, "from": from_chunk})
        record = replace(record, autoencoder=self._record.autoencoder, origin=self._record.origin)
        record = replace(record, asked=self._record.asked).asking(from_chunk, self.request)
        record = replace(record, made=self._record.made[:from_chunk])
        return Project._new(self.folder.parent, record, fill)

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

    def owns(self, path: Path) -> bool:
        """Whether a file of that path would stand in the place of one that the run needs."""
        path, folder = path.resolve(), self.folder.resolve()
        if not path.is_relative_to(folder):
            return folder.is_relative_to(path)
        inner = path.relative_to(folder).parts
        return not inner or inner[0].lower() in _OWN_FILES or inner[0].startswith(".")

    def delete(self) -> None:
        """Remove the folder and all in it.

        Raises:
            OutputError: a process is writing it, or there is no permission.
        """
        if self._lock is None:
            self._acquire()
        trash = self.folder.with_name(f".trash-{self.name}-{os.getpid()}")
        if os.name == "nt":  # which renames no folder with an open file; elsewhere nobody gets in between
            self.close()
        try:
            with output_errors(self.folder):
                self.folder.rename(trash)
        finally:
            self.close()
        remove_folder(trash)

    # --- inside ------------------------------------------------------------------------------------------------------

    @classmethod
    def _new(cls, root: Path, record: Record, fill: Callable[[Path], None]) -> Project:
        """Make a folder with its video, and open it, locked."""

        def fill_and_assemble(folder: Path) -> None:
            fill(folder)
            made = cls(folder, record)
            made._open_video()
            made._close_video()

        project = cls.open(make_folder(root, record, fill_and_assemble))
        try:
            project.lock()
            project._open_video()
        except BaseException:
            project.close()
            raise
        return project

    @property
    def _pasted(self) -> set[int]:
        """Seconds that were emitted otherwise than later ones see them."""
        request = self.request
        if request.image_prefix != "published":
            return set()
        shots = request.timeline.shots(request.seconds)
        return {shot.start for shot in shots if shot.image or (not shot.start and request.image)}

    def _acquire(self) -> None:
        with storage_errors():
            self._lock = FileLock(self.folder / LOCK_NAME, self.folder.name)
        self._record = read_record(self.folder)

    def _change(
        self,
        what: str,
        chunk: int,
        request: GenerationRequest,
        status: Status | None = None,
        more: dict[str, Any] | None = None,
    ) -> None:
        """Put another request on record, with an entry in the history that holds `more` besides."""
        ended = {"status": status, "message": ""} if status else {}
        with self._recording:
            old, first = self.request, more["started"] if more else max(chunk, self.started)
            changed = self._record.then(what, chunk, more, request=request, **ended)
            if changed.origin and not chunk and not self.seconds.end():
                changed = replace(changed, origin=origin_of(request))
            self._record = changed.asking(max(first, self.seconds.end()), old)
            write_record(self.folder, self._record)

    def _changed(self, chunk: int, request: GenerationRequest | None) -> GenerationRequest:
        """`request` with the prompts before second `chunk` left on record."""
        mine = self.request
        if not 0 <= chunk <= self.chunks:
            held = count(self.chunks, "finished second")
            raise InputError(f"{self.name} cannot go on from second {chunk}; it has {held}.")
        if request is None:
            return mine
        if request.seconds is not None and request.seconds < chunk:
            raise InputError(
                f"{count(chunk, 'second')} {'is' if chunk == 1 else 'are'} kept, more than the {request.seconds} asked "
                f"for; ask for {chunk + 1} or more."
            )
        for name in FIXED:
            old, new = getattr(mine, name), getattr(request, name)
            unknown = name == "source_sha256" and None in (old, new)
            if chunk and old != new and not unknown:
                raise InputError(f"The seconds to keep have {name} {old}, not {new}; start a new video to change that.")
        return replace(request, timeline=splice(mine.timeline, chunk, request.timeline))

    def _list(self, second: int, made: str) -> None:
        """Put a second that is being made on record."""
        with self._recording:
            if self._record.listed(second) != made:
                self._record = self._record.making(second, made)
                write_record(self.folder, self._record)

    def _make_folders(self) -> None:
        """Those of the run's folders that are missing: what they held is restored or made again."""
        for path in (self.folder / part for part in PARTS):
            if not path.is_dir():
                move_aside(path)
                with output_errors(path):
                    path.mkdir()

    def _remove_temporary_files(self) -> None:
        with output_errors(self.folder):
            for path in [*self.folder.glob(".*.tmp*"), *self.folder.glob("*/.*.tmp*")]:
                if path.is_symlink() or not path.is_dir():  # a folder is none of ours
                    path.unlink(missing_ok=True)

    def _open_video(self) -> VideoWriter:
        """The writer of video.mp4, which holds exactly the finished seconds and the present settings."""
        from magi_lite.video.writer import VideoWriter, assemble

        if self._writer is None:
            request = self.request
            settings = request_to_json(request, paths=False) if request.embed_settings else None
            size, crf = (request.width, request.height), request.crf
            parameters = self.parameters()
            assemble(self.video, self.seconds.fragments(), size, FPS, crf, settings, parameters)
            self._writer = VideoWriter(self.video, size, FPS, crf, settings, resume=True, parameters=parameters)
        return self._writer

    def _close_video(self) -> None:
        if self._writer:
            self._writer.close()
            self._writer = None


def _sources(request: GenerationRequest) -> tuple[object, ...]:
    """What the latents of a request's prefix depend on: its picture or clip, and how that fills the frame."""
    names = tuple(None if path is None else path.name for path in (request.image, request.video))
    return (*names, request.source_sha256, *_frame(request))


def _frame(request: GenerationRequest) -> tuple[object, ...]:
    """What the latents of any picture depend on besides the picture."""
    return request.width, request.height, request.fit, request.model
