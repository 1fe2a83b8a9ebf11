"""The video at the place the user chose: in step with the project's on every disk, and never written twice over."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from magi_lite.errors import OutputError
from magi_lite.models import MODELS, SamplerSettings
from magi_lite.pipeline.delivery import Delivery
from magi_lite.planner.disk import check_room, disk_use
from magi_lite.project import Project
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline.text import parse
from magi_lite.video import fragments
from tests.disk import small_files

MODEL = MODELS["4.5B-distill"]
REQUEST = GenerationRequest(parse("[0s-9s: a]"), 9, 32, 32)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with Project.create(tmp_path / "projects", REQUEST) as made:
        yield made


@pytest.fixture
def another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place to which nothing can be linked, as on another disk."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    return tmp_path / "film.mp4"


def add_second(project: Project) -> None:
    frames = np.random.default_rng().integers(0, 256, (24, 32, 32, 3), np.uint8)
    project.write_chunk(project.chunks, torch.randn(1, 16, 6, 4, 4), frames)


def test_a_copy_grows_by_what_is_new(project: Project, another_disk: Path) -> None:
    delivery, numbers = Delivery(project, another_disk), set()
    for _ in range(4):
        add_second(project)
        delivery.update()
        assert another_disk.read_bytes() == project.video.read_bytes()
        numbers.add(another_disk.stat().st_ino)
    assert len(numbers) == 1  # appended to, not written anew
    assert len(fragments.scan(another_disk).fragments) == 4


def test_a_link_is_the_same_file(project: Project, tmp_path: Path) -> None:
    delivery = Delivery(project, tmp_path / "film.mp4")
    for _ in range(2):
        add_second(project)
        delivery.update()
    assert (tmp_path / "film.mp4").samefile(project.video)


@pytest.mark.parametrize("what", ["rewritten", "gone", "cut"])
def test_a_copy_that_was_touched_is_made_anew(what: str, project: Project, another_disk: Path) -> None:
    delivery = Delivery(project, another_disk)
    add_second(project)
    delivery.update()
    if what == "rewritten":
        project.edit_timeline(parse("[0s-1s: other settings for the video to carry]"), 0)
        project.set_status("stopped")
    elif what == "gone":
        another_disk.unlink()
    else:
        os.truncate(another_disk, 100)
    add_second(project)
    delivery.update()
    assert another_disk.read_bytes() == project.video.read_bytes()


def test_a_full_disk_leaves_whole_seconds(project: Project, another_disk: Path) -> None:
    delivery = Delivery(project, another_disk)
    add_second(project)
    delivery.update()
    before = another_disk.read_bytes()
    add_second(project)
    with small_files(len(before) + 100), pytest.raises(OutputError, match="The disk is full or limited at"):
        delivery.update()
    assert another_disk.read_bytes() == before
    delivery.update()
    assert another_disk.read_bytes() == project.video.read_bytes()


# --- room ------------------------------------------------------------------------------------------------------------


def test_where_the_video_is_when_its_place_is_gone(project: Project, another_disk: Path) -> None:
    folder = another_disk.parent / "stick"
    folder.mkdir()
    delivery = Delivery(project, folder / "film.mp4")
    add_second(project)
    delivery.update()
    (folder / "film.mp4").unlink()
    folder.rmdir()
    for work in (delivery.update, delivery.finish):
        with pytest.raises(OutputError) as caught:
            work()
        assert str(caught.value).endswith(f"; the finished seconds are in {project.video.absolute()}.")


def test_latents_take_what_is_said(project: Project) -> None:
    for _ in range(3):
        add_second(project)
    header = 400  # names, shape and two checksums
    latents = sum(path.stat().st_size for path in project.folder.glob("chunks/*.safetensors"))
    assert 0 <= latents - 3 * disk_use(REQUEST, MODEL).latents <= 3 * header


def test_states_of_the_published_size_take_tens_of_megabytes() -> None:
    use = disk_use(GenerationRequest(parse("[0s-9s: a cat]"), 9, 720, 720, window=4), MODEL)
    window_and_clean = 5 * 16 * 6 * 90 * 90 * 4
    captions = use.state - window_and_clean
    assert 0 < captions < 4 * 800 * 4096 * 4
    assert use.project > use.state + use.latents


def test_states_take_what_the_models_own_sampling_keeps() -> None:
    """A model whose chunks see further back keeps more of them in every state."""
    far = replace(MODEL, sampler=SamplerSettings(noise_to_clean_ranges=(9, 7, 5, 3)))
    usual, use = disk_use(REQUEST, MODEL), disk_use(REQUEST, far)
    assert use.state - usual.state == 4 * usual.latents and use.latents == usual.latents


def test_a_run_without_room_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    huge = GenerationRequest(parse("[0s-1s: a]"), 1_000_000, 4096, 4096)
    with pytest.raises(OutputError, match=r"1000000 seconds of this size need about \d+\.\d GB and .* free; free some"):
        check_room(huge, MODEL, tmp_path / "not" / "there")
    check_room(REQUEST, MODEL, tmp_path / "not" / "there")
    check_room(huge, MODEL, tmp_path, finished=1_000_000)
    assert not list(tmp_path.iterdir())
