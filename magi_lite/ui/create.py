"""The Create tab: settings in a panel that scrolls by itself, the stage beside it, the timeline docked below both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from magi_lite.request import presets
from magi_lite.request.request import OPTIONS
from magi_lite.ui import form
from magi_lite.ui.actions import Actions
from magi_lite.ui.panels import Fold, FormPanel, SourcePanel, SteerPanel, TimelineEditor, WatchPanel

Widgets = dict[str, Any]
TOKENS = ("quality_token", "duration_token", "nearly_clean")
"""The model's switches."""
PLACEHOLDER = "What do you want to see? For example: a large red ball moves right in a meadow"


def build(actions: Actions, start: dict[str, Any], examples: list[str], cards: list[dict[str, Any]]) -> Widgets:
    """Lay the tab out.

    Args:
        start: the form's first values, see `form.FIELDS`.
        examples: titles of the example timelines.
        cards: those that the empty stage offers.

    Returns:
        Every widget by its name; those in `form.FIELDS` decide a video.
    """
    w: Widgets = {}
    with gr.Row(elem_id="mg-create", equal_height=False):
        with gr.Column(elem_id="mg-panel", elem_classes="mg-card", min_width=320):
            with gr.Column(elem_id="mg-settings"):
                _what(w, actions, start)
                _how(w, start)
                _advanced(w, start)
            with gr.Column(elem_id="mg-go"):
                w["plan"] = gr.Markdown(elem_id="mg-plan", container=False)
                w["generate"] = gr.Button("Generate", variant="primary", size="lg", elem_id="mg-generate")
                w["save_edit"] = gr.Button("Save the queued video", visible=False, elem_id="mg-save-edit")
        with gr.Column(elem_id="mg-stage-card", elem_classes="mg-card", min_width=320):
            w["watch"] = WatchPanel(actions, cards)
        with gr.Column(elem_id="mg-timeline-card", elem_classes="mg-card"):
            w["example"] = gr.Dropdown(
                ["Load an example …", *examples], value="Load an example …", show_label=False, container=False,
                label="Example timelines", elem_id="mg-example", scale=0, min_width=200,
            )  # fmt: skip
            w["timeline"] = TimelineEditor(
                start["timeline"],
                seconds=start["seconds"],
                pictures=(actions.look_at, actions.drawn),
                own_pictures=actions.given.own_pictures,
                elem_id="mg-timeline",
            )
    w["form"] = FormPanel(actions, form.FIELDS, [w[name]._id for name in form.FIELDS])
    return w


@contextmanager
def _section(w: Widgets, name: str, title: str) -> Iterator[None]:
    """A part of the form that is closed at first; see `Fold`."""
    with gr.Column(elem_id=f"mg-{name}", elem_classes="mg-fold"):
        w[f"{name}_fold"] = Fold(title, f"mg-{name}")
        with gr.Column(visible=False, elem_id=f"mg-{name}-body", elem_classes="mg-fold-body") as body:
            yield
        w[f"{name}_body"] = body


def _what(w: Widgets, actions: Actions, start: dict[str, Any]) -> None:
    """Mode, file, prompt, length."""
    w["mode"] = gr.Radio(
        form.MODES, value=start["mode"], show_label=False, container=False, label="Mode", elem_id="mg-mode",
        elem_classes="mg-chips",
    )  # fmt: skip
    w["source"] = SourcePanel(actions)
    w["prompt"] = gr.Textbox(
        start["prompt"], label="Prompt", placeholder=PLACEHOLDER, lines=3, max_lines=8, elem_id="mg-prompt",
        info="Applies to the whole video. Timeline blocks add what happens at each moment.",
    )  # fmt: skip
    w["steer"] = SteerPanel()
    with gr.Row(elem_id="mg-lengthrow"):
        w["seconds"] = gr.Number(
            start["seconds"], step=1, precision=0, elem_id="mg-seconds", scale=3, min_width=120, **form.about("seconds")
        )
        w["endless"] = gr.Checkbox(start["endless"], label="Endless", elem_id="mg-endless", scale=1, min_width=90)
    w["quality"] = gr.Radio(
        form.choices("quality"), value=start["quality"], show_label=False, container=False, elem_id="mg-quality",
        elem_classes="mg-chips", **form.about("quality"),
    )  # fmt: skip


