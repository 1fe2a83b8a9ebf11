"""A run as lists show it: read from its folder, with its title, and its settings as a table."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from magi_lite.project import Project
from magi_lite.project.folder import place_in_time
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline import Segment
from magi_lite.ui.labels import LABELS, Labels, read_labels


@dataclass(frozen=True)
class Entry:
    """A run as lists show it."""

    id: str
    created: str
    prompt: str
    """The beginning of its first prompt."""
    labels: Labels
    words: str
    """All that a search looks at, in lower case."""
    request: GenerationRequest
    status: str
    done: int
    bytes: int
    parent: str | None
    from_second: int | None

    @property
    def order(self) -> tuple[str, str]:
        """By which lists are sorted, the oldest first."""
        return place_in_time(self.id, self.created), self.id

    @property
    def title(self) -> str:
        return self.labels.name or self.prompt or self.id


def read_entry(folder: Path) -> Entry:
    """A run's folder, read.

    Raises:
        InputError: it is none, or damaged.
    """
    project = Project.open(folder)
    request, labels, parent = project.request, read_labels(folder), project.parent or {}
    prompts = [request.timeline.global_prompt, *(segment.prompt for segment in request.timeline.segments)]
    words = " ".join([labels.name, *prompts, str(request.seed), request.model, project.name]).lower()
    size = 0
    with contextlib.suppress(OSError):
        size = project.video.stat().st_size
    return Entry(
        project.name, project.created, title(request), labels, words, request, project.status, project.chunks, size,
        parent.get("project"), parent.get("from"),
    )  # fmt: skip


def title(request: GenerationRequest) -> str:
    """A short name: the beginning of the first prompt."""
    timeline = request.timeline
    prompt = timeline.global_prompt or next((s.prompt for s in timeline.segments if s.prompt), "")
    return " ".join(prompt.split())[:80]


def _marked(segment: Segment) -> str:
    """A block's prompt, behind what it begins with."""
    marks = ["cut"] * segment.cut + ([f"picture {segment.image.name}"] if segment.image else [])
    return f"({', '.join(marks)}) {segment.prompt}" if marks else segment.prompt


def settings_table(request: GenerationRequest) -> list[tuple[str, str]]:
    """A request as rows of a table for reading."""
    rows = [("Prompt", request.timeline.global_prompt)]
    rows += [(f"Seconds {s.start}–{s.end}", _marked(s)) for s in request.timeline.segments]
    rows += [
        ("Length", "endless" if request.seconds is None else f"{request.seconds} s"),
        ("Size", f"{request.width} × {request.height}"),
        ("Seed", str(request.seed)),
        ("Model", request.model),
        ("Steps, window", f"{request.steps}, {request.window}"),
        ("Reuse between steps", "" if request.reuse == "off" else request.reuse),
        ("Quality", request.quality or "balanced"),
        ("Starts from", (request.image or request.video or Path("text only")).name),
        ("Style tokens", ", ".join(request.tokens.styles)),
    ]
    fixed = {name: value for name, value in vars(request.overrides).items() if value is not None}
    rows += [("Manual overrides", ", ".join(f"{name} {value}" for name, value in fixed.items()))]
    return [(name, value) for name, value in rows if value]


def stamp_of(folder: Path) -> tuple[int, ...]:
    """What changes whenever a run's entry does: a file that is replaced has another number.

    Raises:
        OSError: there is no such run.
    """
    known = [(folder / "project.json").stat()]
    for name in ("chunks", LABELS, "video.mp4"):
        with contextlib.suppress(OSError):
            known.append((folder / name).stat())
    return tuple(number for one in known for number in (one.st_mtime_ns, one.st_ino, one.st_size))
