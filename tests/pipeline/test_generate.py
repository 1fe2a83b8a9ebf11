"""A run from request to video: order of events, growth, stop, pause, resume, redo, extend, redirect, continue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from magi_lite.control import RunControl
from magi_lite.errors import InputError
from magi_lite.events import ChunkFinished, Finished, Notice, Opened, PhaseStarted, PlanReady, Progress, Stopped
from magi_lite.pipeline import generate
from magi_lite.project import Project
from magi_lite.timeline.text import parse
from magi_lite.video.writer import read_settings
from tests.pipeline.conftest import latents_of, paused_everywhere, same_bits

pytestmark = pytest.mark.usefixtures("run")  # keeps embeddings out of the home folder


def frames_in(video: Path) -> int:
    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_events_tell_the_story_in_order(request_for: Callable, run: Callable, tmp_path: Path) -> None:
    events = run(request_for(out=tmp_path / "ball.mp4"))
    kinds = [type(event) for event in events]
    assert kinds.index(Opened) < kinds.index(PlanReady) < kinds.index(Progress) < kinds.index(ChunkFinished)
    assert [event.phase for event in events if isinstance(event, PhaseStarted)] == ["check", "text", "load", "denoise"]
    assert [event.chunk for event in events if isinstance(event, ChunkFinished)] == [0, 1, 2]
    fractions = [event.fraction for event in events if isinstance(event, Progress)]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.video == tmp_path / "ball.mp4"
    assert frames_in(finished.video) == 72
    assert read_settings(finished.video)["seed"] == 7


def test_an_untrained_demo_says_so(
    request_for: Callable, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magi_lite.weights.opening.DEMO_FOLDER", tmp_path / "nothing")
    request = request_for(model="demo", models_folder=tmp_path, seconds=1, timeline="[0s-1s: a red ball]")
    notices = [e for e in generate(request, projects_folder=tmp_path / "projects") if isinstance(e, Notice)]
    assert "untrained" in notices[0].message


def test_first_second_plays_before_the_second_is_made(request_for: Callable, tmp_path: Path) -> None:
    out = tmp_path / "grows.mp4"
    seen = []
    for event in generate(request_for(out=out), projects_folder=tmp_path / "projects"):
        if isinstance(event, ChunkFinished):
            seen.append(frames_in(out))
    assert seen == [24, 48, 72]


@pytest.mark.parametrize("window", [1, 2, 4])
def test_paused_and_resumed_is_the_same_video_bit_for_bit(
    window: int, request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    request = request_for(window=window, seconds=4, timeline="[0s-1s: a red ball] [1s-4s: a blue box]")
    whole = run(request)[-1]
    folder = paused_everywhere(request, tmp_path / "projects")
    assert same_bits(latents_of(folder), latents_of(whole.project))


def test_stop_keeps_finished_seconds_and_can_be_resumed(request_for: Callable, run: Callable, tmp_path: Path) -> None:
    request = request_for()
    whole = run(request)[-1]
    control, events = RunControl(), []
    for event in generate(request, control=control, projects_folder=tmp_path / "projects"):
        events.append(event)
        if isinstance(event, ChunkFinished):
            control.stop()
    stopped = events[-1]
    assert isinstance(stopped, Stopped)
    assert stopped.chunks == 1
    assert frames_in(stopped.video) == 24
    with Project.open(stopped.project) as project:
        assert project.status == "stopped"
    resumed = run(None, resume=stopped.project)[-1]
    assert isinstance(resumed, Finished)
    assert same_bits(latents_of(resumed.project), latents_of(whole.project))


def test_redo_keeps_earlier_seconds_and_leaves_the_old_version(request_for: Callable, run: Callable) -> None:
    request = request_for(window=2)
    old = run(request)[-1]
    before = latents_of(old.project)
    again = run(replace(request, seed=8), resume=old.project, from_chunk=2)[-1]
    after = latents_of(again.project)
    assert again.project != old.project
    assert same_bits(after[:2], before[:2])
    assert not np.array_equal(after[2], before[2])
    assert same_bits(latents_of(old.project), before)


def test_redo_with_the_same_settings_gives_the_same_bits(request_for: Callable, run: Callable) -> None:
    old = run(request_for())[-1]
    again = run(None, resume=old.project, from_chunk=1)[-1]
    assert same_bits(latents_of(again.project), latents_of(old.project))


def test_extending_a_finished_video_keeps_it_and_goes_on(request_for: Callable, run: Callable) -> None:
    request = request_for(tokens=replace(request_for().tokens, duration=False))
    short = run(request)[-1]
    kept = latents_of(short.project)
    longer = run(replace(request, seconds=5), resume=short.project)[-1]
    assert longer.project == short.project
    after = latents_of(longer.project)
    assert len(after) == 5
    assert same_bits(after[:3], kept)
    direct = latents_of(run(replace(request, seconds=5))[-1].project)
    # the window is fuller than when the short video ended: the same sums, rounded in another order
    assert all(np.allclose(a, b, atol=1e-4) for a, b in zip(after, direct, strict=True))


def test_new_words_are_obeyed_by_seconds_not_begun_and_by_no_other(request_for: Callable, tmp_path: Path) -> None:
    request = request_for(window=1, timeline="[0s-3s: a red ball]")
    plain = [*generate(request, projects_folder=tmp_path / "projects")][-1]
    control = RunControl()
    for event in generate(request, control=control, projects_folder=tmp_path / "projects"):
        if isinstance(event, Progress) and event.chunk == 1 and event.step == 1:
            control.redirect(parse("[0s-3s: a green tree]"))
        last = event
    old, new = latents_of(plain.project), latents_of(last.project)
    assert same_bits(new[:2], old[:2])
    assert not np.array_equal(new[2], old[2])
    with Project.open(last.project) as project:
        words = [mix.text for mix in project.request.timeline.compile(3)]
    assert words == ["a red ball", "a red ball", "a green tree"]


def test_an_image_is_the_first_frame_and_stays_in_the_project(
    request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    Image.effect_noise((50, 40), 64).convert("RGB").save(tmp_path / "start.png")
    events = run(request_for(image=tmp_path / "start.png", seconds=1, timeline="[0s-1s: a red ball]"))
    assert "encode" in [event.phase for event in events if isinstance(event, PhaseStarted)]
    assert frames_in(events[-1].video) == 24
    (tmp_path / "start.png").unlink()
    again = run(None, resume=events[-1].project, from_chunk=0)[-1]
    assert same_bits(latents_of(again.project), latents_of(events[-1].project))


def test_a_video_of_ours_is_continued_from_its_latents(request_for: Callable, run: Callable, tmp_path: Path) -> None:
    first = run(request_for())[-1]
    events = run(request_for(video=first.video, seconds=2, timeline="[0s-2s: it jumps]"))
    assert not [event for event in events if isinstance(event, PhaseStarted) and event.phase == "encode"]
    assert len(latents_of(events[-1].project)) == 2
    assert frames_in(events[-1].video) == 48


def test_a_video_whose_project_is_damaged_is_continued_as_any_clip(
    request_for: Callable, run: Callable
) -> None:
    first = run(request_for("[0s-1s: a red ball]", seconds=1))[-1]
    (first.project / "chunks" / "00000.safetensors").write_bytes(b"no latents")
    events = run(request_for("[0s-1s: it jumps]", seconds=1, video=first.video))
    assert [event for event in events if isinstance(event, PhaseStarted) and event.phase == "encode"]
    assert isinstance(events[-1], Finished)


def test_a_foreign_clip_is_continued_from_its_tail(request_for: Callable, run: Callable, tmp_path: Path) -> None:
    clip = tmp_path / "foreign.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(45):
            picture = np.full((48, 64, 3), 5 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    events = run(request_for(video=clip, seconds=1, timeline="[0s-1s: it jumps]"))
    assert isinstance(events[-1], Finished)
    assert frames_in(events[-1].video) == 24


def test_endless_goes_on_until_stopped(request_for: Callable, tmp_path: Path) -> None:
    control, count = RunControl(), 0
    for event in generate(request_for(seconds=None, window=1), control=control, projects_folder=tmp_path / "projects"):
        if isinstance(event, Progress):
            assert event.chunks is None
            assert event.fraction is None
        if isinstance(event, ChunkFinished):
            count += 1
            if count == 5:
                control.stop()
    assert isinstance(event, Stopped)
    assert event.chunks == 5


def test_nothing_to_make_is_said(run: Callable) -> None:
    with pytest.raises(InputError, match="nothing to make"):
        run(None)
