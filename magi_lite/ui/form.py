"""The form's values and an option's, there and back. Names of the values are those of the widgets in `create`.

A widget that leaves a choice to the preset or the planner shows `AUTO`, qualities are shown with a capital letter, and
a drop zone with a mode stands for image and video; everything else is the option's own value.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from magi_lite.errors import InputError
from magi_lite.models import MODELS
from magi_lite.request.build import DEMO, build
from magi_lite.request.request import OPTIONS, GenerationRequest
from magi_lite.sentences import shown
from magi_lite.timeline import Timeline
from magi_lite.weights.layout import DEFAULT_MODELS_FOLDER

TEXT, IMAGE, VIDEO, LAST = "Text to video", "Start with image", "Continue video", "Continue last video"
MODES = (TEXT, IMAGE, VIDEO, LAST)
AUTO = "Auto"
_SIDE = OPTIONS["width"]
LEGAL_SIZE_JS = (
    f"Math.min({_SIDE.most}, Math.max({_SIDE.least}, Math.round((Number(n) || 64) / {_SIDE.step}) * {_SIDE.step}))"
)
"""`legal_size` of n for the page, which corrects a size, visibly, the moment its field is left."""
SHAPES = {"Wide 16:9": 16 / 9, "Square": 1.0, "Tall 9:16": 9 / 16, "Match image": None}
OVERRIDES = tuple(option.name for option in OPTIONS.values() if option.part == "overrides" and option.kind == "choice")
FIELDS = (
    "mode", "source", "prompt", "timeline", "seconds", "endless", "quality", "width", "height", "seed", "model",
    "preset", "steps", "window", "fit", "styles", "quality_token", "duration_token", "nearly_clean", "reuse", "vram_gb",
    "crf", "embed_settings", *OVERRIDES,
)  # fmt: skip
"""Every value that decides a video, in the order in which the widgets are given to handlers."""
_LISTS = ("steps", "window", "model", *OVERRIDES)
"""Lists whose first choice is `AUTO`."""


def choices(name: str) -> list[Any]:
    """What a widget offers for an option."""
    option = OPTIONS[name]
    if option.kind == "names":
        return [(f"{choice}: {option.meanings[choice]}", choice) for choice in sorted(option.choices)]
    shown = [str(choice) for choice in option.offered if str(choice).lower() != AUTO.lower()]
    if name == "quality":
        return [choice.capitalize() for choice in shown]
    return [AUTO, *shown] if name in _LISTS else shown


def about(name: str) -> dict[str, Any]:
    """Label and explanation of an option's widget."""
    option = OPTIONS[name]
    return {"label": option.label} | ({"info": option.info} if option.info else {})


def defaults() -> dict[str, Any]:
    """What the form holds before anything is touched."""
    values = from_request(GenerationRequest(Timeline()))
    return values | {"width": None, "height": None, "seed": -1, "model": AUTO, "steps": AUTO, "window": AUTO}


def to_request(
    values: Mapping[str, Any], *, models_folder: Path | None = None, last_video: Path | None = None
) -> GenerationRequest:
    """The request that the form asks for. A seed of -1 becomes a random one, which is then part of the request.

    Raises:
        InputError: the mode needs a file that is not there, there is no prompt, or a value is not legal.
        TimelineError: a block lies outside the video.
    """
    timeline: Timeline = values["timeline"] or Timeline()
    prompt = OPTIONS["prompt"].read(values["prompt"]) or ""
    prompts = (prompt, timeline.global_prompt, *(segment.prompt for segment in timeline.segments))
    if values["mode"] == TEXT and not any(text.strip() for text in prompts):
        raise InputError("Write what you want to see, either as the prompt or in a block of the timeline.")
    return asked({**_options(values), **_source(values, last_video), "timeline": timeline}, models_folder)


