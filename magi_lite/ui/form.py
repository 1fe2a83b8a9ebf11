"""The form's values and a request, there and back. Names of the values are those of the widgets in `create`."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from magi_lite.errors import InputError
from magi_lite.models import MODELS
from magi_lite.request.defaults import DEMO, with_defaults
from magi_lite.request.request import GenerationRequest, Overrides, SpecialTokens
from magi_lite.timeline import Timeline
from magi_lite.weights.layout import DEFAULT_MODELS_FOLDER

TEXT, IMAGE, VIDEO, LAST = "Text to video", "Start with image", "Continue video", "Continue last video"
MODES = (TEXT, IMAGE, VIDEO, LAST)
AUTO = "Auto"
SEED_LIMIT = 2**31
SIZE_STEP, MIN_SIZE, MAX_SIZE = 16, 32, 1440
LEGAL_SIZE_JS = f"Math.min({MAX_SIZE}, Math.max({MIN_SIZE}, Math.round((Number(n) || 64) / {SIZE_STEP}) * {SIZE_STEP}))"
"""`legal_size` of n for the page, which corrects a size the moment its field is left."""
SHAPES = {"Wide 16:9": 16 / 9, "Square": 1.0, "Tall 9:16": 9 / 16, "Match image": None}
OVERRIDES = ("device", "scheme", "layers", "kv_dtype", "kv_place", "vae", "t5", "t5_device", "attention")
FIELDS = (
    "mode", "source", "prompt", "timeline", "seconds", "endless", "quality", "width", "height", "seed", "model",
    "preset", "steps", "window", "fit", "styles", "quality_token", "duration_token", "nearly_clean", "vram_gb", "crf",
    "embed_settings", *OVERRIDES,
)  # fmt: skip
"""Every value that decides a video, in the order in which the widgets are given to handlers."""


def defaults() -> dict[str, Any]:
    """What the form holds before anything is touched."""
    return {
        "mode": TEXT, "source": None, "prompt": "", "timeline": Timeline(), "seconds": 4, "endless": False,
        "quality": "Balanced", "width": None, "height": None, "seed": -1, "model": AUTO, "preset": "auto",
        "steps": AUTO, "window": AUTO, "fit": "crop", "styles": [], "quality_token": True, "duration_token": True,
        "nearly_clean": True, "vram_gb": None, "crf": 18, "embed_settings": True, **dict.fromkeys(OVERRIDES, AUTO),
    }  # fmt: skip


def to_request(
    values: Mapping[str, Any], *, models_folder: Path | None = None, last_video: Path | None = None
) -> GenerationRequest:
    """The request that the form asks for. A seed of -1 becomes a random one, which is then part of the request.

    Raises:
        InputError: the mode needs a file that is not there, nothing is said, or a value is not legal.
        TimelineError: a block lies outside the video.
    """
    timeline: Timeline = values["timeline"] or Timeline()
    prompt = (values["prompt"] or "").strip()
    timeline = replace(timeline, global_prompt=prompt or timeline.global_prompt)
    seconds = None if values["endless"] else _whole(values["seconds"], "length", 1, 100_000)
    if not timeline.global_prompt and not any(s.prompt.strip() for s in timeline.segments):
        raise InputError("Write what you want to see, either as the prompt or in a block of the timeline.")
    timeline.check(seconds)
    image, video = _source(values, last_video)
    seed = _whole(values["seed"] if values["seed"] not in (None, "") else -1, "seed", -1, 2**63 - 1)
    request = GenerationRequest(
        timeline=timeline,
        seconds=seconds,
        image=image,
        video=video,
        fit=values["fit"],
        nearly_clean=bool(values["nearly_clean"]),
        seed=random.SystemRandom().randrange(SEED_LIMIT) if seed == -1 else seed,
        tokens=SpecialTokens(
            bool(values["quality_token"]), bool(values["duration_token"]), tuple(values["styles"] or ())
        ),
        models_folder=models_folder,
        preset=values["preset"] or "auto",
        quality=(values["quality"] or "Balanced").lower(),
        overrides=Overrides(
            **{name: None if values[name] in (AUTO, None) else values[name] for name in OVERRIDES},
            vram_gb=values["vram_gb"] or None,
        ),
        crf=_whole(values["crf"], "compression", 1, 51),
        embed_settings=bool(values["embed_settings"]),
    )
    chosen = {name: None if values[name] in (AUTO, None, "") else values[name] for name in ("steps", "window", "model")}
    if chosen["model"] is not None:
        check_model(chosen["model"], models_folder)
    chosen |= {name: _size(values[name], name) for name in ("width", "height")}
    chosen = {
        name: _whole(value, name, 1, 1000) if name in ("steps", "window") else value
        for name, value in chosen.items()
        if value is not None
    }
    return with_defaults(request, chosen)


def from_request(request: GenerationRequest, *, source: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the form shows for a request; the blocks and the words for every second are shown apart.

    Args:
        source: what the drop zone shall show; None: nothing.
    """
    overrides = {name: getattr(request.overrides, name) or AUTO for name in OVERRIDES}
    return {
        "mode": IMAGE if request.image else VIDEO if request.video else TEXT,
        "source": source,
        "prompt": request.timeline.global_prompt,
        "timeline": replace(request.timeline, global_prompt=""),
        "seconds": request.seconds or 8,
        "endless": request.seconds is None,
        "quality": (request.quality or "balanced").capitalize(),
        "width": request.width,
        "height": request.height,
        "seed": request.seed,
        "model": request.model,
        "preset": request.preset,
        "steps": str(request.steps),
        "window": str(request.window),
        "fit": request.fit,
        "styles": list(request.tokens.styles),
        "quality_token": request.tokens.quality,
        "duration_token": request.tokens.duration,
        "nearly_clean": request.nearly_clean,
        "vram_gb": request.overrides.vram_gb,
        "crf": request.crf,
        "embed_settings": request.embed_settings,
        **overrides,
    }


