"""What was found out about a card by trying, kept between starts.

One small JSON file in the user's folder. An entry's name says all that the finding hangs on (card, driver, PyTorch,
package), so that a change of any of them asks anew. What cannot be read is as if it were not there, and is written
anew. No torch: the app's server shows what workers have found.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from magi_lite.kept import data_file, read_entries, write_entries

FILE: Path | None = None
"""Where it is kept; None: in the user's folder for this program's data."""
MOST = 128
"""Findings that are kept, the newest."""
Finding = dict[str, Any]


def file() -> Path | None:
    """The file, or None where the user has no folder."""
    return FILE or data_file("findings.json")


def known() -> dict[str, Finding]:
    """Every finding by its name, the oldest first."""
    return {name: entry for name, entry in read_entries(file()).items() if isinstance(entry, dict)}


def find(name: str, ask: Callable[[], Finding | None]) -> Finding | None:
    """The finding of this name, kept from an earlier start or asked for now.

    Args:
        ask: finds out; None: nothing that could be kept.
    """
    kept = known().get(name)
    if kept is not None:
        return kept
    found, path = ask(), file()
    if found is not None and path is not None:
        write_entries(path, {**known(), name: found}, MOST)
    return found


def _kernels() -> str:
    try:
        return f"kernels refused, triton {metadata.version('triton')}"
    except metadata.PackageNotFoundError:
        return "kernels refused, triton"


def refuse_kernels(identity: str, problem: str) -> None:
    """Keep that our Triton kernels failed their trial on a card (`devices.identity`), and why."""
    find(f"{_kernels()}, {identity}", lambda: {"fault": problem[:200]})


def kernels_serve(card: str) -> bool:
    """Whether our Triton kernels serve on this machine's card of that name: Triton is there, and no trial failed."""
    if importlib.util.find_spec("triton") is None:
        return False
    return not any(name.startswith(f"{_kernels()}, {card}, ") for name in known())
