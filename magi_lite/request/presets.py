"""Machine profiles: one TOML file each, holding only what differs from the planner's own choice.

A preset names a card's memory, a default size, and three qualities (draft, balanced, quality) with their steps, window,
size and fixed choices. Format: see `presets/24gb.toml`.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from magi_lite.errors import InputError, PresetError
from magi_lite.request.request import OPTIONS, QUALITIES, WINDOWS, Overrides, windows_of
from magi_lite.resources import presets_folder
from magi_lite.sentences import either, shown, whole_characters
from magi_lite.text_files import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = presets_folder()
CPU = "cpu"
"""The preset of machines without a card."""
_LARGEST = 1 << 20
"""Bytes of a preset's file."""
_LONGEST_NAME = 200
DEFAULT_QUALITY = "balanced"
SETTINGS = ("width", "height", "steps", "window")
"""Fields of the request that a preset fills in."""


@dataclass(frozen=True)
class Quality:
    """One of the three qualities of a preset: settings of the request, and what it fixes for the planner."""

    name: str
    width: int
    height: int
    steps: int
    window: int
    overrides: Overrides = field(default_factory=Overrides)

    def settings(self) -> dict[str, int]:
        """The request's fields that this quality sets, for `dataclasses.replace`."""
        return {name: getattr(self, name) for name in SETTINGS}


@dataclass(frozen=True)
class Preset:
    """A machine profile."""

    name: str
    title: str
    description: str
    vram_gb: float
    """Memory of the card it is made for; 0 for a CPU."""
    model: str
    """The model that it is made for."""
    qualities: tuple[Quality, ...]

    def quality(self, name: str | None = None) -> Quality:
        """The quality called `name`; None: balanced.

        Raises:
            PresetError: there is none.
        """
        for quality in self.qualities:
            if quality.name == (name or DEFAULT_QUALITY):
                return quality
        raise PresetError(f'Preset "{self.name}" has no quality {shown(name)}; choose {either(QUALITIES)}.')


def names(folder: Path | None = None) -> tuple[str, ...]:
    """Names of all presets, the largest card first, then CPU and demo."""
    presets = [load(path.stem, folder) for path in sorted((folder or FOLDER).glob("*.toml"))]
    return tuple(p.name for p in sorted(presets, key=lambda p: (-p.vram_gb, p.model == "demo", p.name)))


def load(name: str, folder: Path | None = None) -> Preset:
    """Read a preset by its name ("12gb").

    Raises:
        PresetError: it does not exist, cannot be read, or holds a value that is not legal.
    """
    plain = _plain(name)
    return _read((folder or FOLDER) / f"{plain}.toml", whole_characters(name))


def for_memory(vram_gb: float) -> Preset:
    """The preset for a card with `vram_gb` GiB: the largest one that is not larger (5 % tolerance); 0: the CPU's."""
    fitting = [p for p in map(load, names()) if 0 < p.vram_gb <= vram_gb * 1.05]
    return max(fitting, key=lambda p: p.vram_gb) if fitting else load(CPU)


def _plain(name: str) -> str:
    """A name as a file's stem: "12 GB" and "12GB" are "12gb"."""
    plain = re.sub(r"[^a-z0-9_-]", "", name.lower())
    if not plain or len(plain) > _LONGEST_NAME:
        written = whole_characters(name[:60])
        raise PresetError(f'"{written}" is not the name of a preset; choose one of {_known()}.')
    return plain


def _known() -> str:
    return ", ".join(sorted(path.stem for path in FOLDER.glob("*.toml")))


@cache
def _read(path: Path, name: str) -> Preset:
    if not path.is_file():
        raise PresetError(f'No preset is called "{name}"; choose auto or one of {_known()}.')
    try:
        table = tomllib.loads(read_text(path, _LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise PresetError(f"The preset file {path.name} is not valid TOML ({reason}); correct or remove it.") from error
    for part in ("all", *QUALITIES):
        if not isinstance(table.get(part, {}), dict):
            raise PresetError(f"{path.name}: {part} must be a table of settings such as [{part}], not a value.")
    vram_gb = table.get("vram_gb")
    if isinstance(vram_gb, bool) or not isinstance(vram_gb, int | float) or not 0 <= vram_gb < math.inf:
        raise PresetError(f"{path.name}: vram_gb must be a number from 0 up, not {shown(vram_gb)}.")
    shared = table.get("all", {})
    return Preset(
        name=path.stem,
        title=str(table.get("title", path.stem)),
        description=str(table.get("description", "")),
        vram_gb=vram_gb,
        model=str(table.get("model", "4.5B-distill")),
        qualities=tuple(_quality(quality, {**shared, **table.get(quality, {})}, path) for quality in QUALITIES),
    )


def _quality(name: str, table: dict[str, Any], path: Path) -> Quality:
    """One quality of a preset; its values are checked as those of a request are."""
    choices = {option.name: option for option in OPTIONS.values() if option.part == "overrides"}
    allowed = {key: OPTIONS[key] for key in SETTINGS} | choices
    for key, value in table.items():
        if key not in allowed:
            raise PresetError(f"{path.name}: {shown(key)} is not a setting; use {', '.join(sorted(allowed))}.")
        option = allowed[key]
        if option.kind == "choice" and value not in option.choices:
            raise PresetError(f"{path.name}: {key} = {shown(value)} is not legal; use {either(option.choices)}.")
        if option.kind == "whole" and (isinstance(value, bool) or not isinstance(value, int)):
            raise PresetError(f"{path.name}: {key} must be a number, not {shown(value)}.")
    for key in SETTINGS:
        if key not in table:
            raise PresetError(f"{path.name}: {name} has no {key}; write it there or under [all].")
    if table["window"] not in WINDOWS or table["window"] not in windows_of(table["steps"]):
        raise PresetError(
            f"{path.name}: window must be {either(WINDOWS)} and divide the {table['steps']} steps of {name}."
        )
    for key, value in table.items():
        try:
            allowed[key].check(value)
        except InputError as error:
            beyond = "; width and height are multiples of 16" if key in ("width", "height") else ""
            raise PresetError(f"{path.name}: {str(error).rstrip('.')}{beyond}.") from None
    return Quality(
        name,
        **{key: table[key] for key in SETTINGS},
        overrides=Overrides(**{key: table[key] for key in choices.keys() & table.keys()}),
    )
