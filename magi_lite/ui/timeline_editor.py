"""The timeline editor: coloured prompt blocks over a ruler in seconds, with mouse, touch and keyboard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from magi_lite.timeline import Timeline, files
from magi_lite.timeline.text import print_shorthand
from magi_lite.ui.assets import Panel
from magi_lite.ui.expose import for_page


class TimelineEditor(Panel):
    """A component whose value is a `Timeline` and nothing else.

    Args:
        value: the timeline shown first.
        seconds: length of the video, which no block can pass; None: endless.
        pictures: what a picture that was sent for a block is, and how it looks: `Actions.look_at` and `Actions.drawn`.
        own_pictures: a timeline with those pictures that a page may name, and a sentence about the others; None: all.
    """

    folder = "timeline"
    triggers = ("commit", "imported")

    def __init__(
        self,
        value: Timeline | None = None,
        *,
        seconds: int | None = 4,
        pictures: Sequence[Callable[..., Any]] = (),
        own_pictures: Callable[[Timeline], tuple[Timeline, str]] | None = None,
        **options: Any,
    ) -> None:
        def parse_timeline(text: str) -> dict[str, Any]:
            return parsed(text, own_pictures)

        functions: list[Callable[..., Any]] = [print_timeline, parse_timeline, write_timeline, *pictures]
        super().__init__(value, seconds=seconds or 0, server_functions=list(map(for_page, functions)), **options)

    def preprocess(self, payload: Any) -> Any:
        """The timeline in what the script sends. Raises: TimelineError."""
        return Timeline.from_json(payload) if payload else Timeline()

    def postprocess(self, value: Any) -> Any:
        if isinstance(value, dict):
            value = Timeline.from_json(value)
        return (value or Timeline()).to_json()


def print_timeline(timeline: dict[str, Any]) -> dict[str, Any]:
    """The timeline in shorthand, for the text view: {"text"}. Raises: TimelineError."""
    return {"text": print_shorthand(Timeline.from_json(timeline))}


def parsed(text: str, own_pictures: Callable[[Timeline], tuple[Timeline, str]] | None = None) -> dict[str, Any]:
    """Shorthand, lines, or a file's content, typed or imported: {"timeline", "notice"}. Raises: TimelineError."""
    timeline, notice = files.read(text), ""
    if own_pictures:
        timeline, notice = own_pictures(timeline)
    return {"timeline": timeline.to_json(), "notice": notice}


def write_timeline(timeline: dict[str, Any], kind: str) -> dict[str, Any]:
    """A timeline as a file of the given kind, see `timeline.files`: {"text"}. Raises: TimelineError."""
    return {"text": files.write(Timeline.from_json(timeline), kind)}