def _how(w: Widgets, start: dict[str, Any]) -> None:
    """Size and seed."""
    with _section(w, "size", "Size and seed"):
        w["shape"] = gr.Radio(list(form.SHAPES), value=None, label="Shape", elem_id="mg-shape", elem_classes="mg-chips")
        with gr.Row():
            w["width"] = gr.Number(
                start["width"], step=OPTIONS["width"].step, precision=0, elem_id="mg-width", min_width=80,
                **form.about("width"),
            )  # fmt: skip
            w["height"] = gr.Number(
                start["height"], step=OPTIONS["height"].step, precision=0, elem_id="mg-height", min_width=80,
                **form.about("height"),
            )  # fmt: skip
        with gr.Row(elem_id="mg-seedrow"):
            w["seed"] = gr.Number(
                start["seed"], precision=0, elem_id="mg-seed", min_width=120, scale=3, **form.about("seed")
            )  # fmt: skip
            w["dice"] = gr.Button("Random", elem_id="mg-dice", size="sm", min_width=70, scale=1)
            w["last_seed"] = gr.Button("Last used", elem_id="mg-last-seed", size="sm", min_width=70, scale=1)


def _advanced(w: Widgets, start: dict[str, Any]) -> None:
    """Everything that the planner and the presets choose well by themselves."""
    with _section(w, "advanced", "Advanced"):
        with gr.Row():
            w["model"] = gr.Dropdown(
                form.choices("model"), value=start["model"], allow_custom_value=True, elem_id="mg-model",
                **form.about("model"),
            )  # fmt: skip
            w["preset"] = gr.Dropdown(
                ["auto", *presets.names()], value=start["preset"], elem_id="mg-preset", **form.about("preset")
            )  # fmt: skip
        with gr.Row():
            w["steps"] = gr.Dropdown(
                form.choices("steps"), value=start["steps"], elem_id="mg-steps", **form.about("steps"),
            )  # fmt: skip
            w["window"] = gr.Dropdown(
                form.choices("window"), value=start["window"], elem_id="mg-window", **form.about("window"),
            )  # fmt: skip
            w["reuse"] = gr.Dropdown(
                form.choices("reuse"), value=start["reuse"], elem_id="mg-reuse", **form.about("reuse"),
            )  # fmt: skip
        with gr.Row():
            w["fit"] = gr.Dropdown(
                form.choices("fit"), value=start["fit"], elem_id="mg-fit", **form.about("fit")
            )  # fmt: skip
            w["styles"] = gr.Dropdown(
                form.choices("styles"), value=start["styles"], multiselect=True, elem_id="mg-styles",
                **form.about("styles"),
            )  # fmt: skip
        with gr.Row():
            for name in TOKENS:
                w[name] = gr.Checkbox(
                    start[name], elem_id=f"mg-{name.replace('_', '-')}", min_width=120, **form.about(name)
                )
        with gr.Row():
            least, most = OPTIONS["crf"].least or 0, OPTIONS["crf"].most or 0
            w["crf"] = gr.Slider(least, most, start["crf"], step=1, elem_id="mg-crf", **form.about("crf"))
            w["embed_settings"] = gr.Checkbox(
                start["embed_settings"], elem_id="mg-embed", **form.about("embed_settings")
            )  # fmt: skip
        gr.Markdown("**Manual overrides.** The plan chooses these well; a wrong choice can be slow or not fit.")
        with gr.Row():
            for name in form.OVERRIDES:
                w[name] = gr.Dropdown(
                    form.choices(name), value=form.AUTO, elem_id=f"mg-{name.replace('_', '-')}", min_width=120,
                    **form.about(name),
                )  # fmt: skip
            w["vram_gb"] = gr.Number(start["vram_gb"], elem_id="mg-vram", min_width=120, **form.about("vram_gb"))
        with _section(w, "mine", "My settings"):
            with gr.Row(equal_height=True):
                w["saved"] = gr.Dropdown([], value=None, label="Saved", elem_id="mg-saved", min_width=150)
                w["saved_name"] = gr.Textbox(label="Name", elem_id="mg-saved-name", max_length=60, min_width=120)
            with gr.Row():
                w["save"] = gr.Button("Save", elem_id="mg-save", size="sm")
                w["rename_saved"] = gr.Button("Rename", elem_id="mg-rename-saved", size="sm")
                w["delete_saved"] = gr.Button("Delete", elem_id="mg-delete-saved", size="sm")
                w["at_start"] = gr.Button("Load at start", elem_id="mg-at-start", size="sm")
