"""Where a conversion works until it is complete: one folder beside OUT, for one process at a time.

    OUT.partial/job.json        what is being converted, how; another job starts over
    OUT.partial/lock            held by the process at work; the system frees it when that process dies
    OUT.partial/records/*.json  one per finished, verified shard
    OUT.partial/model/          the future OUT: shards appear under their names only when verified; manifest last
    OUT.partial/unpacked/       shards that came compressed
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quant.errors import QuantError

_OURS = {"job.json", "job.json.unfinished", "lock", "records", "model", "unpacked"}
_PIECE = 1 << 22


@contextmanager
def workplace(source: Path, target: Path) -> Iterator[Path]:
    """The folder to work in, ours alone meanwhile; removed again where nothing was done in it.

    Raises:
        QuantError: another process is at work there, it holds something else, or the disk refuses.
    """
    partial = target.with_name(target.name + ".partial")
    strange = sorted({entry.name for entry in partial.iterdir()} - _OURS) if partial.is_dir() else []
    if strange or partial.is_file() or _is_inside(source, partial):
        what = f"holds {strange[0]}" if strange else "is the source" if partial.is_dir() else "is a file"
        raise QuantError(f"{partial} is needed for unfinished work but {what}; rename it or choose another OUT.")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        handle = os.open(partial / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle, target)
            try:
                yield partial
            finally:
                _remove_if_unused(partial)
        finally:
            os.close(handle)
            if os.name == "nt":  # where no open file can be removed, the lock is what is left
                _remove_if_unused(partial)
    except OSError as error:
        what = f"{error.filename or target} cannot be read or written ({error.strerror})"
        raise QuantError(f"{what}; free some space or choose another OUT.") from error


def _is_inside(path: Path, folder: Path) -> bool:
    return folder.resolve() in (path.resolve(), *path.resolve().parents)


def _lock(handle: int, target: Path) -> None:
    """Take the lock or say at once that it is taken."""
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise QuantError(f"Another process is converting to {target}; wait for it or choose another OUT.") from error


def _remove_if_unused(partial: Path) -> None:
    """A refused conversion leaves nothing behind; an interrupted one is kept, to go on."""
    if not (partial / "job.json").exists() and not any((partial / "unpacked").glob("*")):
        shutil.rmtree(partial, ignore_errors=True)


def start(partial: Path, job: dict[str, object]) -> None:
    """Continue this very job, or clear away another one's remains."""
    note = partial / "job.json"
    try:
        same = json.loads(note.read_text(encoding="utf-8")) == job
    except (OSError, ValueError):
        same = False
    for folder in ("model", "records"):
        if not same and (partial / folder).exists():
            shutil.rmtree(partial / folder)
        (partial / folder).mkdir(exist_ok=True)
    write_atomically(note, json.dumps(job))


# --- files that are whole or absent ----------------------------------------------------------------------------------


def write_atomically(path: Path, text: str) -> None:
    """A small file that appears complete, and survives a loss of power."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    sync_file(unfinished)
    unfinished.replace(path)


def sync_file(path: Path) -> None:
    """Bring a file to the disk, and have the next reader read it from there, where the system can be asked to."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync_folder(path: Path) -> None:
    """Make renames durable; Windows cannot open folders and needs no such thing."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Of a whole file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_PIECE):
            digest.update(block)
    return digest.hexdigest()
