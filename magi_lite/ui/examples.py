"""Ready-made timelines: `presets/timelines/*.json`, each {"title", "seconds", "timeline"}."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magi_lite.errors import TimelineError
from magi_lite.resources import presets_folder
from magi_lite.text_files import read_text
from magi_lite.timeline import Timeline
from quant.storage.files import parse_json

FOLDER = presets_folder() / "timelines"
DEMO_NAMES = "0_demo"


@dataclass(frozen=True)
class Example:
    """A timeline to start from."""

    title: str
    seconds: int
    timeline: Timeline
    name: str = ""
    """Of its file; those for the demo model begin with DEMO_NAMES."""


def load(folder: Path = FOLDER) -> dict[str, Example]:
    """All examples by title, in order of their files' names.

    Raises:
        TimelineError: a file is not an example; names it.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            data = parse_json(read_text(path))
            example = Example(str(data["title"]), int(data["seconds"]), Timeline.from_json(data["timeline"]), path.stem)
            example.timeline.check(example.seconds)
        except (ValueError, KeyError, TypeError, TimelineError) as error:
            message = f"The example timeline {path.name} cannot be read ({error}); correct or remove it."
            raise TimelineError(message) from None
        found[example.title] = example
    return found


def cards(found: dict[str, Example], demo: bool) -> list[dict[str, Any]]:
    """What the empty stage offers: at most four examples for the model in use, as JSON-able data."""
    fitting = [example for example in found.values() if example.name.startswith(DEMO_NAMES) == demo]
    return [
        {
            "title": example.title, "name": example.name, "seconds": example.seconds, "moving": demo,
            "blocks": [vars(segment) for segment in example.timeline.segments],
        }
        for example in fitting[:4]
    ]  # fmt: skip
