"""What was found out about a card by trying, kept between starts.

One small JSON file in the user's folder. An entry's name says all that the finding hangs on (card, driver, PyTorch,
package), so that a change of any of them asks anew. What cannot be read is as if it were not there, and is written
anew. No torch: the app's server shows what workers have found.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from magi_lite.errors import MagiLiteError
from magi_lite.files import write_atomic
from quant.storage.files import parse_json

FILE: Path | None = None
"""Where it is kept; None: in the user's folder for this program's data."""
MOST = 128
"""Findings that are kept, the newest."""
Finding = dict[str, Any]


def file() -> Path | None:
    """The file, or None where the user has no folder."""
    if FILE is not None:
        return FILE
    try:
        return Path.home() / ".local" / "share" / "magi_lite" / "findings.json"
    except RuntimeError:
        return None


def known() -> dict[str, Finding]:
    """Every finding by its name, the oldest first."""
    path = file()
    if path is None:
        return {}
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {name: entry for name, entry in entries if isinstance(entry, dict)}


def find(name: str, ask: Callable[[], Finding | None]) -> Finding | None:
    """The finding of this name, kept from an earlier start or asked for now.

    Args:
        ask: finds out; None: nothing that could be kept.
    """
    kept = known().get(name)
    if kept is not None:
        return kept
    found, path = ask(), file()
    if found is None or path is None:
        return found
    newest = dict(list({**known(), name: found}.items())[-MOST:])
    with contextlib.suppress(MagiLiteError, OSError):  # it can be found out again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(newest, indent=1).encode())
    return found
