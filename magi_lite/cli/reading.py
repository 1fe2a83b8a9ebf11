"""The options of the command line: made of the request's table, and read back as keywords for the builder."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from magi_lite.errors import InputError
from magi_lite.files import is_file
from magi_lite.library import read_timeline
from magi_lite.request.options import Option
from magi_lite.request.request import OPTIONS
from magi_lite.timeline import Timeline
from magi_lite.timeline.text import parse


def add_options(parser: argparse._ActionsContainer, options: Iterable[Option]) -> None:
    """Add options as flags. None is what a flag that was not given leaves; values are text until the builder reads."""
    for option in options:
        if not option.option_string:
            continue
        about: dict[str, Any] = {"dest": option.name, "default": None}
        about["help"] = argparse.SUPPRESS if option.hidden else option.help
        if option.kind == "switch":
            about |= {"action": "store_const", "const": not option.inverse}
        elif option.kind == "names":
            about |= {"action": "append", "metavar": option.metavar or "NAME"}
        else:
            names = "{" + ",".join(map(str, option.choices)) + "}" if option.kind == "choice" else None
            usual = {"path": "PATH", "whole": "N", "number": "N"}.get(option.kind)
            about["metavar"] = option.metavar or names or option.unit.upper() or usual
        parser.add_argument(option.option_string, **about)


def options_given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, as keywords for `request.build`.

    Raises:
        InputError: the timeline's file cannot be read.
    """
    given = {name: getattr(arguments, name, None) for name in OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    timeline = given.get("timeline")
    if timeline:
        given["timeline"] = timeline_of(timeline)
    return given


def timeline_of(source: str) -> Timeline:
    """The timeline in a file of that name, or in shorthand."""
    if is_file(source):  # False of shorthand that is longer than a name can be, too
        return read_timeline(Path(source))
    if "[" not in source and "\n" not in source:
        raise InputError(f'There is no timeline file "{source[:200]}"; write shorthand as "[0s-2s: a cat walks]".')
    return parse(source)


def check_paths(arguments: argparse.Namespace) -> None:
    """Refuse a path that no file system can name.

    Raises:
        InputError: names the flag.
    """
    for name, value in vars(arguments).items():
        if isinstance(value, Path):
            written = name in OPTIONS and OPTIONS[name].written
            Option(kind="path", name=f"--{name.replace('_', '-')}", written=written).check(value)
