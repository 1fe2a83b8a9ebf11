"""One entry of the queue, and the row that keeps it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from magi_lite.request.json import request_from_json, request_to_json
from magi_lite.request.request import GenerationRequest

State = Literal["waiting", "running", "paused", "finished", "stopped", "failed", "interrupted"]
RESUMABLE: tuple[State, ...] = ("paused", "stopped", "interrupted", "failed")


@dataclass(frozen=True)
class Job:
    """One entry of the queue.

    `project` is the folder that the run writes. `source` is the folder that it starts from: with `from_chunk` a new
    version branches off at that second, without it the same project goes on (resume, extend).
    """

    id: str
    request: GenerationRequest
    state: State = "waiting"
    position: float = 0.0
    project: Path | None = None
    source: Path | None = None
    from_chunk: int | None = None
    error: str = ""
    done: int = 0
    video: Path | None = None
    created: float = 0.0
    started: float | None = None
    ended: float | None = None

    @property
    def title(self) -> str:
        """A short name: the first words that the video is told."""
        timeline = self.request.timeline
        words = timeline.global_prompt or next((s.prompt for s in timeline.segments if s.prompt), "")
        return " ".join(words.split())[:80] or (self.request.image or self.request.video or Path("Untitled")).name


def to_row(job: Job) -> dict[str, Any]:
    """A job as the queue's file keeps it."""
    row = {name: getattr(job, name) for name in Job.__dataclass_fields__}
    row["request"] = json.dumps(request_to_json(job.request))
    for name in ("project", "source", "video"):
        row[name] = str(row[name]) if row[name] else None
    return row


def from_row(row: dict[str, Any]) -> Job:
    """The job of a row that `to_row` made."""
    values = dict(row)
    values["request"] = request_from_json(json.loads(row["request"]))
    for name in ("project", "source", "video"):
        values[name] = Path(row[name]) if row[name] else None
    return Job(**values)
