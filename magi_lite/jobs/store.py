"""Where the queue lives between starts: one sqlite file, one row per job, settings beside them.

Rows are plain text and numbers; requests are stored as JSON. Every change is a transaction, so a killed process leaves
the last complete state.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

from magi_lite.errors import OutputError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, position REAL NOT NULL, state TEXT NOT NULL, request TEXT NOT NULL, project TEXT,
    source TEXT, from_chunk INTEGER, error TEXT NOT NULL DEFAULT '', done INTEGER NOT NULL DEFAULT 0, video TEXT,
    created REAL NOT NULL, started REAL, ended REAL
);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
COLUMNS = (
    "id", "position", "state", "request", "project", "source", "from_chunk",
    "error", "done", "video", "created", "started", "ended",
)  # fmt: skip


class Store:
    """Rows of jobs and named settings, safe to use from several threads.

    Raises:
        OutputError: the file cannot be opened or is not a queue.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            message = f"The queue file {path} cannot be used ({error}); delete it or choose another folder."
            raise OutputError(message) from None

    def rows(self) -> list[dict[str, Any]]:
        """All jobs in queue order."""
        with self._lock:
            return [dict(row) for row in self._connection.execute("SELECT * FROM jobs ORDER BY position, created")]

    def put(self, row: dict[str, Any]) -> None:
        """Insert or replace one job; `row` has every name in `COLUMNS`."""
        marks = ", ".join("?" * len(COLUMNS))
        with self._lock:
            self._connection.execute(
                f"INSERT OR REPLACE INTO jobs ({', '.join(COLUMNS)}) VALUES ({marks})", [row[name] for name in COLUMNS]
            )

    def delete(self, identity: str) -> None:
        with self._lock:
            self._connection.execute("DELETE FROM jobs WHERE id = ?", (identity,))

    def setting(self, name: str, default: Any = None) -> Any:
        """A JSON value stored under `name`."""
        with self._lock:
            row = self._connection.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return default if row is None else json.loads(row["value"])

    def set_setting(self, name: str, value: Any) -> None:
        with self._lock:
            self._connection.execute(
                "INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", (name, json.dumps(value))
            )

    def close(self) -> None:
        with self._lock:
            self._connection.close()
