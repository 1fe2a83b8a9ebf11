"""However a run ends, and whatever is changed before it goes on: what is on disk, what is said, who may go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from magi_lite.control import RunControl
from magi_lite.errors import CheckpointError, InputError, OutputError
from magi_lite.events import ChunkFinished, Event, Finished, Notice, Opened, PhaseStarted, Progress, Redirected, Stopped
from magi_lite.pipeline import generate, prompts
from magi_lite.project import Project
from magi_lite.timeline.text import parse
from quant.storage.shards import Checkpoint
from tests.disk import small_files
from tests.pipeline.conftest import latents_of, same_bits

pytestmark = pytest.mark.usefixtures("run")  # keeps embeddings of these words in the test's own folder


def stages(events: list[Event]) -> list[str]:
    return [event.phase for event in events if isinstance(event, PhaseStarted)]


def words_of(folder: Path, seconds: int) -> list[str]:
    with Project.open(folder) as project:
        return [mix.text for mix in project.request.timeline.compile(seconds)]


@pytest.mark.parametrize("wish", ["stop", "pause"])
@pytest.mark.parametrize("when", ["check", "text", "load", "encode"])
def test_a_wish_to_end_before_the_first_step_is_granted_before_it(
    wish: str, when: str, request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    Image.effect_noise((40, 40), 64).convert("RGB").save(tmp_path / "start.png")
    request = request_for("[0s-1s: a red ball]", seconds=1, image=tmp_path / "start.png")
    control, events = RunControl(), []
    for event in generate(request, control=control, projects_folder=tmp_path / "projects"):
        events.append(event)
        if isinstance(event, PhaseStarted) and event.phase == when:
            getattr(control, wish)()
    assert isinstance(events[-1], Stopped)
    assert events[-1].reason == {"stop": "stopped", "pause": "paused"}[wish]
    assert events[-1].video is None
    assert "denoise" not in stages(events)
    with Project.open(events[-1].project) as project:
        assert project.status == events[-1].reason
    assert isinstance(run(None, resume=events[-1].project)[-1], Finished)


@pytest.mark.parametrize("model", ["t5", "magi", "vae"])
def test_a_stop_while_a_model_is_read_takes_one_tensor(
    model: str, request_for: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large the model: what is asked between two tensors is not asked after the last one."""
    control, events = RunControl(), []
    really, read = Checkpoint.read, []

    def reading(self: Checkpoint, name: str, **options: bool) -> torch.Tensor:
        if model in str(self.place.relative_to(request.model)).split("/"):
            read.append(name)
            if len(read) == 3:
                control.stop()
        return really(self, name, **options)

    request = request_for("[0s-1s: a red ball]", seconds=1)
    monkeypatch.setattr(Checkpoint, "read", reading)
    for event in generate(request, control=control, projects_folder=tmp_path / "projects"):
        events.append(event)
    assert isinstance(events[-1], Stopped) and events[-1].reason == "stopped"
    assert len(read) == 3
    with Project.open(events[-1].project) as project:
        assert project.status == "stopped"
    assert isinstance(run(None, resume=events[-1].project)[-1], Finished)


def test_a_pause_in_the_last_stage_finishes_the_video(request_for: Callable, tmp_path: Path) -> None:
    control = RunControl()
    for event in generate(
        request_for("[0s-1s: a red ball]", seconds=1, window=1), control=control, projects_folder=tmp_path / "projects"
    ):
        if isinstance(event, ChunkFinished):
            control.pause()
    assert isinstance(event, Finished)


@pytest.mark.parametrize(("window", "seconds", "chunks"), [(1, 2, 1), (2, 3, 1)])
def test_a_stop_after_a_stages_last_step_keeps_what_it_made(
    window: int, seconds: int, chunks: int, request_for: Callable, tmp_path: Path
) -> None:
    control = RunControl()
    request = request_for("[0s-1s: a red ball]", seconds=seconds, window=window)
    steps = 0
    for event in generate(request, control=control, projects_folder=tmp_path / "projects"):
        steps += isinstance(event, Progress)
        if steps == 8:  # as many as a second takes: the first one is clean
            control.stop()
    assert isinstance(event, Stopped)
    assert event.chunks == chunks


def test_a_stop_at_the_very_end_is_a_finished_video(request_for: Callable, tmp_path: Path) -> None:
    control = RunControl()
    for event in generate(
        request_for("[0s-1s: a red ball]", seconds=1), control=control, projects_folder=tmp_path / "projects"
    ):
        if isinstance(event, Progress) and event.fraction == 1:
            control.stop()
    assert isinstance(event, Finished)


