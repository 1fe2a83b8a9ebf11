"""The queue's file: locked, full, damaged, of another version. Nothing of it stops the queue."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
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
from tests.disk import small_files
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


# --- what sqlite does not see by itself


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The queue's folder as a kill leaves it, the last changes in the log: one run begun, five jobs that wait."""
    projects = tmp_path / "outputs"
    with Project.create(projects, request("a red ball", 3, width=32, height=32)) as project:
        project.write_chunk(0, _latents(), np.zeros((24, 32, 32, 3), np.uint8))
        project.set_status("paused")
    queue = JobQueue(tmp_path / "first", instant)
    begun = queue.add(project.request)
    queue._put(replace(begun, state="paused", project=project.folder, source=project.folder, done=1))
    for n in range(5):
        queue.add(request(f"number {n}"))
    queue.set_setting("saved", {"mine": {"steps": "8"}})
    shutil.copytree(tmp_path / "first", projects / ".queue")
    queue.close()
    return projects / ".queue"


def opened(folder: Path) -> JobQueue:
    """A queue that works, whatever was under its name; closed and opened again it is the same."""
    queue = JobQueue(folder, instant, lambda: unfinished(folder.parent))
    added = queue.add(request("after", 1))
    queue.start()
    eventually(lambda: queue.get(added.id).state == "finished", 60)
    ids = [job.id for job in queue.jobs()]
    queue.close()
    again = JobQueue(folder, instant, lambda: unfinished(folder.parent))
    assert [job.id for job in again.jobs()] == ids and not again.trouble and not again.notice
    again.close()
    return queue


def runs(queue: JobQueue) -> list[tuple[str, int]]:
    """State and finished seconds of the jobs that have begun."""
    return [(job.state, job.done) for job in queue.jobs() if job.project and job.project.name != "video.mp4"]


def change(path: Path, edit: Callable[[bytearray], object]) -> None:
    data = bytearray(path.read_bytes())
    edit(data)
    path.write_bytes(data)


def flip(place: int) -> Callable[[bytearray], object]:
    return lambda data: data.__setitem__(place, data[place] ^ 0xFF)


