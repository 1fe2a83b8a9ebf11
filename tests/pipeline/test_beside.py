"""Finished seconds are decoded and written while the next ones are made: the same files, whatever goes wrong."""

from __future__ import annotations

import contextlib
import hashlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magi_lite import planner
from magi_lite.control import RunControl
from magi_lite.errors import MagiLiteError, OutputError
from magi_lite.events import ChunkFinished, Finished, Notice, Opened, Preview, Progress, Stopped
from magi_lite.machine import devices
from magi_lite.pipeline import generate
from magi_lite.pipeline.background import InOrder
from magi_lite.pipeline.engine import Engine, engine
from magi_lite.planner.execution import Execution
from magi_lite.project import Project
from magi_lite.project.states import States
from magi_lite.weights.opening import open_model
from tests.pipeline.conftest import latents_of, same_bits

pytestmark = pytest.mark.usefixtures("run")  # keeps embeddings out of the home folder
PATIENCE = 60.0
ROOT = Path(__file__).parents[2]


def as_on_a_card(patch: pytest.MonkeyPatch, decodes: bool) -> None:
    """Seconds are written beside the steps, as on a card; where its memory allows it, they are decoded there too."""
    patch.setattr(Engine, "writes_beside", property(lambda self: True))
    patch.setattr(Engine, "decodes_beside", property(lambda self: decodes))


@pytest.fixture(params=[False, True], ids=["written", "decoded"])
def beside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_card(monkeypatch, request.param)


@pytest.fixture
def decoded_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_card(monkeypatch, True)


def files_of(folder: Path) -> dict[str, str]:
    """Seconds, states and the video, by their checksums."""
    found = [*folder.glob("chunks/*"), *folder.glob("states/*"), folder / "video.mp4"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(found)}


@pytest.mark.parametrize("decodes", [False, True])
@pytest.mark.parametrize("window", [1, 4])
def test_the_files_are_those_of_a_run_that_waits(
    window: int, decodes: bool, request_for: Callable, run: Callable
) -> None:
    waits = run(request_for(window=window))
    with pytest.MonkeyPatch.context() as patch:
        as_on_a_card(patch, decodes)
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


# --- decoding --------------------------------------------------------------------------------------------------------


def decode_with(patch: pytest.MonkeyPatch, before: Callable[[int], None]) -> None:
    """Call `before` with the number of the decoding, from 0, in front of each."""
    decode, count = Engine.decode, iter(range(99))

    def decoding(self: Engine, latents: torch.Tensor) -> np.ndarray:
        before(next(count))
        return decode(self, latents)

    patch.setattr(Engine, "decode", decoding)


