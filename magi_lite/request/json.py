"""Requests as JSON: strict both ways, so that what a video or a project carries can be trusted.

Every field is written. Reading refuses unknown keys and wrong kinds, as the options are declared; missing keys take the
request's defaults, so that files of an earlier version of the program stay readable. Whether values are legal is
`checks`' affair: what was legal once still opens.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from magi_lite.errors import InputError
from magi_lite.request.options import Option
from magi_lite.request.request import OPTIONS, PARTS, GenerationRequest
from magi_lite.sentences import shown
from magi_lite.timeline import Timeline
from magi_lite.timeline.edit import with_pictures

VERSION = 1


def request_to_json(request: GenerationRequest, *, paths: bool = True) -> dict[str, Any]:
    """A JSON-able dict that `request_from_json` reads back to an equal request.

    Args:
        paths: False leaves out where things lie on this computer, for a video that goes out into the world: of an image
            or clip only its name stays, of folders nothing.
    """
    data: dict[str, Any] = {"version": VERSION}
    for field in fields(GenerationRequest):
        data[field.name] = {} if field.name in PARTS else getattr(request, field.name)
    timeline = request.timeline
    if not paths:
        timeline = with_pictures(timeline, lambda s: replace(s, image=Path((s.image or Path()).name)))
    data["timeline"] = timeline.to_json()
    for option in OPTIONS.values():
        if option.field and option.kind != "timeline":
            value = option.of(request)
            if isinstance(value, Path):
                value = None if option.local and not paths else value.name if not paths else str(value)
            elif isinstance(value, tuple):
                value = list(value)
            (data[option.part] if option.part else data)[option.field] = value
    if not paths:
        data["model"] = Path(request.model).name
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
        raise InputError(f"The settings have version {shown(data['version'])}; this program reads version {VERSION}.")
    values = {key: value for key, value in data.items() if key != "version"}
    _check_keys("settings", values, GenerationRequest)
    if "timeline" not in values:
        raise InputError("The settings have no timeline; export some to see the form.")
    values["timeline"] = Timeline.from_json(values["timeline"])
    for part, cls in PARTS.items():
        if part in values:
            if not isinstance(values[part], dict):
                raise InputError(f"The setting {part!r} must be an object; export some settings to see the form.")
            _check_keys(part, values[part], cls)
            values[part] = cls(**_read(part, values[part]))
    return GenerationRequest(**_read("", values))


def _read(part: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values of one object, each in its option's kind."""
    mine = {option.field: option for option in OPTIONS.values() if option.part == part}
    return {name: _value(mine[name], value) if name in mine else value for name, value in values.items()}


def _value(option: Option, value: Any) -> Any:
    if option.kind == "timeline" or (value is None and option.optional):
        return value
    called = f"The setting {option.field!r}"
    if option.kind == "names":
        value = tuple(value) if isinstance(value, list) else value
    elif option.kind in ("path", "choice"):
        if not isinstance(value, str):
            raise option.not_of_kind(value, called)
        value = Path(value) if option.kind == "path" else value
    option.check_kind(value, called)
    return value


def _check_keys(what: str, data: dict[str, Any], cls: type) -> None:
    known = [field.name for field in fields(cls)]
    for key in data.keys() - set(known):
        raise InputError(f"The {what} have an unknown key {shown(key)}; known are {', '.join(known)}.")
