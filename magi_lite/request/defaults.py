"""What a request is filled up with: the preset that fits this machine, and its size, steps, window and model.

Where neither the preset's weights nor any other are on this disk, the demo model stands in, so that a first run works
without a download.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from magi_lite.errors import CheckpointError, MagiLiteError
from magi_lite.machine.cards import Device
from magi_lite.machine.devices import detect
from magi_lite.models import MODELS
from magi_lite.request import presets
from magi_lite.request.presets import Preset
from magi_lite.request.request import GenerationRequest
from magi_lite.weights.layout import family_settings, find_model

DEMO = "demo"
PREFERRED_MODELS = ("4.5B-distill-fp8", "4.5B-distill", "4.5B-base", "24B-distill-fp8", "24B-distill", "24B-base")
"""Published models in the order in which a machine with several would want them."""


def models_on_disk(models_folder: Path | None = None) -> tuple[str, ...]:
    """Names of the published models whose files are complete, the preferred one first."""
    found = []
    for name in PREFERRED_MODELS:
        try:
            find_model(name, models_folder)
        except CheckpointError:
            continue
        found.append(name)
    return tuple(found)


def choose_preset(name: str, device: Device | None = None, models_folder: Path | None = None) -> Preset:
    """The preset called `name`; "auto": the one for this machine, or the demo's where no weights are on the disk.

    Raises:
        PresetError: no preset of that name.
    """
    if name != "auto":
        return presets.load(name)
    if not models_on_disk(models_folder):
        return presets.load(DEMO)
    return preset_of(device or detect())


def preset_of(device: Device) -> Preset:
    """The preset for a machine."""
    return presets.for_memory(device.vram_gb if device.kind == "cuda" else 0)


def choose_model(preset: Preset, models_folder: Path | None = None) -> str:
    """The preset's model, or the nearest one on the disk; its own where none is, so that it is asked for."""
    if preset.model not in MODELS:
        return preset.model
    present = models_on_disk(models_folder)
    return preset.model if preset.model in present or not present else present[0]


def with_defaults(
    request: GenerationRequest, chosen: dict[str, Any], device: Device | None = None
) -> GenerationRequest:
    """Fill a request from its preset.

    Args:
        request: its preset, quality and models folder are read.
        chosen: width, height, steps, window and model as far as the user chose them; they win.
        device: the machine; None: this one.

    Raises:
        PresetError: no preset or quality of that name.
    """
    named = chosen.get("model")
    if named is None or request.preset != "auto":
        preset = choose_preset(request.preset, device, request.models_folder)
    else:
        preset = presets.load(DEMO) if named == DEMO else preset_of(device or detect())
    settings: dict[str, Any] = {
        **preset.quality(request.quality).settings(),
        "model": named or choose_model(preset, request.models_folder),
    }
    steps = own_steps(settings["model"], request.models_folder)
    if steps is not None:
        settings["steps"] = steps
    return replace(request, preset=preset.name, **{**settings, **chosen})


def own_steps(model: str, models_folder: Path | None = None) -> int | None:
    """Steps of a model that was not distilled, whatever a preset says; None: the preset's few steps will do."""
    try:
        files = find_model(model, models_folder)
    except MagiLiteError:  # not here: said with all that is missing when it is loaded
        family = MODELS.get(model)
        return None if family is None or family.distilled else family_settings(family).steps
    return None if files.distilled else files.sampler.steps
