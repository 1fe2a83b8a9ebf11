"""One entry of the queue, and the row that keeps it."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from magi_lite.request.json import request_from_json, request_to_json
from magi_lite.request.request import GenerationRequest
from quant.storage.files import parse_json

State = Literal["waiting", "running", "paused", "finished", "stopped", "failed", "interrupted"]
RESUMABLE: tuple[State, ...] = ("paused", "stopped", "interrupted", "failed")
LONGEST_ERROR = 4000
"""Characters of an error that are kept."""


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
    card: str = ""
    """The card that it is tied to; empty: whichever is free."""
    deaths: int = 0
    """How often in a row its worker died without another second being finished."""

    @property
    def title(self) -> str:
        """A short name: the beginning of the first prompt."""
        timeline = self.request.timeline
        prompt = timeline.global_prompt or next((s.prompt for s in timeline.segments if s.prompt), "")
        return " ".join(prompt.split())[:80] or (self.request.image or self.request.video or Path("Untitled")).name


def to_row(job: Job) -> dict[str, Any]:
    """A job as the queue's file keeps it."""
    row = {name: getattr(job, name) for name in Job.__dataclass_fields__}
    row["request"] = json.dumps(request_to_json(job.request))
    for name in ("project", "source", "video"):
        row[name] = str(row[name]) if row[name] else None
    return row


def from_row(row: dict[str, Any]) -> Job:
    """The job of a row that `to_row` made.

    Raises:
        MagiLiteError, ValueError, TypeError, KeyError, OverflowError: it is damaged.
    """
    values = {name: row[name] for name in Job.__dataclass_fields__ if name in row}
    values["request"] = request_from_json(parse_json(row["request"]))
    if values["state"] not in get_args(State):
        raise ValueError(f"a job cannot be {values['state']!r}")
    for name in ("id", "error", "card"):
        if not isinstance(values.get(name, ""), str):
            raise ValueError(f"{name} is no text")
    values["error"] = values["error"][:LONGEST_ERROR]
    for name in ("project", "source", "video"):
        values[name] = _path(row[name]) if row[name] else None
    for name in ("position", "created", "started", "ended"):
        values[name] = None if values[name] is None and name in ("started", "ended") else float(values[name])
        if values[name] is not None and not math.isfinite(values[name]):
            raise ValueError(f"{name} is {values[name]}")
    for name in ("from_chunk", "done", "deaths"):
        if name in values:
            values[name] = None if values[name] is None and name == "from_chunk" else _count(values[name], name)
    return Job(**values)


def _path(text: str) -> Path:
    """Raises ValueError, TypeError for what no file system can name."""
    path = Path(text)
    if "\0" in text or len(text) > 4096 or any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise ValueError("a path that cannot be one")
    return path


def _count(value: Any, name: str) -> int:
    number = int(value)
    if not 0 <= number < 1 << 31:
        raise ValueError(f"{name} is {number}")
    return number
