"""What people add to a video, in its run's `labels.json`: a name, a star, whether it is the version to go on with."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from magi_lite.files import write_atomic
from quant.storage.files import parse_json, read_small

LABELS = "labels.json"
LABELS_VERSION = 1
NAME_LENGTH = 120
"""Characters that a video's own name may have."""


@dataclass(frozen=True)
class Labels:
    """What people add to a video."""

    name: str = ""
    starred: bool = False
    main: bool = False
    """Whether it stands for its versions, and is what "Continue last video" goes on from."""


def changed(labels: Labels, changes: Mapping[str, Any]) -> Labels:
    """Labels with some of them given anew; None leaves one as it is, and a name is one line of some length."""
    given = {key: value for key, value in changes.items() if value is not None}
    if isinstance(given.get("name"), str):
        given["name"] = " ".join(given["name"].split())[:NAME_LENGTH]
    return replace(labels, **given)


def read_labels(folder: Path) -> Labels:
    """A run's labels; what is damaged or of another version counts as none."""
    with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
        data = parse_json(read_small(folder / LABELS))
        name = data.get("name")
        return Labels(
            name[:NAME_LENGTH] if isinstance(name, str) else "", data.get("starred") is True, data.get("main") is True
        )
    return Labels()


def write_labels(folder: Path, labels: Labels) -> None:
    """Keep a run's labels.

    Raises:
        OutputError: the disk refuses.
    """
    data = {"version": LABELS_VERSION, **vars(labels)}
    write_atomic(folder / LABELS, json.dumps(data, indent=1).encode())