LOG, SHARED, JOURNAL = "queue.sqlite-wal", "queue.sqlite-shm", "queue.sqlite-journal"
UNSEEN: dict[str, Callable[[Path], object]] = {
    "empty": lambda f: ((f / LOG).unlink(), (f / "queue.sqlite").write_bytes(b"")),
    "gone": lambda f: ((f / LOG).unlink(), (f / "queue.sqlite").unlink()),
    "one byte": lambda f: ((f / LOG).unlink(), (f / "queue.sqlite").write_bytes(b"S")),
    "a pipe": lambda f: ((f / "queue.sqlite").unlink(), os.mkfifo(f / "queue.sqlite")),
    "a link to itself": lambda f: ((f / "queue.sqlite").unlink(), (f / "queue.sqlite").symlink_to("queue.sqlite")),
    "a link to nothing": lambda f: ((f / "queue.sqlite").unlink(), (f / "queue.sqlite").symlink_to("gone/away")),
    "the log alone": lambda f: (f / "queue.sqlite").unlink(),
    "the log gone": lambda f: (f / LOG).unlink(),
    "the log's head": lambda f: change(f / LOG, flip(9)),
    "the log's salt": lambda f: change(f / LOG, flip(17)),
    "the log's first page": lambda f: change(f / LOG, flip(300)),
    "a page of the log": lambda f: change(f / LOG, lambda data: flip(len(data) // 2)(data)),
    "a frame of the log": lambda f: change(f / LOG, flip(32 + 24 + 4096 + 9)),
    "the log cut": lambda f: change(f / LOG, lambda data: data.__delitem__(slice(50, None))),
    "the log a folder": lambda f: ((f / LOG).unlink(), (f / LOG).mkdir()),
    "the log a pipe": lambda f: ((f / LOG).unlink(), os.mkfifo(f / LOG)),
    "a journal that is a pipe": lambda f: os.mkfifo(f / JOURNAL),
    "the shared memory a folder": lambda f: ((f / SHARED).unlink(), (f / SHARED).mkdir()),
    "the shared memory garbage": lambda f: (f / SHARED).write_bytes(bytes(range(256)) * 128),
}


@pytest.mark.parametrize("kind", UNSEEN)
def test_no_run_is_lost_with_the_file(killed: Path, kind: str) -> None:
    UNSEEN[kind](killed)
    before = [path.read_bytes() for path in killed.iterdir() if path.is_file() and path.name != SHARED]
    queue = opened(killed)
    assert runs(queue)[:1] == [("paused", 1)]
    aside = [path for path in killed.glob("queue.sqlite.damaged-*") if ".odd" not in path.name]
    if aside:  # nothing of it is gone, and the page is told
        now = [path.read_bytes() for path in killed.iterdir() if path.is_file()]
        assert all(content in now for content in before)
        assert not queue._store.damaged or queue._store.damaged.name in queue.notice
    else:
        assert kind in ("empty", "gone", "the log gone", "the shared memory garbage", "the shared memory a folder")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("request", "true"), ("request", "{"), ("request", "[" * 100_000), ("request", b"\xff\xfe"),
        ("request", "[" + "[]," * 4_000_000 + "0]"), ("state", "odd"), ("done", float("inf")), ("done", -1),
        ("done", "two"), ("deaths", 1 << 40), ("error", b"\x00"), ("card", b"one"), ("position", "first"),
        ("position", float("inf")), ("created", "now"), ("project", "/a\0b"), ("project", "/" + "x" * 300),
        ("video", "/" + "x/" * 4000), ("source", b"bytes"), ("id", b"number"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_job_costs_no_other_and_no_run(killed: Path, column: str, value: object) -> None:
    with sqlite3.connect(killed / "queue.sqlite") as connection:
        connection.execute(f"UPDATE jobs SET {column} = ? WHERE project IS NOT NULL", (value,))
    connection.close()
    queue = opened(killed)
    assert ("paused", 1) in runs(queue)
    assert sorted(job.title for job in queue.jobs()) == sorted(
        ["a red ball", "after", *(f"number {n}" for n in range(5))]
    )
    assert queue.setting("saved") == {"mine": {"steps": "8"}} and "is kept as queue.sqlite.damaged-" in queue.notice


@pytest.mark.parametrize(
    "value", ["{", "[" * 100_000, b"\xff", 5, "[" + "[]," * 4_000_000 + "0]", '["a"]', '"a"', "null"]
)
def test_a_setting_that_is_none_is_as_if_it_were_not_kept(killed: Path, value: object) -> None:
    with sqlite3.connect(killed / "queue.sqlite") as connection:
        connection.execute("UPDATE settings SET value = ?", (value,))
    connection.close()
    queue = opened(killed)
    assert queue.setting("saved", {}) == {} and len(queue.jobs()) == 7
    queue = JobQueue(killed, instant)
    queue.set_setting("saved", {"mine": {}})
    assert queue.setting("saved", {}) == {"mine": {}}
    queue.close()


@pytest.mark.parametrize("tables", ["no key", "another column", "a trigger", "an index"])
def test_a_table_that_takes_no_jobs_is_moved_aside(killed: Path, tables: str) -> None:
    with sqlite3.connect(killed / "queue.sqlite") as connection:
        if tables == "no key":
            connection.executescript(
                "CREATE TABLE other AS SELECT * FROM jobs; DROP TABLE jobs; ALTER TABLE other RENAME TO jobs"
            )
        elif tables == "another column":
            connection.execute("ALTER TABLE jobs ADD COLUMN must TEXT NOT NULL DEFAULT 'x' CHECK (must = 'x')")
            connection.execute("CREATE TABLE log (t TEXT CHECK (t = 'x'))")
            connection.execute("CREATE TRIGGER t AFTER INSERT ON jobs BEGIN INSERT INTO log VALUES ('y'); END")
        elif tables == "a trigger":
            connection.execute("CREATE TRIGGER t BEFORE INSERT ON jobs BEGIN SELECT RAISE(ABORT, 'no'); END")
        else:
            connection.execute("CREATE UNIQUE INDEX i ON jobs (state) WHERE state = 'finished'")
            connection.execute("UPDATE jobs SET state = 'finished' WHERE project IS NULL AND position = 2")
    connection.close()
    queue = opened(killed)
    assert runs(queue)[:1] == [("paused", 1)] and len(queue.jobs()) == 7


@pytest.mark.parametrize("room", [0, 100, 4096, 20_000, 100_000])
def test_a_full_disk_keeps_no_queue_from_opening(killed: Path, room: int) -> None:
    with small_files(room):
        queue = JobQueue(killed, instant, lambda: unfinished(killed.parent))
        assert runs(queue) == [("paused", 1)] and len(queue.jobs()) == 6
        added = queue.add(request("after", 1))
    queue.start()
    eventually(lambda: queue.get(added.id).state == "finished" and not queue.trouble)
    queue.close()
    assert JobQueue(killed, instant).get(added.id).state == "finished"


def test_a_full_disk_without_a_queue_yet(tmp_path: Path) -> None:
    with small_files(0):
        queue = JobQueue(tmp_path, instant)
        added = queue.add(request("first", 1))
        assert "cannot be saved" in queue.trouble
    queue.start()
    eventually(lambda: queue.get(added.id).state == "finished" and not queue.trouble)
    queue.close()


def test_runs_are_found_where_the_projects_were_moved_to(killed: Path) -> None:
    moved = killed.parent.rename(killed.parent.with_name("moved"))
    queue = JobQueue(moved / ".queue", instant)
    (job,) = [job for job in queue.jobs() if job.project]
    assert job.project is not None and job.project.parent == moved and job.source == job.project
    assert Project.open(job.project).chunks == 1
    queue.close()


def test_paths_that_are_no_text_are_kept_as_far_as_they_are(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path, instant)
    job = queue.add(request("first", 1))
    queue._put(replace(job, error="half a \ud800 character", project=Path(os.fsdecode(b"/a/\xff"))))
    assert not queue.trouble
    queue.close()
    assert JobQueue(tmp_path, instant).get(job.id).error == "half a ? character"
