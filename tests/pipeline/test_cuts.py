"""Cuts and pictures on blocks: a shot forgets what came before, and nothing before changes with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import magi_lite
from magi_lite.control import RunControl
from magi_lite.errors import InputError, MediaError
from magi_lite.events import ChunkFinished, Event, Finished, Notice, PhaseStarted, Progress, Redirected, Stopped
from magi_lite.pipeline import generate
from magi_lite.pipeline.decoding import psnr
from magi_lite.planner import learned
from magi_lite.project import Project
from magi_lite.request.json import request_from_json, request_to_json
from magi_lite.timeline.text import parse
from tests.pipeline.conftest import latents_of, paused_everywhere, same_bits

CUT = "[0s-3s: a red ball] [3s-5s cut: a blue box]"
WHOLE = "[0s-3s: a red ball] [3s-5s: a blue box]"


def picture(path: Path, seed: int = 1) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def close(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    """Equal but for the rounding of sums that windows of other sizes make in another order."""
    return len(first) == len(second) and all(np.allclose(a, b, atol=1e-4) for a, b in zip(first, second, strict=True))


def encoded(events: list[Event]) -> int:
    return sum(isinstance(event, PhaseStarted) and event.phase == "encode" for event in events)


def shots_of_states(folder: Path) -> dict[int, int]:
    with Project.open(folder) as project:
        return {stage: project.states.read(stage).shot for stage in project.states.stages()}


# --- what a cut does -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 4])
def test_a_cut_changes_no_second_before_it_and_every_one_behind(
    window: int, request_for: Callable, run: Callable
) -> None:
    with_cut = latents_of(run(request_for(CUT, seconds=5, window=window))[-1].project)
    without = latents_of(run(request_for(WHOLE, seconds=5, window=window))[-1].project)
    assert (same_bits if window == 1 else close)(with_cut[:3], without[:3])
    assert not any(np.allclose(a, b, atol=0.1) for a, b in zip(with_cut[3:], without[3:], strict=True))


@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_shot_knows_nothing_of_what_came_before(window: int, request_for: Callable, run: Callable) -> None:
    one = latents_of(run(request_for(CUT, seconds=5, window=window))[-1].project)
    other = latents_of(
        run(request_for(CUT.replace("a red ball", "a green tree"), seconds=5, window=window))[-1].project
    )
    assert not np.array_equal(one[2], other[2])
    assert same_bits(one[3:], other[3:])


def test_a_shot_draws_noise_of_its_own(request_for: Callable, run: Callable) -> None:
    """Equal prompts and lengths on both sides of a cut are two takes, of latents that are distributed alike."""
    request = request_for("[0s-2s: a red ball] [2s-4s cut: a red ball]", seconds=4)
    made = latents_of(run(replace(request, tokens=replace(request.tokens, duration=False)))[-1].project)
    for first, second in ((made[0], made[2]), (made[1], made[3])):
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.9
        assert second.std() == pytest.approx(first.std(), rel=0.2)


def test_states_say_in_which_shot_they_are(request_for: Callable, run: Callable) -> None:
    done = run(request_for(CUT, seconds=5, window=4))[-1]
    assert shots_of_states(done.project) == {0: 0, 1: 0, 2: 0, 3: 3, 4: 3, 5: 3, 6: 3, 7: 3}


def test_progress_rises_over_cuts_to_the_end(request_for: Callable, run: Callable) -> None:
    events = run(request_for(CUT, seconds=5, window=4))
    fractions = [event.fraction for event in events if isinstance(event, Progress)]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    assert len(fractions) == ((3 + 3) + (2 + 3)) * 2
    started = [event.started for event in events if isinstance(event, Progress)]
    assert started[::2] == [1, 2, 3, 3, 3, 3, 4, 5, 5, 5, 5]
    assert [event.chunk for event in events if isinstance(event, ChunkFinished)] == list(range(5))


def test_a_run_teaches_its_pace_once_however_many_shots_it_has(
    request_for: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = []
    monkeypatch.setattr(learned, "learn", lambda plan, clock: taught.append(clock.steps_measured))
    run(request_for(CUT, seconds=5, window=4))
    assert taught == [((3 + 3) + (2 + 3)) * 2 - 1]


# --- stopped at any moment, and resumed ------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2, 4])
def test_paused_at_every_stage_and_resumed_is_the_same_video(
    window: int, request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    text = f'[0s-2s: a red ball] [2s-4s cut: a blue box] [4s-5s image="{picture(tmp_path / "start.png")}": it jumps]'
    request = request_for(text, seconds=5, window=window)
    whole = run(request)[-1]
    folder = paused_everywhere(request, tmp_path / "projects")
    assert same_bits(latents_of(folder), latents_of(whole.project))


@pytest.mark.parametrize("died_after", range(2, 24, 3))
def test_a_reader_that_dies_anywhere_is_resumed_to_the_same_bits(
    died_after: int, request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    request = request_for(CUT, seconds=5)
    whole = run(request)[-1]
    steps, folder = 0, None
    events = generate(request, projects_folder=tmp_path / "projects")
    for event in events:
        folder = getattr(event, "project", folder) or folder
        steps += isinstance(event, Progress)
        if steps == died_after:
            break
    events.close()
    assert same_bits(latents_of(run(None, resume=folder)[-1].project), latents_of(whole.project))


def test_a_finished_shot_needs_no_state(request_for: Callable, run: Callable, tmp_path: Path) -> None:
    request, control = request_for(CUT, seconds=5), RunControl()
    whole = run(request)[-1]
    for event in generate(request, control=control, projects_folder=tmp_path / "projects"):
        if isinstance(event, ChunkFinished) and event.chunk == 2:
            control.stop()
    for path in (event.project / "states").iterdir():
        path.unlink()
    events = run(None, resume=event.project)
    assert not [notice for notice in events if isinstance(notice, Notice) and "No saved state" in notice.message]
    assert same_bits(latents_of(event.project), latents_of(whole.project))


def test_damage_in_one_shot_is_mended_there(request_for: Callable, run: Callable) -> None:
    whole = run(request_for(CUT, seconds=5))[-1]
    before = [second.copy() for second in latents_of(whole.project)]
    for kind in ("safetensors", "m4s"):
        (whole.project / "chunks" / f"00001.{kind}").unlink()
    whole.video.unlink()
    for path in (whole.project / "states").iterdir():
        path.unlink()
    again = run(None, resume=whole.project)[-1]
    assert isinstance(again, Finished)
    assert same_bits(latents_of(whole.project), before)


# --- redo, extend, redirect ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [1, 3, 4])
def test_a_redo_keeps_the_earlier_shots_and_repeats_its_own_bits(
    second: int, request_for: Callable, run: Callable
) -> None:
    old = run(request_for(CUT, seconds=5))[-1]
    again = run(None, resume=old.project, from_chunk=second)[-1]
    assert same_bits(latents_of(again.project), latents_of(old.project))
    other = run(request_for(CUT, seconds=5, seed=9), resume=old.project, from_chunk=second)[-1]
    made, before = latents_of(other.project), latents_of(old.project)
    assert same_bits(made[:second], before[:second])
    assert not any(np.allclose(a, b, atol=0.1) for a, b in zip(made[second:], before[second:], strict=True))


def test_a_redo_may_add_and_take_away_a_cut(request_for: Callable, run: Callable) -> None:
    with_cut = run(request_for(CUT, seconds=5, window=2))[-1]
    without = run(request_for(WHOLE, seconds=5, window=2))[-1]
    added = run(request_for(CUT, seconds=5, window=2), resume=without.project, from_chunk=3)[-1]
    taken = run(request_for(WHOLE, seconds=5, window=2), resume=with_cut.project, from_chunk=3)[-1]
    assert same_bits(latents_of(added.project)[3:], latents_of(with_cut.project)[3:])
    assert same_bits(latents_of(added.project)[:3], latents_of(without.project)[:3])
    assert close(latents_of(taken.project), latents_of(without.project))
    with Project.open(taken.project) as project:
        assert [shot.start for shot in project.request.timeline.shots(5)] == [0]


def test_a_video_with_a_cut_is_made_longer(request_for: Callable, run: Callable) -> None:
    request = request_for(CUT, seconds=5, tokens=replace(request_for().tokens, duration=False))
    short = run(request)[-1]
    kept = latents_of(short.project)
    longer = latents_of(run(replace(request, seconds=7), resume=short.project)[-1].project)
    assert same_bits(longer[:5], kept)
    assert close(longer, latents_of(run(replace(request, seconds=7))[-1].project))
    more = replace(request, seconds=8, timeline=parse(CUT + " [7s-8s cut: a green tree]"))
    again = latents_of(run(more, resume=short.project)[-1].project)
    assert same_bits(again[:7], longer)
    assert same_bits(again[7:], latents_of(run(more)[-1].project)[7:])


def redirected(request, projects: Path, at: Callable[[Progress], bool], text: str) -> list[Event]:
    control, events, asked = RunControl(), [], False
    for event in generate(request, control=control, projects_folder=projects):
        if isinstance(event, Progress) and at(event) and not asked:
            control.redirect(parse(text))
            asked = True
        events.append(event)
    assert asked
    return events


def first_redirected(events: list[Event]) -> int:
    (second,) = [event.second for event in events if isinstance(event, Redirected)]
    return second


@pytest.mark.parametrize("window", [1, 2, 4])
def test_a_cut_is_added_while_the_video_is_made(
    window: int, request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    """It is the video that would have been asked for, for the seconds before had the prompts that they had anyway."""
    request = request_for(WHOLE, seconds=5, window=window)
    events = redirected(request, tmp_path / "projects", lambda progress: True, CUT)
    assert first_redirected(events) == 1
    asked = run(request_for(CUT, seconds=5, window=window))[-1]
    assert same_bits(latents_of(events[-1].project), latents_of(asked.project))


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("draining", [False, True])
def test_a_cut_is_taken_away_while_the_video_is_made(
    window: int, draining: bool, request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    """Also when the seconds before it are being finished without the next one."""
    stages = [0]

    def at(progress: Progress) -> bool:
        stages[0] += progress.step == 1
        return stages[0] == (4 if draining and window > 1 else 2)

    request = request_for(CUT, seconds=5, window=window)
    events = redirected(request, tmp_path / "projects", at, WHOLE)
    assert first_redirected(events) == (3 if draining and window > 1 else 2)
    made = latents_of(events[-1].project)
    assert close(made, latents_of(run(request_for(WHOLE, seconds=5, window=window))[-1].project))
    again = run(None, resume=events[-1].project, from_chunk=2)[-1]
    assert close(latents_of(again.project), made)


def test_a_picture_is_brought_while_the_video_is_made(request_for: Callable, run: Callable, tmp_path: Path) -> None:
    path = picture(tmp_path / "late.png")
    text = f'[0s-3s: a red ball] [3s-5s image="{path}": a blue box]'
    events = redirected(request_for(WHOLE, seconds=5), tmp_path / "projects", lambda progress: True, text)
    assert encoded(events) == 1
    asked = run(request_for(text, seconds=5))[-1]
    assert same_bits(latents_of(events[-1].project), latents_of(asked.project))
    path.unlink()
    again = run(None, resume=events[-1].project, from_chunk=3)
    assert same_bits(latents_of(again[-1].project), latents_of(asked.project))


def test_a_picture_that_cannot_be_read_is_not_brought(request_for: Callable, run: Callable, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    text = f'[0s-3s: a red ball] [3s-5s image="{tmp_path / "bad.png"}": a blue box]'
    events = redirected(request_for(WHOLE, seconds=5), tmp_path / "projects", lambda progress: True, text)
    assert isinstance(events[-1], Finished)
    assert [event for event in events if isinstance(event, Notice) and "were not applied" in event.message]
    assert same_bits(latents_of(events[-1].project), latents_of(run(request_for(WHOLE, seconds=5))[-1].project))


def test_an_endless_run_goes_on_behind_a_cut(request_for: Callable, tmp_path: Path) -> None:
    request, made = request_for("[0s-2s: a] [2s-3s cut: b]", seconds=None, window=2), []
    for seconds in (None, 5):
        control = RunControl()
        for event in generate(
            replace(request, seconds=seconds), control=control, projects_folder=tmp_path / "projects"
        ):
            if isinstance(event, ChunkFinished) and event.chunk == 4:
                control.stop()
        made.append(latents_of(event.project))
    assert isinstance(event, Finished | Stopped)
    assert len(made[0]) == 5


# --- pictures --------------------------------------------------------------------------------------------------------


def test_a_shot_starts_from_its_picture(request_for: Callable, run: Callable, tmp_path: Path) -> None:
    """Its first latent frame is the picture's own, as when a video starts from it."""
    path = picture(tmp_path / "start.png")
    text = f'[0s-2s: a red ball] [2s-4s image="{path}": a blue box] [4s-5s image="{path}": it jumps]'
    events = run(request_for(text, seconds=5))
    assert encoded(events) == 1  # the same picture twice
    alone = run(request_for("[0s-2s: a blue box]", seconds=2, image=path))[-1]
    made, started = latents_of(events[-1].project), latents_of(alone.project)
    assert np.array_equal(made[2][:, :, :1], started[0][:, :, :1])
    assert np.array_equal(made[4][:, :, :1], started[0][:, :, :1])
    assert not np.array_equal(made[0][:, :, :1], started[0][:, :, :1])
    frames = [event.frames for event in events if isinstance(event, ChunkFinished)]
    assert [len(one) for one in frames] == [24] * 5
    assert psnr(frames[2][0], frames[4][0]) > psnr(frames[2][0], frames[0][0]) + 6  # the decoder is untrained


