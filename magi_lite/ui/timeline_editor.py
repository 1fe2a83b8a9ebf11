"""The timeline editor: coloured prompt blocks over a ruler in seconds, with mouse, touch and keyboard."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from magi_lite.errors import TimelineError
from magi_lite.timeline import Timeline, files
from magi_lite.timeline.text import print_shorthand
from magi_lite.ui.assets import Panel
from magi_lite.ui.expose import for_page


class TimelineEditor(Panel):
    """A component whose value is a `Timeline` and nothing else.

    Args:
        value: the timeline shown first.
        seconds: length of the video, which no block can pass; None: endless.
        look_at: what a picture that was sent for a block is, see `Actions.look_at`.
        reachable: whether a page may name this file; None: any.
    """

    folder = "timeline"
    triggers = ("commit", "imported")

    def __init__(
        self,
        value: Timeline | None = None,
        *,
        seconds: int | None = 4,
        look_at: Callable[..., Any] | None = None,
        reachable: Callable[[str], bool] | None = None,
        **options: Any,
    ) -> None:
        functions: list[Any] = [print_timeline, _with_own_pictures(parse_timeline, reachable), write_timeline]
        functions += [for_page(look_at)] if look_at else []
        super().__init__(value, seconds=seconds or 0, server_functions=functions, **options)

    def preprocess(self, payload: Any) -> Any:
        """The timeline in what the script sends. Raises: TimelineError."""
        return Timeline.from_json(payload) if payload else Timeline()

    def postprocess(self, value: Any) -> Any:
        if isinstance(value, dict):
            value = Timeline.from_json(value)
        return (value or Timeline()).to_json()


def print_timeline(data: dict[str, Any]) -> dict[str, Any]:
    """The timeline in shorthand, for the text view: {"text"} or {"error"}."""
    try:
        return {"text": print_shorthand(Timeline.from_json(data))}
    except TimelineError as error:
        return {"error": str(error)}


def parse_timeline(data: dict[str, Any]) -> dict[str, Any]:
    """Shorthand, lines, or a file's content, typed or imported: {"timeline"} or {"error"}."""
    try:
        return {"timeline": files.read(str(data.get("text", ""))).to_json()}
    except TimelineError as error:
        return {"error": str(error)}


def write_timeline(data: dict[str, Any]) -> dict[str, Any]:
    """A timeline as a file of the given "kind", see `timeline.files`: {"text"} or {"error"}."""
    try:
        return {"text": files.write(Timeline.from_json(data.get("timeline") or {}), str(data.get("kind", "")))}
    except TimelineError as error:
        return {"error": str(error)}


def _with_own_pictures(read: Callable[..., Any], reachable: Callable[[str], bool] | None) -> Callable[..., Any]:
    """`read` (see `parse_timeline`), refusing pictures that the page may not name and could not show."""

    @wraps(read)
    def checked(data: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = read(data)
        for segment in answer.get("timeline", {}).get("segments", []):
            if "image" in segment and reachable is not None and not reachable(segment["image"]):
                name, start = Path(segment["image"]).name, segment["start"]
                return {"error": f"The app does not have the picture {name}; drop it on the block at {start} s."}
        return answer

    return checked