def test_a_reader_that_goes_away_leaves_a_project_that_goes_on(
    request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    whole = run(request_for())[-1]
    events = generate(request_for(), projects_folder=tmp_path / "projects")
    folder = next(event.project for event in events if isinstance(event, Opened))
    next(event for event in events if isinstance(event, ChunkFinished))
    events.close()
    with Project.open(folder) as project:
        assert (project.status, project.chunks) == ("interrupted", 1)
    run(None, resume=folder)
    assert same_bits(latents_of(folder), latents_of(whole.project))


def test_a_resumed_run_is_running_from_its_first_moment(request_for: Callable, tmp_path: Path) -> None:
    control = RunControl()
    control.stop()
    folder = [*generate(request_for(), control=control, projects_folder=tmp_path / "projects")][-1].project
    events = generate(None, resume=folder)
    assert [event.phase for event in (next(events), next(events), next(events)) if isinstance(event, PhaseStarted)]
    with Project.open(folder) as project:
        assert project.status == "running"
    events.close()


def test_a_finished_project_needs_no_weights_to_be_finished_again(request_for: Callable, run: Callable) -> None:
    first = run(request_for("[0s-1s: a red ball]", seconds=1))[-1]
    again = run(None, resume=first.project)
    assert stages(again) == ["check"]
    assert (again[-1].chunks, again[-1].video) == (1, first.video)


def test_new_seconds_say_what_is_asked_of_them(request_for: Callable, run: Callable) -> None:
    request = request_for("[0s-2s: a red ball]", seconds=2)
    short = run(request)[-1]
    newer = replace(request, timeline=parse("[0s-2s: a red ball] [2s-4s: a blue box]"), seconds=4)
    longer = run(newer, resume=short.project)
    assert words_of(longer[-1].project, 4) == ["a red ball"] * 2 + ["a blue box"] * 2
    plain = run(request_for("[0s-4s: a red ball]", seconds=4))[-1]
    assert not same_bits(latents_of(longer[-1].project)[2:], latents_of(plain.project)[2:])


def test_an_extension_that_is_stopped_goes_on_where_it_was(
    request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    request = request_for("[0s-2s: a red ball]", seconds=2)
    short = run(request)[-1]
    control, steps = RunControl(), []
    for event in generate(replace(request, seconds=6), resume=short.project, control=control):
        if isinstance(event, Progress):
            steps.append(event.fraction)
            if len(steps) > 2 * event.steps:
                control.stop()
    with Project.open(short.project) as project:
        assert project.status == "stopped"
    resumed = [event.fraction for event in run(None, resume=short.project) if isinstance(event, Progress)]
    assert resumed[0] > steps[1]
    assert len(latents_of(short.project)) == 6


def test_an_endless_video_can_be_given_an_end_and_a_finished_one_lose_it(request_for: Callable, tmp_path: Path) -> None:
    def until(seconds: int, **options: object) -> Event:
        control = RunControl()
        for event in generate(control=control, projects_folder=tmp_path / "projects", **options):
            if isinstance(event, ChunkFinished) and event.chunk + 1 == seconds:
                control.stop()
        return event

    endless = request_for("[0s-1s: a red ball]", seconds=None, window=2)
    stopped = until(2, request=endless)
    finished = until(99, request=replace(endless, seconds=4), resume=stopped.project)
    assert isinstance(finished, Finished)
    assert finished.chunks == 4
    again = until(6, request=endless, resume=stopped.project)
    assert isinstance(again, Stopped)
    assert again.chunks == 6


def test_the_video_can_go_elsewhere_when_the_run_goes_on(request_for: Callable, run: Callable, tmp_path: Path) -> None:
    control = RunControl()
    control.stop()
    request = request_for("[0s-1s: a red ball]", seconds=1, out=tmp_path / "first.mp4")
    folder = [*generate(request, control=control, projects_folder=tmp_path / "projects")][-1].project
    there = tmp_path / "a folder" / "zweites Vidéo.mp4"
    there.parent.mkdir()
    assert run(replace(request, out=there), resume=folder)[-1].video == there
    assert there.is_file()
    assert not (tmp_path / "first.mp4").exists()


def test_a_full_disk_is_what_is_said_and_the_run_goes_on_when_there_is_room(
    request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    whole = run(request_for(window=1))[-1]
    events = generate(request_for(window=1), projects_folder=tmp_path / "projects")
    folder = next(event.project for event in events if isinstance(event, Opened))
    next(event for event in events if isinstance(event, ChunkFinished))
    with small_files(100), pytest.raises(OutputError, match="The disk is full or limited at"):
        list(events)
    with Project.open(folder) as project:
        assert (project.chunks, project.status) == (1, "interrupted")
    assert isinstance(run(None, resume=folder)[-1], Finished)
    assert same_bits(latents_of(folder), latents_of(whole.project))


def test_a_resume_that_the_disk_refuses_can_be_tried_again(request_for: Callable, run: Callable) -> None:
    request = request_for("[0s-1s: a red ball]", seconds=1)
    folder = run(request)[-1].project
    with small_files(100), pytest.raises(OutputError, match="The disk is full"):
        run(replace(request, seconds=2), resume=folder)
    assert run(replace(request, seconds=2), resume=folder)[-1].chunks == 2


@pytest.mark.parametrize(
    ("newer", "sentence"),
    [
        ("[0s-9s: a green tree]", "ends after the video's 3 s"),
        (f"[0s-3s: {'x' * 4000}]", "a word of 4000 characters"),
        ("[gaps: refuse] [0s-1s: a green tree]", "No segment covers"),
    ],
)
def test_new_words_that_cannot_be_are_refused_and_the_old_ones_go_on(
    newer: str, sentence: str, request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    request = request_for("[0s-3s: a red ball]", window=1)
    plain = run(request)[-1]
    control, notices = RunControl(), []
    for event in generate(request, control=control, projects_folder=tmp_path / "projects"):
        if isinstance(event, Progress) and event.chunk == 0 and event.step == 1:
            control.redirect(parse(newer))
        if isinstance(event, Notice):
            notices.append(event.message)
    assert isinstance(event, Finished)
    assert any(sentence in notice for notice in notices)
    assert same_bits(latents_of(event.project), latents_of(plain.project))
    assert words_of(event.project, 3) == ["a red ball"] * 3


def test_all_new_words_are_read_at_once(request_for: Callable, tmp_path: Path) -> None:
    control, events = RunControl(), []
    for event in generate(
        request_for("[0s-4s: a red ball]", seconds=4, window=1), control=control, projects_folder=tmp_path / "projects"
    ):
        events.append(event)
        if isinstance(event, Progress) and event.chunk == 0 and event.step == 1:
            control.redirect(parse("[0s-2s: a green tree] [2s-3s: a blue box] [3s-4s: a black car]"))
    details = [event.detail for event in events if isinstance(event, PhaseStarted) and event.phase == "text"]
    assert details[1:] == ["Encoding 3 prompts"]
    assert words_of(event.project, 4) == ["a red ball", "a green tree", "a blue box", "a black car"]


def test_a_large_text_encoder_works_beside_the_video(
    request_for: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The redirect comes in second 0; its encoder ends in second 2, and it applies from the next one to start."""
    monkeypatch.setattr("magi_lite.pipeline.run.text_encoder_is_small", lambda files: False)
    done, loads = threading.Event(), []
    real = prompts.load_text_encoder

    def slow(*arguments: object, **options: object) -> object:
        loads.append(threading.current_thread() is threading.main_thread())
        assert len(loads) == 1 or done.wait(60)
        return real(*arguments, **options)

    monkeypatch.setattr("magi_lite.pipeline.prompts.load_text_encoder", slow)
    control, events, told = RunControl(), [], None
    for event in generate(
        request_for("[0s-9s: a red ball]", seconds=9, window=1), control=control, projects_folder=tmp_path / "projects"
    ):
        events.append(event)
        if isinstance(event, Progress) and event.chunk == 0 and event.step == 1:
            control.redirect(parse("[0s-9s: a green tree]"))
        if isinstance(event, ChunkFinished) and event.chunk == 1:
            done.set()
        if isinstance(event, ChunkFinished) and event.chunk >= 1 and told is None:
            time.sleep(0.5)  # the encoder is tiny: time for it to end before the next second
        if isinstance(event, Redirected):
            told = event.second
    assert loads == [True, False] and isinstance(events[-1], Finished)
    assert told is not None and 2 <= told < 9
    assert words_of(events[-1].project, 9) == ["a red ball"] * told + ["a green tree"] * (9 - told)


def test_an_encoder_that_fails_beside_the_video_is_a_notice(
    request_for: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magi_lite.pipeline.run.text_encoder_is_small", lambda files: False)
    control, events = RunControl(), []
    for event in generate(request_for(window=1), control=control, projects_folder=tmp_path / "projects"):
        events.append(event)
        if isinstance(event, Progress) and event.chunk == 0 and event.step == 1:

            def broken(*_: object, **__: object) -> None:
                raise CheckpointError("The text encoder is damaged; download it again.")

            monkeypatch.setattr("magi_lite.pipeline.prompts.load_text_encoder", broken)
            control.redirect(parse("[0s-3s: a green tree]"))
        if isinstance(event, ChunkFinished):
            time.sleep(0.2)
    assert isinstance(events[-1], Finished)
    messages = [event.message for event in events if isinstance(event, Notice)]
    assert "The new prompts were not applied: The text encoder is damaged; download it again." in messages


def test_the_time_left_of_a_resumed_run_counts_its_own_steps(request_for: Callable, tmp_path: Path) -> None:
    control = RunControl()
    for last in generate(request_for(seconds=4), control=control, projects_folder=tmp_path / "projects"):
        if isinstance(last, ChunkFinished):
            control.pause()
    began = 0.0
    for event in generate(None, resume=last.project):
        if isinstance(event, PhaseStarted) and event.phase == "denoise":
            began = time.monotonic()
        if isinstance(event, Progress):
            taken = time.monotonic() - began
            break
    per_chunk = 8 // 4
    assert event.seconds_per_chunk > 0.5 * per_chunk * taken


def test_nothing_can_be_redone_without_a_project(request_for: Callable, run: Callable) -> None:
    with pytest.raises(InputError, match="resume"):
        run(request_for(), from_chunk=1)
