"""HTML, CSS and JavaScript of the panels, read from their own files.

A panel is a folder beside this file: NAME.html (static; the DOM is built by script with textContent, so that no prompt
is ever parsed as HTML), NAME.css, and one or more scripts that run when the panel is mounted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

_HERE = Path(__file__).parent


def read(name: str) -> str:
    """Text of the asset `name`, relative to this folder."""
    return (_HERE / name).read_text(encoding="utf-8")


def head() -> str:
    """What goes into the page's head: the script that all panels share."""
    return f"<script>\n{read('shared/magi.js')}\n</script>"


def css(panels: Sequence[str]) -> str:
    """The app's style sheet and those of the panels named."""
    return "\n".join([read("shared/app.css"), *(read(f"{name}/{name}.css") for name in panels)])


class Panel(gr.HTML):
    """A component with its own files; its value is JSON-able data, never HTML."""

    folder: str
    scripts: tuple[str, ...] = ()

    def __init__(
        self, value: Any = None, *, server_functions: Sequence[Callable[..., Any]] = (), **options: Any
    ) -> None:
        scripts = self.scripts or (f"{self.folder}.js",)
        super().__init__(
            value=value,
            html_template=read(f"{self.folder}/{self.folder}.html"),
            js_on_load="\n".join(read(f"{self.folder}/{script}") for script in scripts),
            server_functions=list(server_functions) or None,
            apply_default_css=False,
            **options,
        )

    def preprocess(self, payload: Any) -> Any:
        return payload

    def postprocess(self, value: Any) -> Any:
        return value

    def api_info(self) -> dict[str, Any]:
        return {"type": "object"}

    def example_payload(self) -> Any:
        return {}

    def example_value(self) -> Any:
        return {}
