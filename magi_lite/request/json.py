"""Requests as JSON: strict both ways, so that what a video or a project carries can be trusted.

Every field is written. Reading refuses unknown keys and wrong kinds; missing keys take the request's defaults, so that
files of an earlier version of the program stay readable. What values make sense together is `request_checks`' affair.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from magi_lite.errors import InputError
from magi_lite.request.request import GenerationRequest, Overrides, SpecialTokens
from magi_lite.timeline import Timeline

VERSION = 1
_PATHS = ("image", "video", "models_folder", "out")
_NESTED = {"tokens": SpecialTokens, "overrides": Overrides}
_WHOLE = ("seconds", "width", "height", "steps", "window", "seed", "crf")
_SWITCHES = ("nearly_clean", "embed_settings")
_WORDS = ("fit", "shortcut", "image_prefix", "model", "preset", "quality")
_OPTIONAL = ("seconds", "quality", *_PATHS)


def request_to_json(request: GenerationRequest, *, paths: bool = True) -> dict[str, Any]:
    """A JSON-able dict that `request_from_json` reads back to an equal request.

    Args:
        paths: False leaves out where things lie on this computer, for a video that goes out into the world: of an image
            or clip only its name stays, of folders nothing.
    """
    data: dict[str, Any] = {"version": VERSION}
    for field in fields(GenerationRequest):
        data[field.name] = getattr(request, field.name)
    data["timeline"] = request.timeline.to_json()
    data["tokens"] = asdict(request.tokens) | {"styles": list(request.tokens.styles)}
    data["overrides"] = asdict(request.overrides)
    for name in _PATHS:
        data[name] = None if data[name] is None else str(data[name])
    if not paths:
        data["out"] = data["models_folder"] = None
        for name in ("image", "video", "model"):
            data[name] = None if data[name] is None else Path(data[name]).name
    return data


def request_from_json(data: dict[str, Any]) -> GenerationRequest:
    """Read what `request_to_json` wrote.

    Raises:
        InputError: another version, an unknown key, no timeline, or a value of the wrong kind.
        TimelineError: the timeline in it cannot be read.
    """
    if not isinstance(data, dict):
        raise InputError("Settings must be a JSON object; export some to see the form.")
    if data.get("version", VERSION) != VERSION:
        raise InputError(f"The settings have version {data['version']!r}; this program reads version {VERSION}.")
    values = {key: value for key, value in data.items() if key != "version"}
    _check_keys("settings", values, GenerationRequest)
    if "timeline" not in values:
        raise InputError("The settings have no timeline; export some to see the form.")
    values["timeline"] = Timeline.from_json(values["timeline"])
    for name, value in values.items():
        values[name] = _NESTED[name](**_nested(name, value)) if name in _NESTED else _plain(name, value)
    return GenerationRequest(**values)


def _nested(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"The setting {name!r} must be an object; export some settings to see the form.")
    _check_keys(name, value, _NESTED[name])
    if name == "overrides":
        for key, item in value.items():
            number = key in ("mlp_slice", "vram_gb")
            kinds = (int, float) if number else (str,)
            if item is not None and (isinstance(item, bool) or not isinstance(item, kinds)):
                raise InputError(f"The setting {key!r} must be {'a number' if number else 'a word'}, not {item!r}.")
        return value
    styles = value.get("styles", [])
    if not isinstance(styles, list) or not all(isinstance(style, str) for style in styles):
        raise InputError("The setting 'styles' must be a list of names.")
    for key in ("quality", "duration"):
        if not isinstance(value.get(key, True), bool):
            raise InputError(f"The setting {key!r} must be true or false, not {value[key]!r}.")
    return {**value, "styles": tuple(styles)}


def _plain(name: str, value: Any) -> Any:
    if value is None and name in _OPTIONAL:
        return None
    if name in _WHOLE and (isinstance(value, bool) or not isinstance(value, int)):
        raise InputError(f"The setting {name!r} must be a whole number, not {value!r}.")
    if name in _SWITCHES and not isinstance(value, bool):
        raise InputError(f"The setting {name!r} must be true or false, not {value!r}.")
    if name in (*_WORDS, *_PATHS) and not isinstance(value, str):
        raise InputError(f"The setting {name!r} must be text, not {value!r}.")
    return Path(value) if name in _PATHS else value


def _check_keys(what: str, data: dict[str, Any], cls: type) -> None:
    known = [field.name for field in fields(cls)]
    for key in data.keys() - set(known):
        raise InputError(f"The {what} have an unknown key {key!r}; known are {', '.join(known)}.")
