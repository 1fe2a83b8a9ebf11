"""The panels, and which actions their scripts may call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from magi_lite.errors import InputError
from magi_lite.models import FPS
from magi_lite.ui.actions import Actions
from magi_lite.ui.assets import Panel
from magi_lite.ui.expose import for_page
from magi_lite.ui.sent import FormEvent, GalleryEvent, QueueEvent, Source, WatchEvent
from magi_lite.ui.timeline_editor import TimelineEditor
from magi_lite.ui.uploads import LIMIT_BYTES, NOT_UPLOADED

__all__ = [
    "Fold", "FormPanel", "GalleryPanel", "QueuePanel", "SourcePanel", "SteerPanel", "SystemPanel", "TimelineEditor",
    "TopBar", "WatchPanel",
]  # fmt: skip
STYLED = ("topbar", "form", "fold", "source", "steer", "watch", "timeline", "queue", "gallery", "system")
"""Folders whose style sheet the page loads."""


class TopBar(Panel):
    """Brand, state of the app, light and dark; the page's poller."""

    folder = "topbar"

    def __init__(self, actions: Actions) -> None:
        super().__init__(None, server_functions=offered(actions, "status", "redirect"), elem_id="mg-topbar")


class Fold(Panel):
    """The head of a section that opens. Its value is None or {"note": a short summary of what the section holds}.

    Args:
        title: what the section is called.
        name: the section's element id; its fields are built when the event "opened" comes first.
    """

    folder = "fold"
    triggers = ("opened",)

    def __init__(self, title: str, name: str) -> None:
        super().__init__(None, title=title, body=f"{name}-body", elem_id=f"{name}-head")


class SourcePanel(Panel):
    """The drop zone. Its value is None or {"kind", "path", "name", "width", "height", "url", "info"}."""

    folder = "source"
    takes = Source
    triggers = ("dropped", "cleared")

    def __init__(self, actions: Actions, **options: Any) -> None:
        functions = offered(actions, "look_at", "drawn")
        super().__init__(None, server_functions=functions, limit=LIMIT_BYTES, elem_id="mg-source", **options)
        self._may_be_named = actions.given.may_be_named

    def preprocess(self, payload: Any) -> Any:
        """The value, as a page sends it. Raises: InputError: it names a file that pages may not name."""
        if payload and not self._may_be_named(payload.get("path", "")):
            raise InputError(NOT_UPLOADED)
        return payload or None


class SteerPanel(Panel):
    """Under the prompt, while a video is made: from which second on another prompt would apply, and the button."""

    folder = "steer"

    def __init__(self) -> None:
        super().__init__(None, elem_id="mg-steer")


class FormPanel(Panel):
    """Nothing to see: keeps the form as a draft in the browser, and fills it with what a video was made with.

    Events: restore (a draft comes back), follow with the value {"job": id, "open": show the tab}, several with the
    value {"pictures": [source, ...]} (a video from each), replan (a run has ended: the
    pace of this machine is known better, and a worker is there).

    Args:
        names: of all fields.
        ids: of their components.
    """

    folder = "form"
    takes = FormEvent
    triggers = ("restore", "follow", "several", "replan")

    def __init__(self, actions: Actions, names: Sequence[str], ids: Sequence[int]) -> None:
        functions = offered(actions, "saved_names", "bin")
        super().__init__(None, server_functions=functions, names=list(names), ids=list(ids), elem_id="mg-form")


class WatchPanel(Panel):
    """The stage. Setting its value to {"job": id} shows that job. Event: example, with the value {"example": title}.

    Args:
        examples: cards of the empty stage, see `examples.cards`.
    """

    folder = "watch"
    takes = WatchEvent
    triggers = ("example",)

    def __init__(self, actions: Actions, examples: Sequence[dict[str, Any]]) -> None:
        names = ("stop", "pause", "resume", "extend", "redo", "download", "versions", "label", "reveal")
        functions = offered(actions, *names, "export", "exports", "cancel_export")
        super().__init__(None, server_functions=functions, fps=FPS, examples=list(examples), elem_id="mg-watch")


class QueuePanel(Panel):
    """The list of jobs. Event: edit_job {"edit": id}."""

    folder = "queue"
    takes = QueueEvent
    triggers = ("edit_job",)

    def __init__(self, actions: Actions) -> None:
        names = ("status", "move", "tie", "clone", "remove", "stop", "pause", "resume", "hold", "clear_ended")
        super().__init__(None, server_functions=offered(actions, *names), elem_id="mg-queue")


class GalleryPanel(Panel):
    """The videos. Event: use_settings {"use": name}."""

    folder = "gallery"
    takes = GalleryEvent
    triggers = ("use_settings",)

    def __init__(self, actions: Actions) -> None:
        names = (
            "gallery", "details", "versions", "extend", "redo", "resume", "reveal", "label", "bin", "binned", "restore",
            "empty_bin", "export", "exports", "cancel_export",
        )  # fmt: skip
        super().__init__(None, server_functions=offered(actions, *names), elem_id="mg-gallery")


class SystemPanel(Panel):
    """This computer and its models. Its value is the plan's picture: {"sentence", "svg", "notes"} or {"error"}."""

    folder = "system"

    def __init__(self, actions: Actions) -> None:
        names = (
            "system", "download", "stop_download", "free_memory", "cards", "plan_for", "report", "use_models_folder",
        )  # fmt: skip
        super().__init__(None, server_functions=offered(actions, *names), elem_id="mg-system")


def offered(actions: Actions, *names: str) -> list[Any]:
    """The named actions as a panel's script calls them."""
    return [for_page(getattr(actions, name)) for name in names]