def asked(options: Mapping[str, Any], models_folder: Path | None) -> GenerationRequest:
    """A request from options by name, as the form and the API have them; a model must be one of this machine's.

    Raises:
        InputError: (or one of its kinds) one sentence.
    """
    model = options.get("model")
    if isinstance(model, str) and model.strip().lower() not in ("", AUTO.lower()):
        check_model(model, models_folder)
    request = build(**options, models_folder=models_folder)
    request.timeline.check(request.seconds)
    return request


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all widgets that stand for one option, as `build` takes them."""
    found = {name: values[name] for name in FIELDS if name in OPTIONS}
    found |= {name: None for name, value in found.items() if value in (AUTO, "")}
    found |= {name: found[name] or None for name in ("width", "height", "vram_gb")}  # 0: nothing typed
    found["prompt"] = found["prompt"] or ""
    if isinstance(found["quality"], str):
        found["quality"] = found["quality"].lower()
    if found["endless"]:
        found["seconds"] = None
    elif found["seconds"] is None:
        raise InputError("Choose the length of the video in seconds.")
    return found


def from_request(request: GenerationRequest, *, source: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the form shows for a request; the blocks and the prompt for every second are shown apart.

    Args:
        source: what the drop zone shall show; None: nothing.
    """
    values = {name: OPTIONS[name].of(request) for name in FIELDS if name in OPTIONS and OPTIONS[name].field}
    values |= {name: AUTO if values[name] is None else values[name] for name in OVERRIDES}
    return values | {
        "mode": IMAGE if request.image else VIDEO if request.video else TEXT,
        "source": source,
        "prompt": request.timeline.global_prompt,
        "timeline": replace(request.timeline, global_prompt=""),
        "seconds": request.seconds or 8,
        "endless": request.seconds is None,
        "quality": (request.quality or "balanced").capitalize(),
        "steps": str(request.steps),
        "window": str(request.window),
        "styles": list(request.tokens.styles),
    }


def check_model(model: Any, models_folder: Path | None) -> None:
    """Refuse a model that is neither a published one nor a folder of the models folder; nothing else is looked at.

    Raises:
        InputError: it is another; links inside the models folder may lead anywhere.
    """
    if isinstance(model, str) and (model == DEMO or model in MODELS):
        return
    with contextlib.suppress(TypeError, ValueError):
        folder, named = (os.path.normpath(Path(p).absolute()) for p in (models_folder or DEFAULT_MODELS_FOLDER, model))
        if Path(named).is_relative_to(folder):
            return
    raise InputError(
        f"There is no model {shown(model)} here; choose one of the list, or a folder inside the models folder."
    )


def legal_size(value: float) -> int:
    """The nearest multiple of 16 that a video can have."""
    return _SIDE.nearest(float(value))


def shaped(shape: str, width: float, height: float, image: tuple[int, int] | None = None) -> tuple[int, int]:
    """A legal size of about the same area in another shape; `image` is the picture's (width, height)."""
    ratio = SHAPES.get(shape)
    if ratio is None:
        if image is None:
            return legal_size(width), legal_size(height)
        ratio = max(1, image[0]) / max(1, image[1])
    area = max(0.0, float(width)) * max(0.0, float(height))
    return legal_size((area * ratio) ** 0.5), legal_size((area / ratio) ** 0.5)


def _source(values: Mapping[str, Any], last_video: Path | None) -> dict[str, Path]:
    """The image or video of the mode."""
    source, mode = values["source"] or {}, values["mode"]
    if mode == IMAGE:
        if source.get("kind") != "image":
            raise InputError(f"{IMAGE} needs an image: drop one into the box above the prompt, or choose {TEXT}.")
        return {"image": Path(source["path"])}
    if mode == VIDEO:
        if source.get("kind") != "video":
            raise InputError(f"{VIDEO} needs a clip: drop one into the box above the prompt, or choose {TEXT}.")
        return {"video": Path(source["path"])}
    if mode == LAST:
        if last_video is None:
            raise InputError(f"There is no last video yet; make one first, or choose {TEXT}.")
        return {"video": last_video}
    return {}
