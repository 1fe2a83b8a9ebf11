"""Settings that a file carries, which somebody else may have written: bounded, checked value by value, never followed.

A file may come from anywhere, so nothing that it names is touched but a picture or clip whose content is that of the
one the settings were made with, and nothing on another computer at all.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from magi_lite.errors import InputError
from magi_lite.request import presets
from magi_lite.request.checks import check_prompts, check_values
from magi_lite.request.json import request_from_json
from magi_lite.request.request import OPTIONS, GenerationRequest
from magi_lite.sentences import has_half_character, shown
from quant.storage.files import parse_json

LIMIT_BYTES = 1_000_000
"""Of settings in a file; those of a timeline with thousands of blocks stay below it."""
_MODEL = re.compile(r"[\w.+~@ /\\:-]+")


def settings_from_text(text: str) -> GenerationRequest:
    """The request in JSON text; see `settings_from_data`."""
    if len(text) > LIMIT_BYTES:
        raise InputError(f"The settings have {len(text)} characters; {LIMIT_BYTES} is the most that is read.")
    try:
        data = parse_json(text)
    except (ValueError, RecursionError):
        raise InputError("The settings are not JSON; write them with `info VIDEO > settings.json`.") from None
    return settings_from_data(data)


def settings_from_data(data: Any) -> GenerationRequest:
    """The request in settings that were read from a file, every value of it legal.

    Places on the computer where they were written (folders, output) are dropped.

    Raises:
        InputError: (or TimelineError, PresetError) one sentence about the first value that cannot be used.
    """
    request = request_from_json(data)
    for option in OPTIONS.values():
        if option.field and option.kind in ("path", "text"):
            _refuse_network(option.name, str(option.of(request)))
    for segment in request.timeline.segments:
        _refuse_network("a block's picture", str(segment.image or ""))
    if not _MODEL.fullmatch(request.model):
        raise InputError(f"The settings name a model {shown(request.model)}, which is not the name of one.")
    request = replace(request, models_folder=None, out=None)
    check_values(request)
    if request.preset != "auto":
        presets.load(request.preset)
    check_prompts(request)
    _refuse_half_characters(request)
    return request


def check_source_is_known(request: GenerationRequest) -> None:
    """Refuse settings that start from a file without saying what is in it: another file may have its name by now.

    Raises:
        InputError: names the option that gives the file.
    """
    for name, what in (("image", "picture"), ("video", "clip")):
        path = getattr(request, name)
        if path is not None and request.source_sha256 is None:
            raise InputError(
                f"The settings start from the {what} {path.name} without saying what is in it; "
                f"give the file with {OPTIONS[name].called}."
            )
    for segment in request.timeline.segments:
        if segment.image is not None and segment.image_sha256 is None:
            raise InputError(
                f"The block at {segment.start} s starts from the picture {segment.image.name} without saying what is "
                "in it; give a timeline that names the file with --timeline."
            )


def _refuse_network(name: str, value: str) -> None:
    if value.startswith(("\\\\", "//", "\\/", "/\\")):
        raise InputError(f"The settings name {shown(value)} on another computer as {name}; give it by hand instead.")


def _refuse_half_characters(request: GenerationRequest) -> None:
    """Names that no page can be sent; prompts and presets have their own checks."""
    for name in ("image", "video", "source_sha256"):
        value = str(getattr(request, name))
        if has_half_character(value):
            raise InputError(f"The settings name {shown(value)} as {name}, which is no text; give it by hand instead.")
