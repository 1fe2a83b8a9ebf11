"""Where a conversion works until it is complete: one folder beside OUT, for one process at a time.

OUT.partial/job.json        what is being converted, how; another job starts over
OUT.partial/lock            held by the process at work; the system frees it when that process dies
OUT.partial/records/*.json  one per finished, verified shard
OUT.partial/model/          the future OUT: shards appear under their names only when verified; manifest last
OUT.partial/unpacked/       shards that came compressed
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quant.errors import LockedError, QuantError
from quant.storage.files import is_leftover, parse_json, read_small, write_atomic
from quant.storage.lock import FileLock

_OURS = {"job.json", "job.json.unfinished", "lock", "records", "model", "unpacked"}


@contextmanager
def workplace(source: Path, target: Path) -> Iterator[Path]:
    """The folder to work in, ours alone meanwhile; removed again where nothing was done in it.

    Raises:
        QuantError: another process is at work there, it holds something else, or the disk refuses.
    """
    partial = target.with_name(target.name + ".partial")
    try:
        _check_free(partial, source)
        partial.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(partial / "lock", target.name)
        except LockedError as error:
            raise LockedError(
                f"Another process is converting to {target}; wait for it or choose another OUT."
            ) from error
        try:
            try:
                yield partial
            finally:
                _remove_if_unused(partial)
        finally:
            lock.release()
            if os.name == "nt":  # where no open file can be removed, the lock is what is left
                _remove_if_unused(partial)
    except OSError as error:
        what = f"{error.filename or target} cannot be read or written ({error.strerror})"
        raise QuantError(f"{what}; free some space or choose another OUT.") from error


def _check_free(partial: Path, source: Path) -> None:
    """Refuse to work where anything lies that is not ours."""
    there = {entry.name for entry in partial.iterdir()} if partial.is_dir() else set()
    strange = sorted(name for name in there - _OURS if not is_leftover(name))
    if strange or partial.is_file() or _is_inside(source, partial):
        what = f"holds {strange[0]}" if strange else "is the source" if partial.is_dir() else "is a file"
        raise QuantError(f"{partial} is needed for unfinished work but {what}; rename it or choose another OUT.")


def _is_inside(path: Path, folder: Path) -> bool:
    real = Path(os.path.realpath(path))
    return Path(os.path.realpath(folder)) in (real, *real.parents)


def _remove_if_unused(partial: Path) -> None:
    """A refused conversion leaves nothing behind; an interrupted one is kept, to go on."""
    if not (partial / "job.json").exists() and not any((partial / "unpacked").glob("*")):
        shutil.rmtree(partial, ignore_errors=True)


def start(partial: Path, job: dict[str, object]) -> None:
    """Continue this very job, or clear away another one's remains."""
    note = partial / "job.json"
    try:
        same = parse_json(read_small(note)) == job
    except (OSError, ValueError):
        same = False
    for folder in (partial / "model", partial / "records"):
        if not same and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        for entry in folder.iterdir():
            if is_leftover(entry.name):
                entry.unlink()
    write_atomic(note, json.dumps(job).encode())
