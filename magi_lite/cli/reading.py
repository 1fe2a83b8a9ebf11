"""What the options' words mean: sizes, timelines, settings."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import fields, replace
from pathlib import Path

from magi_lite.errors import InputError
from magi_lite.request.request import GenerationRequest, Overrides, SpecialTokens
from magi_lite.timeline import Timeline


def read_timeline(source: str | None, prompt: str, blend: int | None) -> Timeline:
    """A timeline from a file or from shorthand, with `prompt` in front of all its segments."""
    from magi_lite.timeline.text import parse

    timeline = Timeline()
    if source is not None:
        text = _file_text(source)
        if text is None and "[" not in source and "\n" not in source:
            raise InputError(f'There is no timeline file "{source}"; write shorthand as "[0s-2s: a cat walks]".')
        timeline = parse(source if text is None else text)
    if prompt:
        timeline = replace(timeline, global_prompt=prompt)
    return timeline if blend is None else replace(timeline, blend=blend)


def _file_text(source: str) -> str | None:
    """What a timeline file says; None where `source` is no file, as shorthand of any length is none."""
    path = Path(source)
    try:
        if not path.is_file():
            return None
    except (OSError, ValueError):  # longer than a name can be, or with characters that none has
        return None
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors put a mark in front
    except (OSError, UnicodeDecodeError):
        raise InputError(f"The timeline file {path} cannot be read; save it as UTF-8 text.") from None


def parse_size(text: str) -> tuple[int, int]:
    """ "720x480" to (720, 480)."""
    found = re.fullmatch(r"\s*(\d{1,5})\s*[x×]\s*(\d{1,5})\s*", text.lower(), re.ASCII)
    if found is None:
        raise InputError(f'The size "{text[:40]}" cannot be read; write WIDTHxHEIGHT, such as 720x720.')
    return int(found[1]), int(found[2])


def newer_words(arguments: argparse.Namespace, old: Timeline) -> Timeline:
    """What is said from now on: a timeline's words, or a prompt alone, or as before."""
    if arguments.timeline:
        return read_timeline(arguments.timeline, arguments.prompt or old.global_prompt, arguments.blend)
    newer = old if arguments.blend is None else replace(old, blend=arguments.blend)
    if arguments.prompt and arguments.prompt != old.global_prompt:
        newer = replace(newer, segments=(), global_prompt=arguments.prompt)
    return newer


def overrides_given(arguments: argparse.Namespace) -> dict[str, str | float]:
    """The placement and precision that options fix, by the names of `Overrides`."""
    given = {field.name: getattr(arguments, field.name, None) for field in fields(Overrides)}
    return {name: value for name, value in given.items() if value is not None}


def tokens_given(arguments: argparse.Namespace, held: SpecialTokens) -> SpecialTokens:
    """The special tokens that options leave of `held`; styles that are given take the place of its own."""
    return SpecialTokens(
        held.quality and not arguments.no_quality_token,
        held.duration and not arguments.no_duration_token,
        tuple(arguments.style) or held.styles,
    )


def read_settings_file(path: Path) -> GenerationRequest:
    """The request inside a video of ours, or in JSON as `info` prints it.

    Raises:
        InputError: the file holds no settings.
    """
    from magi_lite.request.json import request_from_json
    from magi_lite.video.writer import read_settings

    if path.suffix.lower() == ".json":
        try:
            settings = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError):
            raise InputError(f"{path} cannot be read as settings; write it with `info VIDEO > {path.name}`.") from None
    else:
        settings = read_settings(path)
    if settings is None:
        raise InputError(f"{path} carries no settings; only videos made by magi_lite with metadata on do.")
    return request_from_json(settings)