def test_one_second_is_decoded_while_the_next_is_made_and_none_waits(
    decoded_beside: None, request_for: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[tuple[str, int]] = []
    made = [threading.Event() for _ in range(4)]

    def slow(number: int) -> None:
        last = number == 3
        assert last or made[number].wait(PATIENCE)  # until the next second has begun
        time.sleep(0.05)
        log.append(("decoded", number))

    decode_with(monkeypatch, slow)
    request = request_for("[0s-4s: a red ball]", seconds=4, window=1)
    for event in generate(request, projects_folder=tmp_path / "projects"):
        if isinstance(event, Progress):
            log.append(("step", event.chunk))
            if event.chunk > 0:
                made[event.chunk - 1].set()
    for number in range(3):
        at = log.index(("decoded", number))
        assert log.index(("step", number + 1)) < at
        assert not {("step", later) for later in range(number + 2, 4)} & set(log[:at])
    assert [entry for entry in log if entry[0] == "decoded"] == [("decoded", number) for number in range(4)]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_decoding_that_fails_ends_the_run_with_its_sentence(
    number: int, decoded_beside: None, request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    whole = run(request_for(window=1))[-1].project

    def fails(at: int) -> None:
        if at == number:
            raise MagiLiteError("The decoder does not want to.")

    events = generate(request_for(window=1), projects_folder=tmp_path / "projects")
    folder = next(event.project for event in events if isinstance(event, Opened))
    told = []
    with pytest.MonkeyPatch.context() as patch:
        decode_with(patch, fails)
        with pytest.raises(MagiLiteError, match="The decoder does not want to"):
            told.extend(event.chunk for event in events if isinstance(event, ChunkFinished))
    with Project.open(folder) as project:
        assert (project.chunks, project.status, told) == (number, "failed", list(range(number)))
        assert len(list(folder.glob("states/*"))) == number
    assert isinstance(run(None, resume=folder)[-1], Finished)
    assert files_of(folder) == files_of(whole)


def test_memory_that_runs_out_there_makes_a_plan_with_smaller_steps(
    decoded_beside: None, request_for: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps and the decoding beside them take memory together: that phase has to shrink."""
    whole = run(request_for(window=1))[-1].project
    asked, original = [], planner.next_smaller

    def smaller(plan: planner.Plan, phase: planner.Phase | None, place: Any) -> planner.Plan | None:
        asked.append((phase, place))
        return original(plan, phase, place)

    def runs_out(at: int) -> None:
        if at == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(planner, "next_smaller", smaller)
    decode_with(monkeypatch, runs_out)
    events = run(request_for(window=1))
    assert isinstance(events[-1], Finished) and asked == [("denoise", "vram")]
    assert any(isinstance(event, Notice) and "Memory ran out" in event.message for event in events)
    assert [event.chunk for event in events if isinstance(event, ChunkFinished)] == [0, 1, 2]
    assert len(latents_of(events[-1].project)) == len(latents_of(whole))


def test_no_preview_is_decoded_while_a_second_is(
    decoded_beside: None, request_for: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magi_lite.pipeline.run.PREVIEW_EVERY", 0.0)
    stepped, decoding = threading.Event(), threading.Event()

    def slow(number: int) -> None:
        if number == 0:
            decoding.set()
            assert stepped.wait(PATIENCE)
            decoding.clear()

    decode_with(monkeypatch, slow)
    seen = []
    for event in generate(request_for(window=1), projects_folder=tmp_path / "projects"):
        if isinstance(event, Preview):
            seen.append(decoding.is_set())
        if isinstance(event, Progress) and event.chunk == 1 and event.step == 3:
            stepped.set()
    assert seen and not any(seen)


class Stream:
    """A stream that remembers what was asked of it."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def wait_event(self, event: str) -> None:
        self._log.append(f"waits for {event}")


def test_a_stream_of_its_own_decodes_once_the_latents_are_computed(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []

    @contextlib.contextmanager
    def on_stream(stream: Stream | None) -> Iterator[None]:
        log.append("enters" if stream else "enters none")
        yield
        log.append("leaves")

    monkeypatch.setattr(devices, "new_stream", lambda device: Stream(log))
    monkeypatch.setattr(devices, "current_stream", lambda device: "the steps")
    monkeypatch.setattr(devices, "record_event", lambda stream: f"what {stream} did")
    monkeypatch.setattr(devices, "keep_for", lambda tensor, stream: log.append("memory is kept"))
    monkeypatch.setattr(devices, "on_stream", on_stream)
    decode_with(monkeypatch, lambda number: log.append("decodes"))
    files = open_model(tiny_model)
    with engine(files, Execution(decode_beside=True)) as networks:
        decode = networks.decoding(torch.randn(1, files.spec.dit.latent_channels, 6, 4, 4))
        assert log == ["memory is kept"]
        assert decode().shape == (24, 32, 32, 3)
    assert log[1:] == ["waits for what the steps did", "enters", "decodes", "leaves"]


CHILD = """
import sys, time
from pathlib import Path
from magi_lite.pipeline import decoding, engine, generate, prompts

engine.Engine.writes_beside = engine.Engine.decodes_beside = property(lambda self: True)
prompts.EMBEDDINGS_FOLDER = Path(sys.argv[2])
decode = engine.decode_chunk
engine.decode_chunk = lambda *given: (time.sleep(0.05), decode(*given))[1]
for event in generate(None, resume=Path(sys.argv[1])):
    print(type(event).__name__, flush=True)
"""


def test_killed_again_and_again_it_resumes_to_the_same_bits(
    request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    request = request_for("[0s-6s: a red ball]", seconds=6, window=2)
    whole = run(request)[-1].project
    events = generate(request, projects_folder=tmp_path / "projects")
    folder = next(event.project for event in events if isinstance(event, Opened))
    events.close()
    kills = 0
    for _ in range(12):
        child = [sys.executable, "-c", CHILD, str(folder), str(tmp_path / "embeddings")]
        process = subprocess.Popen(child, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        steps, wanted = 0, random.randint(1, 12) if kills < 4 else 999
        for line in process.stdout:
            steps += line.strip() == "Progress"
            if steps == wanted:
                time.sleep(random.uniform(0, 0.1))
                process.kill()
                kills += 1
                break
        process.wait()
        process.stdout.close()
        if process.returncode == 0:
            break
    with Project.open(folder) as project:
        assert project.status == "finished" and kills
    assert same_bits(latents_of(folder), latents_of(whole))


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
