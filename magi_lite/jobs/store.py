"""Where the queue lives between starts: one sqlite file, one row per job, settings beside them.

Memory holds all of it; the file follows. A file that cannot be written (locked by another program, a full disk) stops
nothing: what it lacks is written as soon as it can be. A file that is damaged is moved aside, what can still be read of
it is kept, and a new one is written from memory. Rows are plain text and numbers, requests JSON, changes transactions.
What sqlite would not notice is looked for first: a log that it would not read to its end, and things that are no files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from magi_lite.errors import OutputError
from magi_lite.jobs.wal import is_whole
from quant.storage.files import parse_json

log = logging.getLogger(__name__)
COLUMNS = {
    "id": "TEXT PRIMARY KEY", "position": "REAL NOT NULL", "state": "TEXT NOT NULL", "request": "TEXT NOT NULL",
    "project": "TEXT", "source": "TEXT", "from_chunk": "INTEGER", "error": "TEXT NOT NULL DEFAULT ''",
    "done": "INTEGER NOT NULL DEFAULT 0", "video": "TEXT", "created": "REAL NOT NULL", "started": "REAL",
    "ended": "REAL", "card": "TEXT NOT NULL DEFAULT ''", "deaths": "INTEGER NOT NULL DEFAULT 0",
}  # fmt: skip
LATER = ("card", "deaths")
"""Columns that files of earlier versions lack."""
WAIT = 0.2
"""Seconds that a write waits for a lock; the queue's callers wait with it."""
AGAIN = 1.0
"""Seconds after a write that failed before the next is tried."""
OPEN_PATIENCE = 30.0
"""Seconds that opening waits for another program to let go of the file."""
LONGEST = 8 << 20
"""Characters of a job, or of a setting; prompts have at most a megabyte, and what is longer would take gigabytes."""
_LOCKED = ("locked", "busy")
_BESIDE = ("-wal", "-shm", "-journal")
"""What sqlite keeps beside the file, by the end of its name."""


class Damage(Exception):
    """What is under the file's name is no queue."""


