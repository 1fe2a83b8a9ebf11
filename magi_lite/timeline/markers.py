"""Markers: named moments of a timeline. They are for people alone; nothing that is made depends on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from magi_lite.errors import TimelineError
from magi_lite.sentences import shown

MOST = 1000
"""Markers of one timeline."""
NAME_LENGTH = 120


@dataclass(frozen=True)
class Marker:
    """A moment, in seconds from the start, and its name.

    Raises:
        TimelineError: the moment is no time, or the name is not text.
    """

    at: float
    name: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.at, bool) or not isinstance(self.at, int | float) or not 0 <= self.at < math.inf:
            raise TimelineError(f"A marker stands at {shown(self.at)}; give seconds from the start, such as 2.5.")
        if not isinstance(self.name, str) or len(self.name) > NAME_LENGTH:
            raise TimelineError(f"A marker's name must be text of at most {NAME_LENGTH} characters.")


def to_json(markers: tuple[Marker, ...]) -> list[dict[str, Any]]:
    """JSON-able; `from_json` reads it back."""
    return [{"at": marker.at, "name": marker.name} for marker in markers]


def from_json(data: Any) -> tuple[Marker, ...]:
    """Markers in order of their moments.

    Raises:
        TimelineError: not a list of objects with `at` and perhaps `name`, or too many.
    """
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise TimelineError('The timeline\'s markers must be a list of objects, such as {"at": 2.5, "name": "jump"}.')
    if len(data) > MOST:
        raise TimelineError(f"The timeline has {len(data)} markers; the most are {MOST}.")
    for item in data:
        unknown = sorted(item.keys() - {"at", "name"})
        if "at" not in item or unknown:
            what = f"has an unknown key {shown(unknown[0])}" if unknown else "lacks 'at'"
            raise TimelineError(f"A marker {what}; it has at and name.")
    return tuple(sorted((Marker(item["at"], item.get("name", "")) for item in data), key=lambda one: one.at))
