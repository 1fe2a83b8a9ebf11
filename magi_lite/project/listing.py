"""All projects under a folder, for galleries; a broken one is listed with the reason instead of stopping the rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from magi_lite.errors import InputError
from magi_lite.project.files import ProjectFiles, Status, read_json


@dataclass(frozen=True)
class ProjectInfo:
    """One line of a gallery. `seconds` is what was asked for (None: endless), `chunks` what is finished."""

    folder: Path
    created: str = ""
    title: str = ""
    status: Status | None = None
    chunks: int = 0
    seconds: int | None = None
    video: Path | None = None
    thumbnail: Path | None = None
    error: str = ""
    """Why it cannot be opened, in one sentence; empty if it can."""


def list_projects(root: Path | str) -> list[ProjectInfo]:
    """Every folder under `root` that is or was a project, newest first; empty if there is no `root`."""
    root = Path(root)
    if not root.is_dir():
        return []
    folders = [f for f in root.iterdir() if f.is_dir() and not f.name.startswith(".")]
    return sorted((_info(folder) for folder in folders), key=lambda i: (i.created, i.folder.name), reverse=True)


def _info(folder: Path) -> ProjectInfo:
    try:
        files = ProjectFiles(folder, read_json(folder))
        request, chunks = files.request, files.chunks
        words = request.timeline.global_prompt or next((s.prompt for s in request.timeline.segments), "")
        return ProjectInfo(
            folder,
            created=files.created,
            title=" ".join(words.split())[:80] or folder.name,
            status=files.status,
            chunks=chunks,
            seconds=request.seconds,
            video=files.video if files.video.is_file() and chunks else None,
            thumbnail=files.thumbnail(0) if chunks and files.thumbnail(0).is_file() else None,
        )
    except InputError as error:
        return ProjectInfo(folder, error=str(error))
    except OSError as error:
        return ProjectInfo(folder, error=f"{folder.name} cannot be read ({error.strerror}).")
