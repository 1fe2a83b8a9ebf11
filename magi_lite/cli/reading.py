"""What the options' words mean: sizes and timelines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from magi_lite.errors import InputError
from magi_lite.timeline import Timeline


def read_timeline(source: str | None, prompt: str, blend: int | None) -> Timeline:
    """A timeline from a file or from shorthand, with `prompt` in front of all its segments."""
    from magi_lite.timeline_text import parse

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
    width, separator, height = text.lower().replace("×", "x").partition("x")
    if not separator or not width.strip().isdigit() or not height.strip().isdigit():
        raise InputError(f'The size "{text}" cannot be read; write WIDTHxHEIGHT, such as 720x720.')
    return int(width), int(height)
