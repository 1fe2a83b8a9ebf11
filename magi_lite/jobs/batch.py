"""Many named videos worked off by a queue of their own, which may be interrupted and started again.

The queue's file lies beside the videos and knows which job is which video's. A video whose request is still the same is
gone on with, or left alone where it is finished; one whose worker died is tried again until the queue sets it aside.
Should the queue's file be damaged, the runs' own folders tell which of them make which video.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from magi_lite import events
from magi_lite.control import RunControl
from magi_lite.errors import Interrupted, MagiLiteError, OutputError
from magi_lite.jobs.job import RESUMABLE, Job
from magi_lite.jobs.live import Live
from magi_lite.jobs.queue import FILE, JobQueue, Run, alone_in
from magi_lite.jobs.recover import runs
from magi_lite.project import Project
from magi_lite.request.request import GenerationRequest

QUEUE = ".queue"
"""The queue's folder, in that of the videos."""
NAMES = "videos"
"""The queue's setting that holds the job of every video, by name."""


@dataclass(frozen=True)
class Wanted:
    """A video of a batch.

    Args:
        request: what decides it; its `out` is not used.
        any_seed: whether an earlier job with another seed makes the same video.
    """

    request: GenerationRequest
    any_seed: bool = False

    def is_made_by(self, job: Job) -> bool:
        """Whether a job makes this video."""
        request = replace(self.request, seed=job.request.seed) if self.any_seed else self.request
        return _by_content(job.request) == _by_content(request)


class Batch:
    """Videos in a folder, each called after its name.

    Args:
        folder: of the videos; made if missing.
        runners: what makes a job's events, by place.
        wanted: the videos by name.
        projects: where the runs are kept.
        overwrite: let a video replace a file of its name that this batch has not made.

    Attributes:
        errors: why a video failed, by name.

    Raises:
        OutputError: the folder cannot be used, or another process works there.
    """

    def __init__(
        self,
        folder: Path,
        runners: Mapping[str, Run],
        wanted: Mapping[str, Wanted],
        projects: Path,
        *,
        overwrite: bool = False,
    ) -> None:
        self.folder, self._overwrite = folder, overwrite
        self.errors: dict[str, MagiLiteError] = {}
        self._jobs: dict[str, str] = {}
        self._alone = alone_in(folder / QUEUE)

        def is_wanted(job: Job) -> bool:
            return any(video.is_made_by(job) for video in wanted.values())

        is_new = not (folder / QUEUE / FILE).exists()  # else what is there of other folders' runs is not of this batch
        self.queue = JobQueue(
            folder / QUEUE,
            {place: self._delivering(one) for place, one in runners.items()},
            tuple if is_new else lambda: (job for job in runs(projects) if is_wanted(job)),
            kept=None,
        )
        known = {name: job for name, job in self.queue.setting(NAMES, {}).items() if isinstance(job, str)}
        there = {job.id: job for job in self.queue.jobs()}
        nameless = [job for job in there.values() if job.id not in known.values()]
        begun = []
        for name, video in wanted.items():
            candidates = [there[known[name]]] if known.get(name) in there else nameless
            before = next((job for job in candidates if video.is_made_by(job) and self._is_good(name, job)), None)
            if before in nameless:
                nameless.remove(before)
            if not self._may_write(name, before):
                self.errors[name] = OutputError(f"{self.path(name)} exists; choose another folder, or add --overwrite.")
                continue
            if before is not None and before.state in RESUMABLE:
                begun.append(before.id)
            self._jobs[name] = known[name] = before.id if before else self.queue.add(video.request).id
        for identity in reversed(begun):  # each is put in front of all others
            self.queue.resume(identity)
        self.queue.set_setting(NAMES, known)
        self._names = {job: name for name, job in self._jobs.items()}
        for job in self.queue.jobs():
            mine = self._names.get(job.id)
            if mine is None and job.state == "waiting":  # of an earlier batch, and not wanted now
                self.queue.delete(job.id)
            elif mine is not None and job.state == "finished" and not self.path(mine).exists():
                self._deliver(mine, job.project)

    def close(self, timeout: float) -> None:
        """Save what runs, and let others work here."""
        self.queue.close(timeout)
        self._alone.release()

    def path(self, name: str) -> Path:
        """Where a video goes."""
        return self.folder / f"{name}.mp4"

    def look(self) -> list[tuple[str, Job, Live | None]]:
        """Every video's name, its job, and how it runs or ran; tries again what lost its worker."""
        found = []
        for name, identity in self._jobs.items():
            job = self.queue.get(identity)
            if job.state == "interrupted":
                job = self.queue.resume(identity)
            elif job.state == "failed":
                self.errors.setdefault(name, MagiLiteError(job.error))
            found.append((name, job, self.queue.live(identity)))
        return found

    def _is_good(self, name: str, job: Job) -> bool:
        """Whether an earlier job can go on, or has left its video or what it can be delivered from."""
        if job.state == "finished":
            return self.path(name).exists() or _status(job) == "finished"
        return job.project is None or bool(_status(job))

    def _may_write(self, name: str, before: Job | None) -> bool:
        """Whether there is no file, or this batch has made it: it is written when its run is finished, not before."""
        if self._overwrite or not self.path(name).exists():
            return True
        return before is not None and (before.state == "finished" or _status(before) == "finished")

    def _deliver(self, name: str, folder: Path | None) -> None:
        """Write a finished run's video into the folder."""
        if folder is not None:
            Project.open(folder).export(self.path(name))

    def _delivering(self, run: Run) -> Run:
        """A runner that delivers what is finished, and keeps errors with their kind."""

        def follow(job: Job, control: RunControl) -> Iterator[events.Event]:
            name = self._names[job.id]
            self.errors.pop(name, None)
            try:
                for event in run(job, control):
                    if isinstance(event, events.Finished):
                        self._deliver(name, event.project)
                    yield event
            except Interrupted:  # it is tried again
                raise
            except MagiLiteError as error:
                self.errors[name] = error
                raise

        return follow


def _by_content(request: GenerationRequest) -> GenerationRequest:
    """A request whose picture or clip counts by what is in it: a run keeps a copy of its own."""
    if request.source_sha256 is None:
        return request
    return replace(request, image=request.image and Path("image"), video=request.video and Path("video"))


def _status(job: Job) -> str:
    """Of the run in a job's folder; empty where there is none."""
    try:
        return Project.open(job.project).status if job.project else ""
    except MagiLiteError:
        return ""
