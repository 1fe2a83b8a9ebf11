"""Events of a running generation: an ordered stream of frozen dataclasses.

`pipeline.generate` yields them; the command line, the job worker and the app read them. Arrays are numpy, so that no
front end needs torch. Times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

PhaseName = Literal["check", "text", "load", "encode", "denoise", "decode", "finish"]


@dataclass(frozen=True)
class PlanReady:
    """The plan that the run follows; `plan` is a `planner.Plan`."""

    plan: Any


@dataclass(frozen=True)
class Opened:
    """The run has its folder: `video` grows there second by second from now on. Comes before any ChunkFinished."""

    project: Path
    video: Path


@dataclass(frozen=True)
class PhaseStarted:
    """A phase of the run began; `detail` is a short sentence for the status line."""

    phase: PhaseName
    detail: str = ""


@dataclass(frozen=True)
class Progress:
    """One denoising step is done.

    `chunk` is the oldest unfinished new second (0-based), `chunks` how many new seconds were asked for (None: endless),
    `step`/`steps` the position inside that second, `fraction` of the whole run (None when endless), `eta_seconds` to
    the end (or to the next finished second when endless), `seconds_per_chunk` as measured so far, `started` the seconds
    that have begun and cannot change any more (None: not known).
    """

    chunk: int
    chunks: int | None
    step: int
    steps: int
    fraction: float | None
    eta_seconds: float | None
    seconds_per_chunk: float | None
    started: int | None = None


@dataclass(frozen=True)
class Preview:
    """A cheap picture of the second in the making: `image` is (H, W, 3) uint8, small."""

    chunk: int
    image: Any


@dataclass(frozen=True)
class MovingPreview:
    """Cheap moving pictures of all seconds in the making, `chunk` the first: `image` is (seconds, T, H, W, 3) uint8."""

    chunk: int
    image: Any


@dataclass(frozen=True)
class ChunkFinished:
    """A second is finished and on disk. `frames` is (T, H, W, 3) uint8; `seconds_taken` since the previous one."""

    chunk: int
    frames: Any
    seconds_taken: float


@dataclass(frozen=True)
class Notice:
    """Something the user should read: a smaller plan was taken, the demo weights are untrained, ..."""

    message: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True)
class Redirected:
    """A new timeline applies from new second `second` (0-based) on."""

    second: int


@dataclass(frozen=True)
class Finished:
    """All that was asked for is on disk."""

    video: Path
    project: Path | None
    chunks: int
    seconds_taken: float


@dataclass(frozen=True)
class Stopped:
    """The user stopped or paused the run; every finished second is on disk."""

    video: Path | None
    project: Path | None
    chunks: int
    reason: Literal["stopped", "paused"]


Event = (
    PlanReady
    | Opened
    | PhaseStarted
    | Progress
    | Preview
    | MovingPreview
    | ChunkFinished
    | Notice
    | Redirected
    | Finished
    | Stopped
)
