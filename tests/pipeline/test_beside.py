"""Finished seconds are written while the next ones are made: the same files, in the same order, whatever goes wrong."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from magi_lite.control import RunControl
from magi_lite.errors import OutputError
from magi_lite.events import ChunkFinished, Finished, Opened, Progress, Stopped
from magi_lite.pipeline import generate
from magi_lite.pipeline.background import InOrder
from magi_lite.pipeline.engine import Engine
from magi_lite.project import Project
from magi_lite.project.states import States

pytestmark = pytest.mark.usefixtures("run")  # keeps embeddings out of the home folder
PATIENCE = 60.0


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written as beside a card's steps."""
    monkeypatch.setattr(Engine, "writes_beside", property(lambda self: True))


def files_of(folder: Path) -> dict[str, str]:
    """Seconds, states and the video, by their checksums."""
    found = [*folder.glob("chunks/*"), *folder.glob("states/*"), folder / "video.mp4"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(found)}


@pytest.mark.parametrize("window", [1, 4])
def test_the_files_are_those_of_a_run_that_waits(window: int, request_for: Callable, run: Callable) -> None:
    waits = run(request_for(window=window))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "writes_beside", property(lambda self: True))
        goes_on = run(request_for(window=window))
    assert files_of(goes_on[-1].project) == files_of(waits[-1].project)
    for events in (waits, goes_on):
        assert [event.chunk for event in events if isinstance(event, ChunkFinished)] == [0, 1, 2]
        assert isinstance(events[-1], Finished)


def test_the_next_second_begins_before_the_last_one_is_on_disk(
    beside: None, request_for: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    went_on = threading.Event()
    write, waited = Project.write_chunk, []

    def slow(self: Project, index: int, *given: object) -> bool:
        if index == 0:
            waited.append(went_on.wait(PATIENCE))
        return write(self, index, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Project, "write_chunk", slow)
    finished = 0
    for event in generate(request_for(window=1), projects_folder=tmp_path / "projects"):
        finished += isinstance(event, ChunkFinished)
        if isinstance(event, Progress) and event.chunk == 1:
            if not went_on.is_set():
                assert finished == 0
            went_on.set()
    assert waited == [True] and finished == 3


def test_a_state_comes_to_the_disk_behind_the_second_that_it_let_go(
    beside: None, request_for: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[str, int]] = []
    write, save = Project.write_chunk, States.save

    def writes(self: Project, index: int, *given: object) -> bool:
        order.append(("second", index))
        return write(self, index, *given)  # type: ignore[arg-type]

    def saves(self: States, stage: int, state: object) -> None:
        order.append(("state", stage))
        save(self, stage, state)  # type: ignore[arg-type]

    monkeypatch.setattr(Project, "write_chunk", writes)
    monkeypatch.setattr(States, "save", saves)
    list(generate(request_for(window=1), projects_folder=tmp_path / "projects"))
    assert order == [(kind, number) for number in range(3) for kind in ("second", "state")]


def test_a_full_disk_is_said_and_what_came_after_it_is_not_written(
    beside: None, request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    whole = run(request_for(window=1))[-1].project
    events = generate(request_for(window=1), projects_folder=tmp_path / "projects")
    folder = next(event.project for event in events if isinstance(event, Opened))
    with pytest.MonkeyPatch.context() as patch:
        write = Project.write_chunk

        def full(self: Project, index: int, *given: object) -> bool:
            if index == 1:
                raise OutputError("The disk is full.")
            return write(self, index, *given)  # type: ignore[arg-type]

        patch.setattr(Project, "write_chunk", full)
        with pytest.raises(OutputError, match="The disk is full"):
            list(events)
    with Project.open(folder) as project:
        assert (project.chunks, project.status) == (1, "failed")
        assert [path.name for path in sorted(folder.glob("states/*"))] == ["00000.safetensors"]
    assert isinstance(run(None, resume=folder)[-1], Finished)
    assert files_of(folder) == files_of(whole)


@pytest.mark.parametrize("reason", ["stopped", "paused"])
def test_what_ends_early_has_everything_on_disk(
    reason: str, beside: None, request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    whole = run(request_for(window=2))[-1].project
    control, events = RunControl(), []
    for event in generate(request_for(window=2), control=control, projects_folder=tmp_path / "projects"):
        events.append(event)
        if isinstance(event, ChunkFinished):
            control.stop() if reason == "stopped" else control.pause()
    last = events[-1]
    assert isinstance(last, Stopped) and last.reason == reason
    told = [event.chunk for event in events if isinstance(event, ChunkFinished)]
    with Project.open(last.project) as project:
        assert told == list(range(project.chunks)) and project.chunks == last.chunks
    assert isinstance(run(None, resume=last.project)[-1], Finished)
    assert files_of(last.project) == files_of(whole)


def test_a_reader_that_goes_away_waits_for_what_is_being_written(
    beside: None, request_for: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving, inside = threading.Event(), threading.Event()
    write = Project.write_chunk

    def slow(self: Project, index: int, *given: object) -> bool:
        inside.set()
        leaving.wait(PATIENCE)
        return write(self, index, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Project, "write_chunk", slow)
    events = generate(request_for(window=1), projects_folder=tmp_path / "projects")
    folder = next(event.project for event in events if isinstance(event, Opened))
    next(event for event in events if isinstance(event, Progress) and event.chunk == 1)
    assert inside.wait(PATIENCE)
    leaving.set()
    events.close()
    with Project.open(folder) as project:
        assert project.chunks == 1


# --- tasks in order ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tasks() -> Iterator[InOrder]:
    with InOrder() as made:
        yield made


def test_tasks_are_done_in_order_and_their_results_told_once(tasks: InOrder) -> None:
    first, order = threading.Event(), []
    tasks.put(lambda: (first.wait(PATIENCE), order.append(1), 1)[-1], beside=True)
    tasks.put(lambda: (order.append(2), 2)[-1], beside=True)
    assert list(tasks.results()) == []
    first.set()
    assert list(tasks.results(wait=True)) == [1, 2] and order == [1, 2]
    assert list(tasks.results(wait=True)) == []


def test_without_a_thread_a_task_is_done_when_put_returns(tasks: InOrder) -> None:
    tasks.put(threading.get_ident, beside=False)
    assert list(tasks.results()) == [threading.get_ident()]
    with pytest.raises(ZeroDivisionError):
        tasks.put(lambda: 1 // 0, beside=False)


def test_after_a_failure_nothing_is_begun(tasks: InOrder) -> None:
    begun: list[int] = []
    tasks.put(lambda: 1 // 0, beside=True)
    tasks.put(lambda: begun.append(1), beside=True)
    with pytest.raises(ZeroDivisionError):
        list(tasks.results(wait=True))
    assert list(tasks.results(wait=True)) == [None] and begun == []
    tasks.__exit__()
    tasks.put(lambda: begun.append(2), beside=True)
    list(tasks.results(wait=True))
    assert begun == [2]