class Store:
    """Rows of jobs and named settings, safe to use from several threads.

    Attributes:
        damaged: where a damaged file was moved to; None: it was whole, or new.
        lost: whether jobs may be missing: the file was damaged, or there was none, or an empty one.

    Raises:
        OutputError: the folder cannot be used, or another program keeps the file locked.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._rows: dict[str, dict[str, Any]] = {}
        self._settings: dict[str, Any] = {}
        self._unwritten: set[tuple[str, str]] = set()
        """("jobs" or "settings", key) of what the file lacks."""
        self._failed_at = 0.0
        self._why = ""
        self._mending = False
        self.damaged: Path | None = None
        self.lost = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except (OSError, sqlite3.Error) as error:
            raise OutputError(f"The queue file {path} cannot be used ({error}); {_advice(error)}.") from None

    # --- opening

    def _open(self) -> None:
        try:
            self._look_at_files()
            try:
                self._connect(OPEN_PATIENCE)
            except sqlite3.OperationalError as error:
                if _is_damage(error) or any(word in str(error) for word in _LOCKED):
                    raise
                self._disconnect()
                self._connect(OPEN_PATIENCE, alone=True)  # a full disk has no room for what is kept beside the file
            self._read()
        except sqlite3.OperationalError as error:
            if _is_damage(error):
                self._replace(error)
            elif self._path.exists() and self._path.stat().st_size:
                raise
            else:  # a disk without room for a new file
                self._disconnect()
                self._fail(error)
                self.lost = True
        except OSError:
            raise
        except Exception as error:  # whatever a damaged file makes the library stumble over
            self._replace(error)

    def _look_at_files(self) -> None:
        """Move away what stands in the way of opening.

        Raises:
            Damage: the file is none, is not a database's, or its log would not be read to its end.
        """
        shared = self._path.with_name(self._path.name + "-shm")
        if os.path.lexists(shared) and not _is_usable(shared):  # it holds nothing that cannot be made again
            self._move("-shm", self._aside())
        there = [path for path in self._files() if os.path.lexists(path)]
        strange = [path for path in there if not _is_usable(path)]
        if strange:
            raise Damage(f"{strange[0].name} is no ordinary file, or not to be read and written")
        log_file = self._path.with_name(self._path.name + "-wal")
        logged = log_file.exists() and log_file.stat().st_size > 0
        if logged and not (self._path.exists() and is_whole(log_file)):
            raise Damage("its log is damaged, or belongs to a file that is gone")
        if self._path.exists() and self._path.stat().st_size and not logged:
            with self._path.open("rb") as file:
                if file.read(16) != b"SQLite format 3\0":
                    raise Damage("it is no database")

    def _files(self) -> list[Path]:
        return [self._path.with_name(self._path.name + end) for end in ("", *_BESIDE)]

    def _connect(self, patience: float = WAIT, *, alone: bool = False) -> None:
        """Args: alone: keep nothing on the disk beside the file, and let nobody else read it."""
        connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None, timeout=patience)
        self._connection = connection
        connection.row_factory = sqlite3.Row
        connection.text_factory = lambda text: text.decode("utf-8", "replace")
        if alone:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise Damage(str(found))
        self.lost |= not connection.execute("PRAGMA table_info(jobs)").fetchone()
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        connection.execute(f"CREATE TABLE IF NOT EXISTS jobs ({columns})")
        connection.execute("CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        present = {row["name"] for row in connection.execute("PRAGMA table_info(jobs)")}
        for name in LATER:
            if name not in present:
                connection.execute(f"ALTER TABLE jobs ADD COLUMN {name} {COLUMNS[name]}")
        settings = {row["name"] for row in connection.execute("PRAGMA table_info(settings)")}
        keys = [
            row["name"] for name in ("jobs", "settings")
            for row in connection.execute(f"PRAGMA table_info({name})") if row["pk"]
        ]  # fmt: skip
        if not present | set(LATER) >= set(COLUMNS) or not settings >= {"name", "value"} or keys != ["id", "name"]:
            raise Damage("it is the file of another program")
        connection.execute(f"PRAGMA busy_timeout={int(1000 * WAIT)}")

    def _read(self) -> None:
        assert self._connection
        for row in self._connection.execute(f"{_JOBS} ORDER BY position, created"):
            self._rows[_text(row["id"])] = dict(row)
        for row in self._connection.execute(_SETTINGS):
            self._settings[_text(row["name"])] = parse_json(_text(row["value"]))
        for table, read in (("jobs", self._rows), ("settings", self._settings)):
            if self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] != len(read):
                raise Damage(f"something in {table} cannot be read")

    def set_aside(self, unreadable: Iterable[str]) -> None:
        """Go on without these jobs, which nothing can be made of: the file is kept beside a new one."""
        with self._lock:
            for identity in unreadable:
                self._rows.pop(identity, None)
            try:
                self._replace(Damage("a job in it cannot be read"), salvage=False)
            except OSError as error:
                self._fail(error)

    def _replace(self, error: Exception, *, salvage: bool = True) -> None:
        """Move the file aside, keep what can be read of it, and write a new one from memory.

        Raises:
            OSError: it cannot be moved.
        """
        log.warning("the queue file %s is damaged (%s) and is moved aside", self._path, error)
        self._disconnect()
        aside = self._aside()
        for end in ("", *_BESIDE):
            self._move(end, aside)
        if salvage:
            self._salvage(aside)
        self.damaged, self.lost = aside, True
        self._unwritten |= {("jobs", key) for key in self._rows} | {("settings", key) for key in self._settings}
        mending, self._mending = self._mending, True
        try:
            self._connect()
            self.flush()
        except (OSError, sqlite3.Error) as why:  # a full disk: memory has all
            self._disconnect()
            self._fail(why)
        finally:
            self._mending = mending

    def _aside(self) -> Path:
        """A free name for a damaged file."""
        stamp, number = time.strftime("%Y%m%d-%H%M%S"), 0
        while any(self._path.parent.glob(f"{self._path.name}.damaged-{stamp}-{number}*")):
            number += 1
        return self._path.with_name(f"{self._path.name}.damaged-{stamp}-{number}")

    def _move(self, end: str, aside: Path) -> None:
        path = self._path.with_name(self._path.name + end)
        if end and not _is_usable(path):  # under a name at which sqlite does not look: a pipe would be waited for
            end = f".odd{end}"
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside.with_name(aside.name + end))

    def _salvage(self, aside: Path) -> None:
        """Rows that a damaged file still gives, from both of its ends; what memory knows already is newer."""
        if not aside.is_file():
            return
        try:
            connection = sqlite3.connect(f"{aside.absolute().as_uri()}?mode=ro", uri=True, timeout=WAIT)
        except sqlite3.Error:
            return
        connection.row_factory = sqlite3.Row
        connection.text_factory = lambda text: text.decode("utf-8", "replace")
        for order in ("rowid", "rowid DESC"):
            for row in _as_far_as_it_goes(connection, f"{_JOBS} ORDER BY {order}"):
                if set(COLUMNS) - set(LATER) <= row.keys() and isinstance(row["id"], str):
                    self._rows.setdefault(row["id"], row)
            for row in _as_far_as_it_goes(connection, f"{_SETTINGS} ORDER BY {order}"):
                with contextlib.suppress(ValueError, KeyError):
                    self._settings.setdefault(_text(row["name"]), parse_json(_text(row["value"])))
        connection.close()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    # --- reading

    def rows(self) -> list[dict[str, Any]]:
        """All jobs in queue order."""
        with self._lock:
            return sorted((dict(row) for row in self._rows.values()), key=_place)

    def setting(self, name: str, default: Any = None) -> Any:
        """A JSON value stored under `name`."""
        with self._lock:
            return self._settings.get(name, default)

    @property
    def trouble(self) -> str:
        """What keeps the file from being written, in one sentence; empty while it is up to date."""
        with self._lock:
            if not self._unwritten:
                return ""
            return (
                f"The queue cannot be saved to {self._path.name} just now ({self._why}); it goes on, and is saved as "
                "soon as that is possible. Do not end the app before."
            )

    # --- writing

    def put(self, row: dict[str, Any]) -> None:
        """Insert or replace one job; `row` has every name in `COLUMNS`."""
        with self._lock:
            self._rows[row["id"]] = dict(row)
            self._changed("jobs", row["id"])

    def delete(self, identity: str) -> None:
        """Forget a job."""
        with self._lock:
            self._rows.pop(identity, None)
            self._changed("jobs", identity)

    def set_setting(self, name: str, value: Any) -> None:
        """Keep a JSON value under `name`."""
        with self._lock:
            self._settings[name] = parse_json(json.dumps(value))
            self._changed("settings", name)

    def _changed(self, table: str, key: str) -> None:
        waiting = bool(self._unwritten) and time.monotonic() - self._failed_at < AGAIN
        self._unwritten.add((table, key))
        if not waiting:
            self.flush()

    def flush(self) -> bool:
        """Write what the file lacks; whether it is up to date then."""
        with self._lock:
            if not self._unwritten:
                return True
            try:
                if self._connection is None:
                    self._connect()
                self._write()
            except sqlite3.OperationalError as error:
                if _is_damage(error) or "readonly" in str(error):  # the file's own permission, or it was taken away
                    self._mend(error)
                else:
                    self._fail(error)
            except OSError as error:
                self._fail(error)
            except Exception as error:  # as in `_open`
                self._mend(error)
            return not self._unwritten

    def _mend(self, error: Exception) -> None:
        if self._mending:
            self._fail(error)
            return
        try:
            self._replace(error)
        except OSError as again:
            self._fail(again)

    def _fail(self, error: Exception) -> None:
        if not self._why:
            log.warning("the queue cannot be saved: %s", error)
        self._failed_at, self._why = time.monotonic(), str(error)

    def _write(self) -> None:
        """One transaction with all that is lacking."""
        connection = self._connection
        assert connection is not None
        names = ", ".join(COLUMNS)
        marks = ", ".join("?" * len(COLUMNS))
        anew = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS)
        put = f"INSERT INTO jobs ({names}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET {anew}"
        connection.execute("BEGIN IMMEDIATE")
        try:
            for table, key in sorted(self._unwritten):
                if table == "jobs" and key in self._rows:
                    row = self._rows[key]
                    values = [_storable(row.get(name, "" if name == "card" else 0)) for name in COLUMNS]
                    try:
                        connection.execute(put, values)
                    except (
                        sqlite3.IntegrityError,
                        sqlite3.InterfaceError,
                        sqlite3.ProgrammingError,
                        OverflowError,
                    ) as error:
                        if not self._mending:  # the table is not as ours are
                            raise
                        log.warning("a damaged job is left out of the queue: %s", error)  # only salvage brings such
                elif table == "jobs":
                    connection.execute("DELETE FROM jobs WHERE id = ?", (key,))
                else:
                    values = [key, json.dumps(self._settings[key])]
                    connection.execute("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", values)
            connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        self._unwritten.clear()
        self._why = ""

    def close(self) -> None:
        """Write what is lacking, if it can be, and let go of the file."""
        with self._lock:
            self.flush()
            self._disconnect()


_LENGTH = " + ".join(f"ifnull(length({name}), 0)" for name in COLUMNS if name not in LATER)
_JOBS = f"SELECT * FROM jobs WHERE typeof(id) = 'text' AND {_LENGTH} <= {LONGEST}"
_SETTINGS = f"SELECT * FROM settings WHERE ifnull(length(name), 0) + ifnull(length(value), 0) <= {LONGEST}"


def _text(value: Any) -> str:
    """Raises ValueError where a text is none."""
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} where a text is needed")
    return value


def _storable(value: Any) -> Any:
    """A value as sqlite takes it: names of files may hold bytes that are no text."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _is_usable(path: Path) -> bool:
    """Whether a path leads to an ordinary file that may be read and written."""
    try:
        return path.is_file() and os.access(path, os.R_OK | os.W_OK)
    except OSError:
        return False


def _advice(error: Exception) -> str:
    words = str(error)
    if any(word in words for word in _LOCKED):
        return "close the program that uses it, or choose another folder with --projects"
    if isinstance(error, PermissionError) or "readonly" in words or "unable to open" in words:
        return "make its folder one that may be written to, or choose another with --projects"
    return "free some space, or choose another folder with --projects"


def _place(row: dict[str, Any]) -> tuple[float, float]:
    """For sorting; what is no number stands first."""
    return tuple(value if isinstance(value, (int, float)) else 0.0 for value in (row["position"], row["created"]))  # type: ignore[return-value]


def _as_far_as_it_goes(connection: sqlite3.Connection, query: str) -> Iterable[dict[str, Any]]:
    with contextlib.suppress(sqlite3.Error, ValueError):  # what the error says may be damaged, too
        for row in connection.execute(query):
            yield dict(row)


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether an error is about the file's contents, and not about the lock or the disk."""
    words = str(error).lower()
    return any(
        mark in words for mark in ("malformed", "no such table", "no such column", "has no column", "not a database")
    )
