"""What a run starts from: a clip of any length, a file beside a project's own, states that are there or gone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from magi_lite.control import RunControl
from magi_lite.errors import InputError, OutputError
from magi_lite.events import ChunkFinished, Event, Notice, PhaseStarted, Stopped
from magi_lite.pipeline import generate
from magi_lite.pipeline.prefix import prefix_pixels
from magi_lite.project import Project
from tests.pipeline.conftest import latents_of, same_bits


def clip(path: Path, frames: int) -> Path:
    """A clip at 24 frames per second whose frames grow brighter."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 9 * number, np.uint8))))
        container.mux(stream.encode())
    return path


def notices(events: list[Event]) -> str:
    return " ".join(event.message for event in events if isinstance(event, Notice))


def watched(events: list[Event]) -> bool:
    return any(isinstance(event, PhaseStarted) and event.phase == "encode" for event in events)


def remove_states(folder: Path, keep: Callable[[int], bool] = lambda stage: False) -> None:
    for path in (folder / "states").glob("*.safetensors"):
        if not keep(int(path.stem)):
            path.unlink()


# --- clips -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [4, 8, 20, 23])
def test_a_clip_shorter_than_a_second_is_held_to_fill_one(frames: int, request_for: Callable, tmp_path: Path) -> None:
    before = prefix_pixels(request_for(video=clip(tmp_path / "short.mp4", frames)), reach=4)
    assert before is not None
    assert len(before.pixels) == 24
    held = 24 - frames
    assert (before.pixels[: held + 1] == before.pixels[0]).all()
    brightness = before.pixels[held:].mean(axis=(1, 2, 3))
    assert (np.diff(brightness) > 3).all()
    assert "short.mp4 is shorter than a second" in before.notice


def test_seconds_behind_a_short_clip_are_whole(request_for: Callable, run: Callable, tmp_path: Path) -> None:
    request = request_for("[0s-1s: a] [1s-2s: b]", seconds=2, window=1, video=clip(tmp_path / "short.mp4", 20))
    events = run(request)
    assert [len(event.frames) for event in events if isinstance(event, ChunkFinished)] == [24, 24]
    assert "its first frame is held" in notices(events)


def test_a_longer_clip_is_read_from_its_end_and_needs_no_notice(request_for: Callable, tmp_path: Path) -> None:
    before = prefix_pixels(request_for(video=clip(tmp_path / "long.mp4", 27)), reach=4)
    assert len(before.pixels) == 24
    assert before.pixels[0].mean() > 15
    assert before.notice == ""


