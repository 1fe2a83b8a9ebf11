"""Jobs as the disk knows them: of runs left unfinished, when the queue's file is lost, and of any run without a job."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

from magi_lite.errors import MagiLiteError
from magi_lite.jobs.job import RESUMABLE, Job, State
from magi_lite.project import Project
from magi_lite.project.folder import is_run, place_in_time, runs_in


def unfinished(folder: Path) -> Iterator[Job]:
    """A job for every run in a folder that could go on, the oldest first."""
    for job in runs(folder):
        if job.state in RESUMABLE:
            yield replace(job, error="This video was found unfinished in its folder.")


def runs(folder: Path) -> Iterator[Job]:
    """A job for every run in a folder, the oldest first."""
    found = []
    for path in (folder / name for name in runs_in(folder)):
        with contextlib.suppress(MagiLiteError, OSError):
            if is_run(path):
                found.append(Project.open(path))
    for place, project in enumerate(sorted(found, key=lambda one: place_in_time(one.name, one.created))):
        yield replace(job_of(project, uuid.uuid4().hex[:12]), position=float(place))


def job_of(project: Project, identity: str) -> Job:
    """The job that would have ended with the run as it is in its folder."""
    return Job(
        identity,
        project.request,
        state=cast(State, "interrupted" if project.status == "running" else project.status),
        project=project.folder,
        source=project.folder,
        done=project.chunks,
        video=project.video if project.chunks else None,
    )
