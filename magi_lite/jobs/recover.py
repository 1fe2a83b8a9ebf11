"""The queue as the disk knows it, for when its own file is lost: what runs have left unfinished."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from magi_lite.errors import MagiLiteError
from magi_lite.jobs.job import RESUMABLE, Job, State
from magi_lite.project import Project


def unfinished(folder: Path) -> Iterator[Job]:
    """A job for every run in a folder that could go on, the oldest first."""
    found = []
    for path in sorted(folder.glob("[!.]*/project.json")):  # a hidden folder is in the making, or being deleted
        with contextlib.suppress(MagiLiteError, OSError):
            found.append(Project.open(path.parent))
    for place, project in enumerate(sorted(found, key=lambda one: one.created)):
        state = "interrupted" if project.status == "running" else project.status
        if state in RESUMABLE:
            yield Job(
                uuid.uuid4().hex[:12],
                project.request,
                state=cast(State, state),
                position=float(place),
                project=project.folder,
                source=project.folder,
                error="The queue's file was damaged; this video was found in its folder.",
                done=project.chunks,
                video=project.video if project.chunks else None,
            )
