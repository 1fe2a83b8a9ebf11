"""The queue: jobs in order, handed to whichever card is free.

Jobs are rows in a file. Each card has a thread that takes the first waiting job, follows its run, and goes on whatever
happens to it. What was running when the app ended comes back as "interrupted", with its project, so that it can be
resumed to the same bits; so does a job whose worker died. What makes a job's events is given in, so the queue knows
nothing of models or processes.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from magi_lite import events
from magi_lite.control import RunControl
from magi_lite.errors import InputError, Interrupted, MagiLiteError, OutputError
from magi_lite.files import output_errors, storage_errors
from magi_lite.jobs.job import RESUMABLE, Job, State, from_row, to_row
from magi_lite.jobs.live import Live
from magi_lite.jobs.store import Store
from magi_lite.request.checks import check_prompts
from magi_lite.request.request import GenerationRequest
from magi_lite.sentences import count, shortened
from magi_lite.timeline import Timeline
from quant.errors import LockedError
from quant.storage.lock import FileLock

log = logging.getLogger(__name__)

FILE = "queue.sqlite"
"""The queue's file, in its folder."""
KEPT_LIVE = 4
"""Jobs whose notices and last preview stay in memory."""
KEPT_ROWS = 200
"""Ended jobs that stay listed; their videos stay in the gallery for good."""


_UNREADABLE = (
    MagiLiteError, OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError
)  # fmt: skip
"""What a damaged row raises."""
SET_ASIDE = 2
"""Deaths of its worker in a row, no second finished in between, after which a job counts as failed."""
Run = Callable[[Job, RunControl], Iterator[events.Event]]


@dataclass
class Lane:
    """A card, what runs on it, and its thread."""

    name: str
    run: Run
    job: str | None = None
    control: RunControl | None = None
    thread: threading.Thread | None = None