def check_model(model: Any, models_folder: Path | None) -> None:
    """Refuse a model that is neither a published one nor a folder of the models folder; nothing else is looked at.

    Raises:
        InputError: it is another; links inside the models folder may lead anywhere.
    """
    if model == DEMO or model in MODELS:
        return
    with contextlib.suppress(TypeError, ValueError):
        folder, named = (os.path.normpath(Path(p).absolute()) for p in (models_folder or DEFAULT_MODELS_FOLDER, model))
        if Path(named).is_relative_to(folder):
            return
    raise InputError(
        f"There is no model {str(model)[:80]!r} here; choose one of the list, or a folder inside the models folder."
    )


def legal_size(value: float) -> int:
    """The nearest multiple of 16 that a video can have."""
    return int(min(MAX_SIZE, max(MIN_SIZE, round(float(value) / SIZE_STEP) * SIZE_STEP)))


def shaped(shape: str, width: float, height: float, image: tuple[int, int] | None = None) -> tuple[int, int]:
    """A legal size of about the same area in another shape; `image` is the picture's (width, height)."""
    ratio = SHAPES.get(shape)
    if ratio is None:
        if image is None:
            return legal_size(width), legal_size(height)
        ratio = image[0] / image[1]
    area = float(width) * float(height)
    return legal_size((area * ratio) ** 0.5), legal_size((area / ratio) ** 0.5)


def _size(value: Any, name: str) -> int | None:
    """A typed size; nothing typed leaves it to the preset."""
    return legal_size(_whole(value, name, 1, 10**6)) if value else None


def _source(values: Mapping[str, Any], last_video: Path | None) -> tuple[Path | None, Path | None]:
    """(image, video) of the mode."""
    source, mode = values["source"] or {}, values["mode"]
    if mode == IMAGE:
        if source.get("kind") != "image":
            raise InputError(f"{IMAGE} needs an image: drop one into the box above the prompt, or choose {TEXT}.")
        return Path(source["path"]), None
    if mode == VIDEO:
        if source.get("kind") != "video":
            raise InputError(f"{VIDEO} needs a clip: drop one into the box above the prompt, or choose {TEXT}.")
        return None, Path(source["path"])
    if mode == LAST:
        if last_video is None:
            raise InputError(f"There is no last video yet; make one first, or choose {TEXT}.")
        return None, last_video
    return None, None


def _whole(value: Any, name: str, low: int, high: int) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"The {name} must be a whole number from {low} to {high}, not {value!r}.") from None
    if number != float(value) or not low <= number <= high:
        raise InputError(f"The {name} must be a whole number from {low} to {high}, not {value!r}.")
    return number
