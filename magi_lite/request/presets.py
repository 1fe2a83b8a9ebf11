"""Machine profiles: one TOML file each, holding only what differs from the planner's own choice.

A preset names a card's memory, a default size, and three qualities (draft, balanced, quality) with their steps, window,
size and fixed choices. Format: see `presets/24gb.toml`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from magi_lite.errors import PresetError
from magi_lite.request.request import Overrides
from magi_lite.resources import presets_folder

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

FOLDER = presets_folder()
QUALITIES = ("draft", "balanced", "quality")
DEFAULT_QUALITY = "balanced"
LEGAL: dict[str, tuple[Any, ...]] = {
    "device": ("cuda", "cpu"),
    "scheme": ("float32", "bf16", "fp8", "int8", "nf4", "published"),
    "layers": ("resident", "streamed"),
    "kv_dtype": ("float32", "bf16", "fp8"),
    "kv_place": ("device", "pinned"),
    "vae": ("resident", "swapped", "decoder", "cpu"),
    "t5": ("float32", "bf16", "int8", "nf4"),
    "t5_device": ("cuda", "cpu"),
    "attention": ("auto", "sdpa", "flash", "sage"),
}
"""Legal values of the choices that are words."""


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
        return {"width": self.width, "height": self.height, "steps": self.steps, "window": self.window}


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
        raise PresetError(f'Preset "{self.name}" has no quality "{name}"; choose draft, balanced or quality.')


def names(folder: Path | None = None) -> tuple[str, ...]:
    """Names of all presets, the largest card first, then CPU and demo."""
    presets = [load(path.stem, folder) for path in sorted((folder or FOLDER).glob("*.toml"))]
    return tuple(p.name for p in sorted(presets, key=lambda p: (-p.vram_gb, p.model == "demo", p.name)))


def load(name: str, folder: Path | None = None) -> Preset:
    """Read a preset by its name ("12gb").

    Raises:
        PresetError: it does not exist, cannot be read, or holds a value that is not legal.
    """
    return _read((folder or FOLDER) / f"{_plain(name)}.toml", name)


def for_memory(vram_gb: float) -> Preset:
    """The preset for a card with `vram_gb` GiB: the largest one that is not larger (5 % tolerance); 0: the CPU's."""
    fitting = [p for p in map(load, names()) if 0 < p.vram_gb <= vram_gb * 1.05]
    return max(fitting, key=lambda p: p.vram_gb) if fitting else load("cpu")


def _plain(name: str) -> str:
    """A name as a file's stem: "12 GB" and "12GB" are "12gb"."""
    plain = re.sub(r"[^a-z0-9_-]", "", name.lower())
    if not plain:
        raise PresetError(f'"{name}" is not the name of a preset; choose one of {_known()}.')
    return plain


def _known() -> str:
    return ", ".join(sorted(path.stem for path in FOLDER.glob("*.toml")))


@cache
def _read(path: Path, name: str) -> Preset:
    if not path.is_file():
        raise PresetError(f'No preset is called "{name}"; choose auto or one of {_known()}.')
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PresetError(
            f"The preset file {path.name} is not valid TOML ({error}); correct or remove it."
        ) from error
    shared = table.get("all", {})
    return Preset(
        name=path.stem,
        title=str(table.get("title", path.stem)),
        description=str(table.get("description", "")),
        vram_gb=_number(table, "vram_gb", path),
        model=str(table.get("model", "4.5B-distill")),
        qualities=tuple(_quality(quality, {**shared, **table.get(quality, {})}, path) for quality in QUALITIES),
    )


def _quality(name: str, table: dict[str, Any], path: Path) -> Quality:
    settings = {"width", "height", "steps", "window"}
    choices = {f.name for f in fields(Overrides)}
    for key, value in table.items():
        if key not in settings | choices:
            raise PresetError(
                f'{path.name}: "{key}" is not a setting; use {", ".join(sorted(settings | choices))}.'
            )
        if key in LEGAL and value not in LEGAL[key]:
            raise PresetError(
                f'{path.name}: {key} = "{value}" is not legal; use one of {", ".join(LEGAL[key])}.'
            )
    numbers = {key: int(_number(table, key, path)) for key in sorted(settings)}
    if numbers["window"] not in (1, 2, 4) or numbers["steps"] % numbers["window"]:
        raise PresetError(
            f"{path.name}: window must be 1, 2 or 4 and divide the {numbers['steps']} steps of {name}."
        )
    if numbers["width"] % 16 or numbers["height"] % 16 or min(numbers["width"], numbers["height"]) < 32:
        raise PresetError(f"{path.name}: width and height of {name} must be multiples of 16 from 32 up.")
    return Quality(name, **numbers, overrides=Overrides(**{key: table[key] for key in choices & table.keys()}))


def _number(table: dict[str, Any], key: str, path: Path) -> float:
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise PresetError(f"{path.name}: {key} must be a number from 0 up, not {value!r}.")
    return value