class JobQueue:
    """Jobs in order, and the threads that work them off.

    Args:
        folder: where the queue's file lives.
        run: makes one job's events, raises on failure; several by the names of their cards.
        recover: unfinished jobs as the disk knows them, to start with where the queue's file was damaged or is gone.
        kept: ended jobs that stay listed; None: all.

    Raises:
        OutputError: the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        run: Run | Mapping[str, Run],
        recover: Callable[[], Iterable[Job]] = tuple,
        kept: int | None = KEPT_ROWS,
    ) -> None:
        self._kept = kept
        self._store = Store(folder / FILE)
        self._lanes = [Lane(name, one) for name, one in (run if isinstance(run, Mapping) else {"": run}).items()]
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._jobs: dict[str, Job] = dict(self._readable(folder.parent))
        self._live: OrderedDict[str, Live] = OrderedDict()
        moments = (moment for job in self._jobs.values() for moment in (job.created, job.started, job.ended))
        self._epoch = max([time.time(), *filter(None, moments)]) - time.monotonic()
        self._closing = False
        self.version = 1
        for job in list(self._jobs.values()):
            if job.state == "running":
                why = "The app ended while this video was being made."
                self._put(replace(job, state="interrupted", error=why, ended=self._now()))
        self._found = ""
        if self._store.lost:
            known = {job.project for job in self._jobs.values()}
            found = [job for job in recover() if job.project not in known]
            for job in found:
                self._put(job)
            if self._store.damaged:
                self._found = (
                    f"The queue's file was damaged and is kept as {self._store.damaged.name}; what could be read of it "
                    f"is in the queue, with {count(len(found), 'video')} found in the projects' folder."
                )

    def _readable(self, projects: Path) -> Iterator[tuple[str, Job]]:
        """The jobs on disk; one that cannot be read does not keep the others from being worked off."""
        unreadable = []
        for row in self._store.rows():
            try:
                job = _where_it_lies(from_row(row), projects)
            except _UNREADABLE as error:
                log.warning("a job of the queue cannot be read and is left out: %s", error)
                unreadable.append(row["id"])
            else:
                yield job.id, job
        if unreadable:
            self._store.set_aside(unreadable)

    # --- the cards' threads

    def start(self) -> None:
        """Start working the queue off."""
        for lane in self._lanes:
            lane.thread = threading.Thread(target=self._work, args=(lane,), name=f"magi-jobs-{lane.name}", daemon=True)
            lane.thread.start()
        threading.Thread(target=self._keep_saved, name="magi-jobs-saver", daemon=True).start()

    def close(self, timeout: float = 30.0) -> None:
        """Pause what runs, wait for it, and end the threads."""
        with self._wake:
            self._closing = True
            for lane in self._lanes:
                if lane.control:
                    lane.control.pause()
            self._wake.notify_all()
        until = time.monotonic() + timeout
        for lane in self._lanes:
            if lane.thread:
                lane.thread.join(max(0.0, until - time.monotonic()))
        if not any(lane.thread and lane.thread.is_alive() for lane in self._lanes):
            self._store.close()

    def _keep_saved(self) -> None:
        """Write what could not be written before."""
        while not self._closing:
            self._store.flush()
            time.sleep(1.0)

    def _work(self, lane: Lane) -> None:
        while True:
            with self._wake:
                if self._closing:
                    return
                job = None if self.paused else self._next(lane)
                if job is None:
                    self._wake.wait(1.0)
                    continue
                control, live = RunControl(), self._new_live(job)
                lane.control, lane.job = control, job.id
                job = self._put(replace(job, state="running", started=self._now(), ended=None, error=""))
            try:
                self._follow(lane, job, control, live)
            except Interrupted as error:
                self._died(job.id, str(error))
            except MagiLiteError as error:
                self._end(job.id, "failed", str(error))
            except Exception as error:
                log.exception("Job %s failed", job.id)
                what = f"{type(error).__name__}: {error}"
                self._end(job.id, "failed", f"The program made a mistake ({what}); the console has the details.")
            finally:
                with self._wake:
                    lane.control = lane.job = None
                    self._wake.notify_all()

    def _follow(self, lane: Lane, job: Job, control: RunControl, live: Live) -> None:
        for event in lane.run(job, control):
            live.take(event)
            match event:
                case events.Opened(project, video):
                    self._change(job.id, project=project, video=video)
                case events.ChunkFinished():
                    self._change(job.id, done=live.done, deaths=0)
                case events.Finished(video, project, _, _):
                    self._change(job.id, video=self.get(job.id).video or video, project=project)
                    self._end(job.id, "finished")
                case events.Stopped(video, project, _, reason):
                    self._change(job.id, video=video and (self.get(job.id).video or video), project=project)
                    self._end(job.id, "paused" if reason == "paused" else "stopped")
        if self.get(job.id).state == "running":
            self._end(job.id, "failed", "The run ended without a result; try it again.")

    def _died(self, identity: str, why: str) -> None:
        """The worker of a job died: the job can be resumed; one that does this again and again is set aside."""
        with self._lock:
            job = self._jobs.get(identity)
        if job is None or job.state != "running":  # its result had come already, and it may have been deleted
            return
        done = max(job.done, _seconds_on_disk(job))
        deaths = job.deaths + 1 if done == job.done else 1  # a second whose event was lost is one all the same
        self._change(identity, deaths=deaths, done=done)
        if deaths >= SET_ASIDE:
            self._end(identity, "failed", f"It ended its worker {deaths} times and is set aside. {why}")
        else:
            self._end(identity, "interrupted", why)

    def _next(self, lane: Lane) -> Job | None:
        names = {lane.name for lane in self._lanes}
        followed = {lane.job for lane in self._lanes}  # one resumed so soon that its last run still ends
        waiting = (job for job in self.jobs() if job.state == "waiting" and job.id not in followed)
        return next((job for job in waiting if job.card == lane.name or job.card not in names or not job.card), None)

    def _new_live(self, job: Job) -> Live:
        self._live.pop(job.id, None)
        live = self._live[job.id] = Live(window=job.request.window, seconds=job.request.seconds, done=job.done)
        while len(self._live) > KEPT_LIVE + len(self._lanes):
            self._live.popitem(last=False)
        return live

    def _end(self, identity: str, state: State, error: str = "") -> None:
        self._change(identity, state=state, error=error, ended=self._now())

    def _now(self) -> float:
        """The time for jobs, which is compared: never before one that a job has, whatever is done to the clock."""
        return self._epoch + time.monotonic()

    # --- reading

    def jobs(self) -> list[Job]:
        """All jobs, in queue order."""
        with self._lock:
            return sorted(self._jobs.values(), key=lambda job: (job.position, job.created))

    def get(self, identity: str) -> Job:
        """One job.

        Raises:
            InputError: there is none with that id.
        """
        with self._lock:
            if identity not in self._jobs:
                raise InputError(f"There is no job {identity!r} in the queue; it may have been deleted.")
            return self._jobs[identity]

    @property
    def running(self) -> Job | None:
        """What is being made; the first of several."""
        return next(iter(self.running_jobs.values()), None)

    @property
    def running_jobs(self) -> dict[str, Job]:
        """What is being made, by card."""
        with self._lock:
            found = {lane.name: self._jobs.get(lane.job or "") for lane in self._lanes}
            return {name: job for name, job in found.items() if job is not None}

    @property
    def cards(self) -> list[str]:
        """The names of the cards that jobs can be tied to; none where there is but one."""
        return [lane.name for lane in self._lanes if lane.name]

    @property
    def trouble(self) -> str:
        """Why the queue is not saved just now, in one sentence; empty where it is."""
        return self._store.trouble

    @property
    def notice(self) -> str:
        """What became of a damaged file when the queue started, in one sentence; empty where all was well."""
        return self._found

    def live(self, identity: str) -> Live | None:
        """What the job looks like right now, if it ran since the start."""
        with self._lock:
            return self._live.get(identity)

    @property
    def paused(self) -> bool:
        """Whether the queue starts no further job."""
        return bool(self._store.setting("paused", False))

    def setting(self, name: str, default: Any = None) -> Any:
        """What is kept under a name; the default where there is nothing, or something of another kind than it."""
        value = self._store.setting(name, default)
        return value if default is None or isinstance(value, type(default)) else default

    def set_setting(self, name: str, value: Any) -> None:
        self._store.set_setting(name, value)

    # --- changing

    def add(
        self, request: GenerationRequest, *, source: Path | None = None, from_chunk: int | None = None, done: int = 0
    ) -> Job:
        """Put a request at the end of the queue."""
        with self._lock:
            last = max((job.position for job in self._jobs.values()), default=0.0)
            fresh = Job(
                uuid.uuid4().hex[:12], request, position=last + 1, source=source, from_chunk=from_chunk,
                done=from_chunk if from_chunk is not None else done, created=self._now(),
            )  # fmt: skip
            self._forget_oldest()
            return self._put(fresh)

    def resume(self, identity: str) -> Job:
        """Let a paused, stopped, interrupted or failed job go on from its last saved state, before all others.

        Raises:
            InputError: the job is not one that can go on.
        """
        with self._lock:
            job = self.get(identity)
            if job.state not in RESUMABLE:
                raise InputError(f"This video is {job.state}; only a paused, stopped or interrupted one goes on.")
            first = min(other.position for other in self._jobs.values())
            begun: dict[str, Any] = {"source": job.project, "from_chunk": None} if job.project else {}
            return self._put(replace(job, state="waiting", position=first - 1, **begun))

    def edit(self, identity: str, request: GenerationRequest) -> Job:
        """Give a waiting job another request.

        Raises:
            InputError: the job has begun.
        """
        with self._lock:
            job = self._waiting(identity, "edited")
            return self._put(replace(job, request=request))

    def tie(self, identity: str, card: str) -> Job:
        """Let a job that does not run be made on one card only; an empty name: on whichever is free.

        Raises:
            InputError: there is no such card, or the job runs or is finished.
        """
        with self._wake:
            job = self.get(identity)
            if card and card not in self.cards:
                raise InputError(f"There is no card {card!r} in use; choose one of {', '.join(self.cards) or 'none'}.")
            if job.state in ("running", "finished"):
                raise InputError(f"This video is {job.state}; only one that waits can be tied to a card.")
            return self._put(replace(job, card=card))

    def clone(self, identity: str, seed: int | None = None) -> Job:
        """Put the same request at the end of the queue once more, with another seed where one is given."""
        job = self.get(identity)
        source = job.source if job.from_chunk is not None else None
        request = replace(job.request, out=None, seed=job.request.seed if seed is None else seed)
        return self.add(request, source=source, from_chunk=job.from_chunk)

    def delete(self, identity: str) -> None:
        """Take a job off the list; a running one is stopped and kept.

        Raises:
            InputError: the job is running.
        """
        with self._lock:
            job = self.get(identity)
            if job.state == "running":
                raise InputError(f"{shortened(job.title)} is being made right now; stop it first.")
            self._store.delete(identity)
            del self._jobs[identity]
            self._live.pop(identity, None)
            self.version += 1

    def move(self, identity: str, place: int) -> None:
        """Put a waiting job at `place` among the waiting ones, 0 first.

        Raises:
            InputError: the job has begun.
        """
        with self._lock:
            job = self._waiting(identity, "moved")
            others = [other for other in self.jobs() if other.state == "waiting" and other.id != identity]
            place = max(0, min(place, len(others)))
            before = others[place - 1].position if place else None
            after = others[place].position if place < len(others) else None
            if before is not None and after is not None:
                position = (before + after) / 2
            elif before is not None:
                position = before + 1
            elif after is not None:
                position = after - 1
            else:
                return
            self._put(replace(job, position=position))

    def set_paused(self, paused: bool) -> None:
        """Start no further job, or go on; what runs is not touched."""
        with self._wake:
            self._store.set_setting("paused", paused)
            self.version += 1
            self._wake.notify_all()

    # --- steering what runs

    def stop(self, identity: str) -> None:
        """End a running job and keep its finished seconds; a waiting one is taken off the list."""
        with self._lock:
            control = self._control_of(identity)
            if control:
                control.stop()
            elif self.get(identity).state == "waiting":
                self.delete(identity)

    def pause(self, identity: str) -> None:
        """End a running job with its state saved, which frees the device.

        Raises:
            InputError: the job is not running.
        """
        self._running_control(identity).pause()

    def redirect(self, identity: str, timeline: Timeline) -> None:
        """Let all seconds of a running job that have not begun follow another timeline.

        Raises:
            InputError: the job is not running.
            InputError: the prompts cannot be read, or do not fit the video.
        """
        with self._lock:
            job = self.get(identity)
            check_prompts(replace(job.request, timeline=timeline))
            self._running_control(identity).redirect(timeline)
            self._put(replace(job, request=replace(job.request, timeline=timeline)))

    def _running_control(self, identity: str) -> RunControl:
        with self._lock:
            control = self._control_of(identity)
            if control is None:
                raise InputError("This video is not being made right now.")
            return control

    def _control_of(self, identity: str) -> RunControl | None:
        return next((lane.control for lane in self._lanes if lane.job == identity), None)

    def _waiting(self, identity: str, what: str) -> Job:
        job = self.get(identity)
        if job.state != "waiting":
            raise InputError(f"This video is {job.state}; only a waiting one can be {what}.")
        return job

    def _change(self, identity: str, **fields: Any) -> None:
        with self._lock:
            if identity in self._jobs:
                self._put(replace(self._jobs[identity], **fields))

    def _put(self, job: Job) -> Job:
        with self._wake:
            self._jobs[job.id] = job
            self._store.put(to_row(job))
            self.version += 1
            self._wake.notify_all()
            return job

    def _forget_oldest(self) -> None:
        if self._kept is None:
            return
        ended = [job for job in self._jobs.values() if job.state not in ("waiting", "running", "paused", "interrupted")]
        for job in sorted(ended, key=lambda job: job.created)[: max(0, len(ended) - self._kept)]:
            self.delete(job.id)


def alone_in(folder: Path) -> FileLock:
    """The right to work off the queue in a folder, until the process ends or it is released.

    Two programs on one queue would both take its jobs and overwrite each other's rows.

    Raises:
        OutputError: another process has it, or the folder cannot be made.
    """
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with storage_errors():
            return FileLock(folder / "queue.lock", str(folder))
    except OutputError as error:
        if not isinstance(error.__cause__, LockedError):
            raise
        holder = re.search(r"process \d+", str(error))
        raise OutputError(
            f"Another MAGI Lite ({holder[0] if holder else 'a process'}) works in {folder.parent}; end it, or choose "
            "another folder."
        ) from None


def _where_it_lies(job: Job, projects: Path) -> Job:
    """A job whose runs are where the projects are now, should they have been moved."""

    def now(run: Path | None) -> Path | None:
        if run is None or run.is_dir() or not (projects / run.name / "project.json").is_file():
            return run
        return projects / run.name

    project, video = now(job.project), job.video
    if project and video and project != job.project and video.parent == job.project:
        video = project / video.name
    return replace(job, project=project, source=now(job.source), video=video)


def _seconds_on_disk(job: Job) -> int:
    """Finished seconds of a job whose last events were lost."""
    from magi_lite.project import Project

    try:
        return Project.open(job.project).chunks if job.project else 0
    except (MagiLiteError, OSError):
        return 0
