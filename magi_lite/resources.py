"""Where the files that come with the program are, in a checkout and in an installed package alike."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

_PACKAGE = Path(str(files("magi_lite")))
_INSTALLED_PRESETS = _PACKAGE / "presets"


def presets_folder() -> Path:
    """Machine profiles, example timelines and the demo model: `presets/`, in a wheel `magi_lite/presets`."""
    return _INSTALLED_PRESETS if _INSTALLED_PRESETS.is_dir() else _PACKAGE.parent / "presets"


def home_folder() -> Path:
    """Where `models/` and `outputs/` are by default: the checkout, or for an installed package the current folder."""
    return Path() if _INSTALLED_PRESETS.is_dir() else _PACKAGE.parent
