"""Where the queue lives between starts: one sqlite file, one row per job, settings beside them.

Memory holds all of it; the file follows. A file that cannot be written (locked by another program, a full disk) stops
nothing: what it lacks is written as soon as it can be. A file that is damaged is moved aside, what can still be read of
it is kept, and a new one is written from memory. Rows are plain text and numbers, requests JSON, changes transactions.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from magi_lite.errors import OutputError
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


class Store:
    """Rows of jobs and named settings, safe to use from several threads.

    Attributes:
        damaged: where a damaged file was moved to; None: it was whole, or new.

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
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except (OSError, sqlite3.OperationalError) as error:
            raise OutputError(
                f"The queue file {path} cannot be used ({error}); close the program that uses it, or choose another "
                "folder with --projects."
            ) from None

    # --- opening

    def _open(self) -> None:
        try:
            self._connect(OPEN_PATIENCE)
            self._read()
        except sqlite3.OperationalError as error:
            if _is_damage(error):
                self._replace(error)
            else:
                raise
        except sqlite3.DatabaseError as error:
            self._replace(error)

    def _connect(self, patience: float = WAIT) -> None:
        if self._path.is_dir():
            raise sqlite3.DatabaseError("it is a folder")
        connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None, timeout=patience)
        self._connection = connection
        connection.row_factory = sqlite3.Row
        connection.text_factory = lambda text: text.decode("utf-8", "replace")
        connection.execute("PRAGMA journal_mode=WAL")
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(str(found))
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        connection.execute(f"CREATE TABLE IF NOT EXISTS jobs ({columns})")
        connection.execute("CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        present = {row["name"] for row in connection.execute("PRAGMA table_info(jobs)")}
        for name in LATER:
            if name not in present:
                connection.execute(f"ALTER TABLE jobs ADD COLUMN {name} {COLUMNS[name]}")
        settings = {row["name"] for row in connection.execute("PRAGMA table_info(settings)")}
        if not present | set(LATER) >= set(COLUMNS) or not settings >= {"name", "value"}:
            raise sqlite3.DatabaseError("it is the file of another program")
        connection.execute(f"PRAGMA busy_timeout={int(1000 * WAIT)}")

    def _read(self) -> None:
        assert self._connection
        for row in self._connection.execute("SELECT * FROM jobs ORDER BY position, created"):
            self._rows[row["id"]] = dict(row)
        for row in self._connection.execute("SELECT * FROM settings"):
            with contextlib.suppress(ValueError):
                self._settings[row["name"]] = parse_json(row["value"])

    def _replace(self, error: Exception) -> None:
        """Move the file aside, keep what can be read of it, and write a new one from memory."""
        log.warning("the queue file %s is damaged (%s) and is moved aside", self._path, error)
        self._salvage()
        self._disconnect()
        stamp = time.strftime("%Y%m%d-%H%M%S")
        number = 0
        while (aside := self._path.with_name(f"{self._path.name}.damaged-{stamp}-{number}")).exists():
            number += 1
        for end in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self._path.with_name(self._path.name + end).rename(aside.with_name(aside.name + end))
        self.damaged = aside
        self._connect()
        self._unwritten |= {("jobs", key) for key in self._rows} | {("settings", key) for key in self._settings}
        self.flush()

    def _salvage(self) -> None:
        """Rows that a damaged file still gives, from both of its ends; what memory knows already is newer."""
        connection = self._connection
        if connection is None:
            return
        for order in ("rowid", "rowid DESC"):
            for row in _as_far_as_it_goes(connection, f"SELECT * FROM jobs ORDER BY {order}"):
                if set(COLUMNS) - set(LATER) <= row.keys() and isinstance(row["id"], str):
                    self._rows.setdefault(row["id"], row)
            for row in _as_far_as_it_goes(connection, f"SELECT * FROM settings ORDER BY {order}"):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    self._settings.setdefault(str(row["name"]), parse_json(row["value"]))

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
                if _is_damage(error):
                    self._mend(error)
                else:
                    self._fail(error)
            except sqlite3.DatabaseError as error:
                self._mend(error)
            except (OSError, sqlite3.Error) as error:
                self._fail(error)
            return not self._unwritten

    def _mend(self, error: Exception) -> None:
        if self._mending:
            self._fail(error)
            return
        self._mending = True
        try:
            self._replace(error)
        except (OSError, sqlite3.Error) as again:
            self._fail(again)
        finally:
            self._mending = False

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
        connection.execute("BEGIN IMMEDIATE")
        try:
            for table, key in sorted(self._unwritten):
                if table == "jobs" and key in self._rows:
                    row = self._rows[key]
                    values = [row.get(name, "" if name == "card" else 0) for name in COLUMNS]
                    try:
                        connection.execute(f"INSERT OR REPLACE INTO jobs ({names}) VALUES ({marks})", values)
                    except (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError) as error:
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


def _place(row: dict[str, Any]) -> tuple[float, float]:
    """For sorting; what is no number stands first."""
    return tuple(value if isinstance(value, (int, float)) else 0.0 for value in (row["position"], row["created"]))  # type: ignore[return-value]


def _as_far_as_it_goes(connection: sqlite3.Connection, query: str) -> Iterable[dict[str, Any]]:
    with contextlib.suppress(sqlite3.Error):
        for row in connection.execute(query):
            yield dict(row)


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether an error is about the file's contents, and not about the lock or the disk."""
    words = str(error).lower()
    return any(
        mark in words for mark in ("malformed", "no such table", "no such column", "has no column", "not a database")
    )
