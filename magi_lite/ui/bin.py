"""Folders of runs by their names, and the bin: the folder `.bin` beside them, into which a run is only renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from magi_lite.errors import InputError, OutputError
from magi_lite.files import output_errors, storage_errors
from magi_lite.project.folder import is_run, runs_in
from magi_lite.sentences import shown
from quant.storage.lock import FileLock

ENDING = 3.0
"""Seconds that a run which has just ended is waited for: its worker says so before it lets go of the folder."""


def run_named(folder: Path, name: str, where: str) -> Path:
    """The folder of the run of that name; `where` it was looked for, in words.

    Raises:
        InputError: there is none.
    """
    path = folder / Path(name).name
    if not name or name != path.name or name.startswith(".") or not is_run(path):
        raise InputError(f"There is no video {shown(name)} {where}.")
    return path


class Bin:
    """What was thrown away, and can be taken back until the bin is emptied.

    Args:
        runs: the folder of the runs.
    """

    def __init__(self, runs: Path) -> None:
        self._runs, self.folder = runs, runs / ".bin"

    def names(self) -> list[str]:
        """What it holds."""
        return runs_in(self.folder)

    def throw(self, run: Path) -> None:
        """Put a run's folder in.

        Raises:
            OutputError: it is being written, or the disk refuses.
        """
        _move(run, self.folder / run.name)

    def restore(self, name: str) -> None:
        """Take a run out.

        Raises:
            InputError: it is not there; OutputError: another one has its name by now.
        """
        _move(run_named(self.folder, name, "in the bin"), self._runs / name)

    def empty(self, names: Iterable[str] | None = None) -> int:
        """Delete runs for good, all of them or those named; how many.

        Raises:
            InputError: one is not there; OutputError: the disk refuses.
        """
        chosen = list(self.names() if names is None else names)
        for name in chosen:
            folder = run_named(self.folder, name, "in the bin")
            with output_errors(folder):
                folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
        return len(chosen)


def _move(source: Path, target: Path) -> None:
    with storage_errors():
        lock = FileLock(source / ".lock", source.name, patience=ENDING)
    try:
        if os.name == "nt":  # which renames no folder with an open file
            lock.release()
        with output_errors(target):
            target.parent.mkdir(exist_ok=True)
            if target.exists():
                raise OutputError(f"There is another {target.name}; rename its folder first.")
            source.rename(target)
    finally:
        lock.release()