def test_the_first_block_can_carry_the_picture_that_the_video_starts_from(
    request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    path = picture(tmp_path / "start.png")
    on_block = run(request_for(f'[0s-2s image="{path}": a blue box]', seconds=2))[-1]
    alone = run(request_for("[0s-2s: a blue box]", seconds=2, image=path))[-1]
    assert same_bits(latents_of(on_block.project), latents_of(alone.project))
    with pytest.raises(InputError, match="keep one of them"):
        run(request_for(f'[0s-2s image="{path}": a blue box]', seconds=2, image=path))


def test_pictures_lie_in_the_runs_folder_by_their_content(
    request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    first, second = picture(tmp_path / "a" / "start.png") if (tmp_path / "a").mkdir() is None else None, tmp_path / "b"
    second.mkdir()
    other = picture(second / "start.png", seed=2)
    text = f'[0s-1s image="{first}": a] [1s-2s image="{other}": b] [2s-3s image="{first}": c]'
    done = run(request_for(text, seconds=3))[-1]
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    with Project.open(done.project) as project:
        own = [segment.image for segment in project.request.timeline.segments]
        assert own[0] == own[2] != own[1]
        assert {path.parent for path in own} == {done.project / "inputs"}
        back = request_from_json(request_to_json(project.request))
        assert back == project.request
        outside = request_to_json(project.request, paths=False)["timeline"]["segments"]
        assert all("/" not in one["image"] and len(one["image_sha256"]) == 64 for one in outside)
    moved = done.project.rename(done.project.with_name("moved"))
    again = run(None, resume=moved, from_chunk=1)
    assert encoded(again) == 0
    assert same_bits(latents_of(again[-1].project), latents_of(moved))
    for latents in (moved / "inputs").glob("*.safetensors"):
        latents.unlink()
        latents.write_bytes(b"damaged")
    once_more = run(None, resume=moved, from_chunk=0)
    assert encoded(once_more) == 2
    assert same_bits(latents_of(once_more[-1].project), latents_of(moved))


def test_another_picture_of_the_same_name_is_refused(request_for: Callable, run: Callable, tmp_path: Path) -> None:
    path = picture(tmp_path / "start.png")
    text = f'[0s-1s: a] [1s-2s image="{path}" sha256={"0" * 64}: b]'
    with pytest.raises(MediaError, match=r"start.png is not the picture .* block at 1 s"):
        run(request_for(text, seconds=2))
    with pytest.raises(MediaError, match="nowhere"):
        run(request_for('[0s-1s: a] [1s-2s image="nowhere.png": b]', seconds=2))
    assert not list((tmp_path / "projects").glob("*"))


def test_the_trained_model_holds_a_shots_picture(tmp_path: Path) -> None:
    """A frame of one of its own videos: the picture's first frame is seen again, and only behind its cut."""
    options = {"seconds": 1, "preset": "demo", "window": 1, "projects": tmp_path / "projects"}
    taken = next(magi_lite.generate("a large red ball moves right in a meadow", seed=3, **options).frames())
    blocks = [
        {"start": 0, "end": 1, "prompt": "a small yellow car stands still in a town at night"},
        {"start": 1, "end": 2, "prompt": "a large red ball moves right in a meadow", "image": taken},
    ]
    made = magi_lite.generate(timeline={"segments": blocks}, seed=5, **options | {"seconds": 2})
    frames = list(made.frames())
    assert len(frames) == 48
    assert psnr(frames[24], taken) > 28
    assert psnr(frames[23], taken) < 15
