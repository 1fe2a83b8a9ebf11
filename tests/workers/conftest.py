"""A queue over real worker processes and the demo model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from magi_lite.jobs import JobQueue
from magi_lite.project import Project
from magi_lite.request.build import with_defaults
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline import Timeline
from magi_lite.workers.fleet import Fleet
from magi_lite.workers.worker import Settings
from tests.jobs.test_queue import eventually

PATIENCE = 300.0
"""Seconds for a run on a busy machine."""


def request(
    prompt: str = "a large red ball moves right", seconds: int | None = 3, **fields: object
) -> GenerationRequest:
    """The demo model at its smallest."""
    plain = GenerationRequest(Timeline((), prompt), seconds=seconds, preset="demo", quality="draft", seed=5)
    return with_defaults(plain, {"model": "demo", "width": 32, "height": 32} | fields)


class Studio:
    """A queue with its workers; made again on the same folder it is the app after a restart."""

    def __init__(self, folder: Path, cards: tuple[int, ...] = (), **settings: float) -> None:
        self.projects = folder / "outputs"
        self.fleet = Fleet(Settings(self.projects, threads=1, **settings), cards)
        self.queue = JobQueue(self.projects / ".queue", self.fleet.runners)
        self.queue.start()

    def pid(self, card: str = "") -> int | None:
        return self.fleet.workers[card].pid

    def latents(self, job: str) -> list[bytes]:
        """The finished seconds of a job, bit for bit."""
        project = Project.open(self.queue.get(job).project or "")
        return [project.read_latents(second).numpy().tobytes() for second in range(project.chunks)]

    def close(self) -> None:
        self.queue.close(60)
        self.fleet.close()


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Callable[..., Studio]]:
    """Makes studios, and sees to it that none leaves a process behind."""
    made: list[Studio] = []

    def make(**options: object) -> Studio:
        made.append(Studio(tmp_path, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()
    eventually(lambda: not workers_left(), PATIENCE)


def workers_left() -> list[psutil.Process]:
    """Worker processes that were started here and have not ended."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("magi_lite.workers" in part for part in child.cmdline()):
                found.append(child)
    return found
