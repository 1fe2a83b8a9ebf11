"""HTML, CSS and JavaScript of the panels, read from `web/`, and the address under which the page finds the scripts.

A panel is a folder of `web/`: NAME.html (static; the DOM is built by script with textContent, so that no prompt is ever
parsed as HTML), NAME.css, and NAME.js, an ES module whose `mount` runs when the panel is part of the page.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_WEB = Path(__file__).parent / "web"
_YEAR = 365 * 24 * 3600


def read(name: str) -> str:
    """Text of the asset `name`, relative to `web/`."""
    return (_WEB / name).read_text(encoding="utf-8")


@cache
def version() -> str:
    """A digest of all files: part of their address, so that a browser keeps none of an earlier version."""
    digest = hashlib.sha256()
    for path in sorted(path for path in _WEB.rglob("*.*") if path.is_file()):
        digest.update(path.relative_to(_WEB).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


class _Scripts(StaticFiles):
    """Files that never change under their address."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = f"public, max-age={_YEAR}, immutable"
        return response


def routes() -> list[BaseRoute]:
    """What the server answers besides Gradio's own addresses."""
    return [Mount(f"/magi/{version()}", _Scripts(directory=_WEB), name="magi")]


def head() -> str:
    """What goes into the page's head: the scripts, which panels wait for, and a copy of all values at the start."""
    folder = f"./magi/{version()}"
    modules = sorted(path.relative_to(_WEB).as_posix() for path in _WEB.rglob("*.js"))
    preload = "\n".join(f'<link rel="modulepreload" href="{folder}/{name}">' for name in modules)
    preload += f'\n<link rel="stylesheet" href="{folder}/shared/shell.css">'
    start = "JSON.stringify(Object.fromEntries(gradio_config.components.map((c) => [c.id, c.props.value])))"
    return f'{preload}\n<script>window.magiStart = {start}; window.magiReady = import("{folder}/main.js");</script>'


def css(panels: Sequence[str]) -> str:
    """The app's style sheet and those of the panels named."""
    shared = [read("shared/app.css"), read("shared/layout.css")]
    return "\n".join([*shared, *(read(f"{name}/{name}.css") for name in panels)])


class Panel(gr.HTML):
    """A component with its own files; its value is JSON-able data, never HTML.

    `folder` is the one of its files, `triggers` the events of its script: Gradio reads their names from there.
    `takes` is the type of the value that its script sends, see `sent`.
    """

    folder: str
    takes: Any = dict
    triggers: tuple[str, ...] = ()

    def __init__(
        self, value: Any = None, *, server_functions: Sequence[Callable[..., Any]] = (), **options: Any
    ) -> None:
        scope = "{ element, props, trigger, server: typeof server === 'undefined' ? {} : server, watch, upload }"
        super().__init__(
            value=value,
            html_template=read(f"{self.folder}/{self.folder}.html"),
            js_on_load=f"magiReady.then(() => magi.mount('{self.folder}', {scope}, {json.dumps(self.triggers)}));",
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
