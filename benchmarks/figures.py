"""What benchmarks find, and the files that keep it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from magi_lite.project import Project

RESULTS = Path(__file__).parent / "results"


def rounded(value: Any) -> Any:
    """Figures with as many digits as they deserve."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return round(value, 2) if isinstance(value, float) else value


def save(out: Path, found: dict[str, Any]) -> str:
    """Write figures as JSON; the folder is made if missing. Returns the text."""
    text = json.dumps(found, indent=1)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + "\n", encoding="utf-8")
    return text


def latents(run: Path) -> list[bytes]:
    """The finished seconds of a run's folder, bit for bit."""
    project = Project.open(run)
    return [project.read_latents(second).numpy().tobytes() for second in range(project.chunks)]
