"""Small JSON files of named entries in the user's folder, kept between starts; lost, they are only written anew."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magi_lite.errors import MagiLiteError
from magi_lite.files import write_atomic
from quant.storage.files import parse_json, read_small

_LARGEST = 4 << 20
"""Bytes of a file; what it is read into takes thirty times as much."""


def data_file(name: str) -> Path | None:
    """A file in the user's folder for this program's data, or None where the user has no folder."""
    try:
        return Path.home() / ".local" / "share" / "magi_lite" / name
    except RuntimeError:
        return None


def read_entries(path: Path | None) -> dict[str, Any]:
    """Every entry by its name, the oldest first; none where the file cannot be read."""
    if path is None:
        return {}
    try:
        content = parse_json(read_small(path, _LARGEST))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_entries(path: Path, entries: Mapping[str, Any], most: int) -> None:
    """Keep the newest `most` entries; that the disk refuses is no reason to fail."""
    newest = dict(list(entries.items())[-most:])
    with contextlib.suppress(MagiLiteError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(newest, indent=1).encode())
