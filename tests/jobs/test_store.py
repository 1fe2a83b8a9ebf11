"""The queue's file: locked, full, damaged, of another version. Nothing of it stops the queue."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from magi_lite import events
from magi_lite.control import RunControl
from magi_lite.errors import OutputError
from magi_lite.jobs import JobQueue
from magi_lite.jobs.job import Job
from magi_lite.jobs.recover import unfinished
from magi_lite.project import Project
from tests.jobs.test_queue import eventually, request, states

EARLIER = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, position REAL NOT NULL, state TEXT NOT NULL, request TEXT NOT NULL, project TEXT,
    source TEXT, from_chunk INTEGER, error TEXT NOT NULL DEFAULT '', done INTEGER NOT NULL DEFAULT 0, video TEXT,
    created REAL NOT NULL, started REAL, ended REAL
);
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


def instant(job: Job, control: RunControl) -> Iterator[events.Event]:
    """A run that is done at once."""
    yield events.ChunkFinished(0, None, 0.1)
    yield events.Finished(Path("video.mp4"), None, 1, 0.1)


def fails(job: Job, control: RunControl) -> Iterator[events.Event]:
    raise ZeroDivisionError("oops")
    yield  # pragma: no cover


def lock_for(path: Path, seconds: float, mode: str = "NORMAL") -> subprocess.Popen[bytes]:
    """Another program that keeps the file locked; back when it has it. In EXCLUSIVE mode nobody can even read."""
    code = (
        "import sqlite3, sys, time\n"
        f"c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('PRAGMA locking_mode={mode}')\n"
        "c.execute('BEGIN EXCLUSIVE')\n"
        "print('locked', flush=True); time.sleep(float(sys.argv[2])); c.execute('ROLLBACK')\n"
    )
    command = [sys.executable, "-c", code, str(path), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == b"locked\n"
    return process


@pytest.mark.parametrize("run", [instant, fails])
def test_a_lock_of_another_program_stops_nothing(tmp_path: Path, run: Callable[..., Iterator[events.Event]]) -> None:
    queue = JobQueue(tmp_path, run)
    kept = queue.add(request("before"))
    other = lock_for(tmp_path / "queue.sqlite", 7)
    queue.start()
    ids = [queue.add(request(f"number {n}", 1)).id for n in range(4)]
    eventually(lambda: all(job.state in ("finished", "failed") for job in queue.jobs()))
    assert other.poll() is None  # still locked: all that went on meanwhile
    assert "cannot be saved" in queue.trouble and "locked" in queue.trouble
    queue.delete(kept.id)
    queue.set_paused(True)
    assert queue.paused
    other.wait()
    eventually(lambda: not queue.trouble)
    ended = states(queue)
    queue.close()
    again = JobQueue(tmp_path, run)
    assert [job.id for job in again.jobs()] == ids and states(again) == ended and again.paused


def test_a_full_disk_stops_nothing(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path, instant)
    connection = queue._store._connection
    assert connection is not None
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")  # sqlite's own way of a disk without room
    queue.start()
    ids = [queue.add(request("long " * 400, 1)).id for _ in range(30)]
    eventually(lambda: states(queue) == ["finished"] * 30)
    assert "full" in queue.trouble
    connection.execute("PRAGMA max_page_count=100000")
    eventually(lambda: not queue.trouble)
    queue.close()
    assert [job.id for job in JobQueue(tmp_path, instant).jobs()] == ids


def damage(path: Path, kind: str) -> None:
    """One way in which a file is no queue any more."""
    data = bytearray(path.read_bytes())
    if kind == "garbage":
        data = bytearray(random.randbytes(len(data)))
    elif kind == "no database":
        data = bytearray(b"not a database, but long enough to be looked at" * 100)
    elif kind == "cut":
        del data[len(data) // 2 :]
    elif kind == "zeroed pages":
        data[4096 : 3 * 4096] = bytes(2 * 4096)
    elif kind == "flipped pages":
        for _ in range(400):
            data[random.randrange(4096, len(data))] ^= random.randrange(1, 256)
    elif kind == "flipped header":
        for place in range(20, 90):
            data[place] ^= 0xFF
    elif kind == "another program's":
        path.unlink()
        with sqlite3.connect(path) as other:
            other.executescript("CREATE TABLE jobs (wages REAL); CREATE TABLE settings (name TEXT)")
        return
    elif kind == "a folder":
        path.unlink()
        path.mkdir()
        return
    path.write_bytes(data)


KINDS = (
    "garbage",
    "no database",
    "cut",
    "zeroed pages",
    "flipped pages",
    "flipped header",
    "another program's",
    "a folder",
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_moved_aside_and_rebuilt(tmp_path: Path, kind: str) -> None:
    projects = tmp_path / "outputs"
    with Project.create(projects, request("a red ball", 3, width=32, height=32)) as project:
        project.write_chunk(0, _latents(), np.zeros((24, 32, 32, 3), np.uint8))
        project.set_status("paused")
        folder = project.folder
    path = projects / ".queue" / "queue.sqlite"
    first = JobQueue(path.parent, instant)
    for n in range(40):
        first.add(request(f"number {n}"))
    first.close()
    damage(path, kind)
    queue = JobQueue(path.parent, instant, lambda: unfinished(projects))
    found = [job for job in queue.jobs() if job.project == folder]
    if list(path.parent.glob("queue.sqlite.damaged-*")):
        assert [(job.state, job.done, job.source) for job in found] == [("paused", 1, folder)]
    else:  # random flips may leave a database whole
        assert kind == "flipped pages"
    added = queue.add(request("after", 1))
    queue.start()
    eventually(lambda: queue.get(added.id).state == "finished", 60)
    queue.close()
    assert JobQueue(path.parent, instant).get(added.id).state == "finished"


def _latents():  # type: ignore[no-untyped-def]
    import torch

    return torch.zeros(1, 16, 6, 4, 4)


def test_damage_while_it_runs_is_mended_from_memory(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path, instant)
    queue.set_setting("saved", {"mine": {"steps": "8"}})
    queue.add(request("one", 1))
    connection = queue._store._connection
    assert connection is not None
    connection.execute("DROP TABLE jobs")
    queue.add(request("two", 1))
    queue.start()
    eventually(lambda: states(queue) == ["finished"] * 2)
    queue.close()
    again = JobQueue(tmp_path, instant)
    assert states(again) == ["finished"] * 2 and again.setting("saved") == {"mine": {"steps": "8"}}
    assert list(tmp_path.glob("queue.sqlite.damaged-*"))


def test_the_file_of_an_earlier_version_opens(tmp_path: Path) -> None:
    new = JobQueue(tmp_path / "new", instant)
    job = new.add(request("kept"))
    row = new._store.rows()[0]
    old = tmp_path / "old"
    old.mkdir()
    with sqlite3.connect(old / "queue.sqlite") as connection:
        connection.executescript(EARLIER)
        columns = [name for name in row if name not in ("card", "deaths")]
        marks = ", ".join("?" * len(columns))
        connection.execute(f"INSERT INTO jobs ({', '.join(columns)}) VALUES ({marks})", [row[name] for name in columns])
        connection.execute("INSERT INTO settings VALUES ('paused', 'true')")
    connection.close()
    queue = JobQueue(old, instant)
    assert queue.get(job.id).request == job.request and queue.paused
    assert not list(old.glob("*damaged*"))
    assert queue.get(job.id).card == "" and queue.get(job.id).deaths == 0


def test_a_file_that_stays_locked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magi_lite.jobs.store.OPEN_PATIENCE", 0.3)
    JobQueue(tmp_path, instant).close()
    other = lock_for(tmp_path / "queue.sqlite", 60, "EXCLUSIVE")
    with pytest.raises(OutputError, match=r"queue\.sqlite cannot be used .*locked"):
        JobQueue(tmp_path, instant)
    other.kill()
    other.wait()
    time.sleep(0.1)
    JobQueue(tmp_path, instant).close()
