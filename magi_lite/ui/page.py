"""The page: top bar, four tabs, and the endpoints of the API."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.events import api

from magi_lite.request.build import DEMO, with_defaults
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline import Timeline
from magi_lite.ui import assets, create, events, examples, form, saved
from magi_lite.ui.actions import Actions
from magi_lite.ui.expose import for_api
from magi_lite.ui.fills import INNER
from magi_lite.ui.library import Library
from magi_lite.ui.machine import Machine, download_gb
from magi_lite.ui.panels import STYLED, GalleryPanel, QueuePanel, SystemPanel, TopBar
from magi_lite.ui.sent import CheckedBlocks
from magi_lite.ui.theme import theme

API = (
    "generate", "status", "stop", "pause", "resume", "redirect", "extend", "redo", "queue", "move", "clone", "tie",
    "remove", "clear_ended", "hold", "gallery", "details", "versions", "label", "bin", "binned", "restore", "empty_bin",
    "export", "exports", "cancel_export", "delete_video", "reveal", "system", "download", "stop_download",
    "free_memory", "cards", "plan_for", "report",
)  # fmt: skip
"""Actions offered as endpoints, each under its own name."""
FIRST_MODEL = "4.5B-distill-fp8"
DEMO_PROMPT = "a large red ball moves right in a meadow"
"""Stands in the form where only the demo model is there: a sentence that it knows, one click from a first video."""


def build(actions: Actions, library: Library, machine: Machine, store: saved.Saved) -> gr.Blocks:
    """The whole app, ready to be launched with `look()`."""
    ready = examples.load()
    cards = examples.cards(ready, machine.model == DEMO)
    with CheckedBlocks(title="MAGI Lite", analytics_enabled=False, fill_width=True) as demo:
        TopBar(actions)
        first_run = _first_run_note(machine)
        with gr.Tabs(selected="create") as tabs:
            with gr.Tab("Create", id="create"):
                widgets = create.build(actions, start_values(machine, store), list(ready), cards)
            with gr.Tab("Queue", id="queue"), gr.Column(elem_classes="mg-card"):
                queue = QueuePanel(actions)
            with gr.Tab("Gallery", id="gallery"), gr.Column(elem_classes="mg-card"):
                gallery = GalleryPanel(actions)
            with gr.Tab("System", id="system", render_children=True):
                system = SystemPanel(actions)
        handlers = events.Handlers(widgets, actions, library, machine, ready)
        events.wire(handlers, tabs, queue, gallery, system, demo)
        saved.wire(store, handlers, lambda: _begin_with(start_values(machine, store), widgets, demo))
        if first_run:
            first_run.click(lambda: (actions.download(FIRST_MODEL), gr.Tabs(selected="system"))[1], None, tabs, **INNER)
        for name in API:
            api(for_api(getattr(actions, name)), api_name=name, concurrency_limit=None)
    return demo


def look() -> dict[str, Any]:
    """Theme, style sheet and head for `launch`; the scripts' addresses are in `assets.routes`."""
    return {"theme": theme(), "css": assets.css(STYLED), "head": assets.head()}


def start_values(machine: Machine, store: saved.Saved) -> dict[str, Any]:
    """What the form holds when the page opens: the machine's defaults, or the settings chosen for the start."""
    values = form.defaults()
    base = GenerationRequest(Timeline(), preset=machine.preset, models_folder=machine.models_folder)
    base = with_defaults(base, {}, machine.device)
    first = {"prompt": DEMO_PROMPT} if base.model == DEMO else {}
    return values | {"width": base.width, "height": base.height, "preset": machine.preset} | first | store.at_start()


def _begin_with(values: dict[str, Any], widgets: dict[str, Any], demo: gr.Blocks) -> None:
    """Let pages that are opened from now on begin with these values: Gradio wrote down the first ones at its launch."""
    by_id = {widgets[name]._id: values[name] for name in saved.KEPT}
    for component in demo.config["components"]:
        if component["id"] in by_id:
            component["props"]["value"] = by_id[component["id"]]


def _first_run_note(machine: Machine) -> gr.Button | None:
    """One line for someone without weights: what runs now, and how to get more."""
    if not machine.first_run:
        return None
    with gr.Row(elem_id="mg-first-run", equal_height=True):
        gr.Markdown(
            "**This is the small demo model**: tiny pictures, no graphics card needed. "
            f"Real videos need {FIRST_MODEL}, a download of about {download_gb(FIRST_MODEL):.0f} GB."
        )
        return gr.Button("Download", size="sm", elem_id="mg-download-first", scale=0, min_width=120)
