"""The videos on disk as the pages show them: one entry per project folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from magi_lite.errors import InputError, MagiLiteError, OutputError
from magi_lite.project import Project
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline import Segment


def file_url(path: Path) -> str:
    """Where the page finds a file of the projects folder."""
    return "/gradio_api/file=" + quote(str(path))


class Library:
    """Projects of one folder.

    Args:
        folder: where runs are kept; everything in it may be shown to the page.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """The folder of a project.

        Raises:
            InputError: there is none of that name.
        """
        path = self.folder / Path(name).name
        if not name or name != path.name or name.startswith(".") or not (path / "project.json").is_file():
            raise InputError(f"There is no video {name!r} in the gallery; it may have been deleted.")
        return path

    def holds(self, path: Path | str) -> bool:
        """Whether a path, links resolved, lies in the folder; whether it exists is not looked at."""
        try:
            return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.folder))
        except (OSError, ValueError, TypeError):
            return False

    def open(self, name: str) -> Project:
        """A project by its name, for reading.

        Raises:
            InputError: there is none, or it is damaged.
        """
        return Project.open(self.path(name))

    def projects(self) -> list[Project]:
        """All readable projects, the newest first."""
        found = []
        for path in self.folder.glob("*/project.json"):
            try:
                found.append(Project.open(path.parent))
            except MagiLiteError:
                continue
        return sorted(found, key=lambda project: project.created, reverse=True)

    def last_video(self) -> Path | None:
        """The newest video with a finished second."""
        return next((project.video for project in self.projects() if project.chunks), None)

    def version(self) -> str:
        """Changes whenever the list does."""
        times = [path.stat().st_mtime_ns for path in self.folder.glob("*/project.json")]
        return f"{len(times)}.{max(times, default=0)}"

    def entry(self, project: Project) -> dict[str, Any]:
        """One tile of the gallery."""
        done = project.chunks
        parent = project.parent
        return {
            "id": project.name,
            "title": title(project.request) or project.name,
            "summary": f"{done} s, {project.status}" + (f", from second {parent['from']} of another" if parent else ""),
            "thumbnail": file_url(project.thumbnail(0)) if done else None,
        }

    def details(self, name: str) -> dict[str, Any]:
        """A project's player, settings and what can be done with it."""
        project = self.open(name)
        done = project.chunks
        return {
            "id": name,
            "done": done,
            "video_url": file_url(project.video) + f"?v={done}" if done else None,
            "place": str(project.video),
            "resumable": project.status in ("paused", "stopped", "interrupted", "failed"),
            "settings": settings_table(project.request),
        }

    def versions(self, name: str) -> list[dict[str, Any]]:
        """A video with all that were made from it or beside it by redo, the oldest first."""
        every = {project.name: project for project in self.projects()}
        parents = {key: (project.parent or {}).get("project") for key, project in every.items()}

        def root(key: str) -> str:
            seen: set[str] = set()
            while parents.get(key) in every and key not in seen:
                seen.add(key)
                key = str(parents[key])
            return key

        family = [project for key, project in every.items() if root(key) == root(name)]
        return [
            {
                "name": project.name,
                "parent": parents[project.name],
                "from": project.parent["from"] if project.parent else None,
                "done": project.chunks,
                "video_url": file_url(project.video) if project.chunks else None,
            }
            for project in sorted(family, key=lambda project: project.created)
        ]

    def delete(self, name: str) -> None:
        """Remove a project for good.

        Raises:
            OutputError: it is being written.
        """
        self.open(name).delete()

    def reveal(self, name: str) -> None:
        """Show the video in the file manager of the computer that runs the app.

        Raises:
            OutputError: there is no file manager; says where the file is.
        """
        video = self.open(name).video
        opener = {"win32": "explorer", "darwin": "open"}.get(sys.platform, "xdg-open")
        if shutil.which(opener) is None:
            raise OutputError(f"No file manager was found; the video is {video}.")
        target = ["/select,", str(video)] if opener == "explorer" else [str(video.parent)]
        subprocess.Popen([opener, *target], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def title(request: GenerationRequest) -> str:
    """A short name: the beginning of the first prompt."""
    timeline = request.timeline
    prompt = timeline.global_prompt or next((s.prompt for s in timeline.segments if s.prompt), "")
    return " ".join(prompt.split())[:80]


def _told(segment: Segment) -> str:
    """A block's prompt, behind what it begins with."""
    marks = ["cut"] * segment.cut + ([f"picture {segment.image.name}"] if segment.image else [])
    return f"({', '.join(marks)}) {segment.prompt}" if marks else segment.prompt


def settings_table(request: GenerationRequest) -> list[tuple[str, str]]:
    """A request as rows of a table for reading."""
    rows = [("Prompt", request.timeline.global_prompt)]
    rows += [(f"Seconds {s.start}–{s.end}", _told(s)) for s in request.timeline.segments]
    rows += [
        ("Length", "endless" if request.seconds is None else f"{request.seconds} s"),
        ("Size", f"{request.width} × {request.height}"),
        ("Seed", str(request.seed)),
        ("Model", request.model),
        ("Steps, window", f"{request.steps}, {request.window}"),
        ("Quality", request.quality or "balanced"),
        ("Starts from", (request.image or request.video or Path("text only")).name),
        ("Style tokens", ", ".join(request.tokens.styles)),
    ]
    fixed = {name: value for name, value in vars(request.overrides).items() if value is not None}
    rows += [("Manual overrides", ", ".join(f"{name} {value}" for name, value in fixed.items()))]
    return [(name, value) for name, value in rows if value]