def test_a_file_beside_a_projects_video_is_a_clip_of_its_own(
    request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    request = request_for("[0s-1s: a red ball]", seconds=1)
    first = run(request)[-1]
    beside = clip(first.project / "foreign.mp4", 24)
    events = run(replace(request, video=beside))
    assert watched(events)
    apart = run(replace(request, video=clip(tmp_path / "foreign.mp4", 24)))
    assert same_bits(latents_of(events[-1].project), latents_of(apart[-1].project))
    assert not watched(run(replace(request, video=first.video)))


def forget_seconds(folder: Path) -> None:
    """Leave of a run what it was before its first second."""
    for path in (*(folder / "chunks").iterdir(), *(folder / "states").iterdir(), folder / "video.mp4"):
        path.unlink()


@pytest.mark.parametrize("damage", [b"", b"no latents at all", None])
def test_a_damaged_prefix_is_encoded_again(
    damage: bytes | None, request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    Image.effect_noise((32, 32), 64).convert("RGB").save(tmp_path / "start.png")
    request = request_for("[0s-1s: a red ball]", seconds=1, window=1, image=tmp_path / "start.png")
    whole = run(request)[-1].project
    again = run(None, resume=whole, from_chunk=0)[-1].project
    prefix = again / "inputs" / "prefix.safetensors"
    data = prefix.read_bytes()
    prefix.unlink()  # a branch shares the file
    prefix.write_bytes(data[:-5] if damage is None else damage)
    forget_seconds(again)
    events = run(None, resume=again)
    assert watched(events)
    assert same_bits(latents_of(again), latents_of(whole))


def test_a_damaged_prefix_without_its_source_is_one_sentence(
    request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    request = request_for("[0s-1s: a red ball]", seconds=1, window=1, video=clip(tmp_path / "clip.mp4", 24))
    folder = run(request)[-1].project
    shutil.rmtree(folder / "inputs")
    (folder / "inputs").mkdir()
    (tmp_path / "clip.mp4").unlink()
    (folder / "inputs" / "prefix.safetensors").write_bytes(b"no latents")
    with pytest.raises(InputError, match=r"prefix\.safetensors is damaged"):
        run(None, resume=folder, from_chunk=0)


# --- states ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def endless(request_for: Callable, run: Callable, tmp_path: Path) -> Path:
    """An endless run of six seconds, stopped."""
    control = RunControl()
    request = request_for("[0s-1s: a red ball]", seconds=None, window=1)
    for event in generate(request, control=control, projects_folder=tmp_path / "projects"):
        if isinstance(event, ChunkFinished) and event.chunk == 5:
            control.stop()
    assert isinstance(event, Stopped)
    return event.project


@pytest.mark.parametrize("second", [2, 5])
def test_a_redo_without_states_follows_the_kept_seconds(second: int, endless: Path, run: Callable) -> None:
    with Project.open(endless) as project:
        wanted = replace(project.request, seconds=6, seed=project.request.seed + 1)
    exact = run(wanted, resume=endless, from_chunk=second)
    remove_states(endless)
    events = run(wanted, resume=endless, from_chunk=second)
    assert f"No saved state leads to second {second}" in notices(events)
    assert not notices(exact)
    begun = [event.chunk for event in events if isinstance(event, ChunkFinished)]
    assert begun == list(range(second, 6))
    with_states, without = latents_of(exact[-1].project), latents_of(events[-1].project)
    assert same_bits(without[:second], latents_of(endless)[:second])
    for one, other in zip(with_states, without, strict=True):  # at window 1 nothing is lost but the order of the keys
        assert np.allclose(one, other, atol=1e-4)
    assert not np.allclose(without[second], latents_of(endless)[second], atol=1e-2)


def test_a_redo_without_states_goes_on_and_is_resumed_at_any_window(
    request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    folder = run(request_for("[0s-5s: a red ball]", seconds=5))[-1].project
    remove_states(folder)
    with Project.open(folder) as project:
        newer = replace(project.request, seed=99, seconds=8)
    whole = run(newer, resume=folder, from_chunk=3)[-1].project
    control = RunControl()
    for event in generate(newer, resume=folder, from_chunk=3, control=control):
        if isinstance(event, ChunkFinished) and event.chunk == 4:
            control.pause()
    resumed = run(None, resume=event.project)
    assert not notices(resumed)
    assert [e.chunk for e in resumed if isinstance(e, ChunkFinished)] == [5, 6, 7]
    assert same_bits(latents_of(event.project), latents_of(whole))
    assert same_bits(latents_of(whole)[:3], latents_of(folder)[:3])


def test_an_old_state_is_not_gone_on_from_where_the_kept_seconds_are_others(endless: Path, run: Callable) -> None:
    with Project.open(endless) as project:
        newer = replace(project.request, seconds=6, seed=project.request.seed + 1)
    second = run(newer, resume=endless, from_chunk=2)[-1].project
    remove_states(second, lambda stage: stage == 1)  # that after which the other seed holds
    third = run(replace(newer, seed=5), resume=second, from_chunk=5)
    assert "No saved state leads to second 5" in notices(third)
    assert same_bits(latents_of(third[-1].project)[:5], latents_of(second)[:5])


def test_few_seconds_asked_for_as_now_are_computed_again(request_for: Callable, run: Callable) -> None:
    whole = run(request_for("[0s-3s: a red ball]", window=1))[-1].project
    part = run(None, resume=whole, from_chunk=0)[-1].project
    forget_seconds(part)
    for index in (2,):
        for kind in ("safetensors", "m4s", "jpg"):
            (whole / "chunks" / f"{index:05}.{kind}").unlink()
    remove_states(whole)
    events = run(None, resume=whole)
    assert not notices(events)
    assert [event.chunk for event in events if isinstance(event, ChunkFinished)] == [2]
    run(None, resume=part)
    assert same_bits(latents_of(whole), latents_of(part))


def test_a_run_without_room_leaves_no_project(request_for: Callable, run: Callable, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="1000000 seconds of this size need about"):
        run(request_for("[0s-1s: a red ball]", seconds=1_000_000, width=4096, height=4096))
    assert not (tmp_path / "projects").exists()
