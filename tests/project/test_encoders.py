"""Videos that another version of the encoder began: their fragments need other parameter sets than ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from magi_lite.control import RunControl
from magi_lite.events import ChunkFinished, Finished, Notice
from magi_lite.pipeline import generate
from magi_lite.project import Project
from magi_lite.project.tensors import load_tensors, save_tensors
from magi_lite.video import fragments

# The pipeline's fixtures, too: a tiny model, and a run of it.
from tests.pipeline.conftest import latents_of, request_for, same_bits  # noqa: F401
from tests.pipeline.conftest import run as generated  # noqa: F401

from .conftest import run

OURS = fragments.X264_PARAMETERS


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Make the encoder another version's, or ours again: fewer reference frames, so other parameter sets."""

    def switch(on: bool) -> None:
        monkeypatch.setattr(fragments, "X264_PARAMETERS", OURS + ":ref=1" * on)

    return switch


def plays(project: Project) -> bool:
    """Whether all seconds come out of the video whole and look like their thumbnails."""
    with av.open(str(project.video), options={"err_detect": "explode"}) as container:
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    firsts = [np.asarray(Image.fromarray(frame).resize((72, 72), Image.Resampling.BOX)) for frame in frames[::24]]
    strips = [np.asarray(Image.open(project.thumbnail(n)).convert("L"))[:, :72] for n in range(project.chunks)]
    near = [np.abs(a.astype(int) - b).mean() < 25 for a, b in zip(firsts, strips, strict=True)]
    return len(frames) == 24 * project.chunks and all(near)


def forget(project: Project) -> None:
    """Take away what an earlier version of the program did not write."""
    for second in range(project.chunks):
        path = project.seconds.path(second, "safetensors")
        tensors, header = load_tensors(path)
        header.pop("parameters")
        save_tensors(path, tensors, header)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_finished_video_of_another_encoder_stays_as_it_is(tmp_path, ask, other, recorded):
    other(True)
    with Project.create(tmp_path, ask()) as project:
        run(project)
    if not recorded:
        forget(project)
    before = [project.read_fragment(n) for n in range(4)]
    other(False)
    with Project.open(project.folder) as again:
        assert again.free_frames(appending=False) == ""
        again.run_as(ask(out=tmp_path / "x.mp4"))
        again.set_status("finished")  # writes the settings into the video anew
        assert [again.read_fragment(n) for n in range(4)] == before
        assert plays(again)
        with again.branch(2) as branch:
            assert plays(branch) and branch.chunks == 2
            assert branch.free_frames(appending=True).startswith("The frames of seconds 0 to 1 were encoded by another")
            assert branch.chunks == 0 and branch.seconds.undecoded() == 0
        assert plays(again)


@pytest.mark.parametrize("lost", ["nothing", "the record", "record and video"])
def test_a_run_that_goes_on_encodes_its_frames_again(lost, request_for, generated, tmp_path, other):  # noqa: F811
    other(True)
    control = RunControl()
    for event in generate(request_for(), control=control, projects_folder=tmp_path / "projects"):
        if isinstance(event, ChunkFinished) and event.chunk == 0:
            control.pause()
    folder: Path = event.project
    kept = latents_of(folder)
    with Project.open(folder) as project:
        if lost != "nothing":
            forget(project)
        if lost == "record and video":
            project.video.unlink()
    other(False)
    events = generated(None, resume=folder)
    assert isinstance(events[-1], Finished)
    sentences = [event.message for event in events if isinstance(event, Notice)]
    assert sum("by another version of the video encoder" in sentence for sentence in sentences) == 1
    assert same_bits(latents_of(folder)[: len(kept)], kept)
    with Project.open(folder) as project:
        assert project.chunks == 3 and plays(project) and project.free_frames(appending=True) == ""
        assert any((folder / "damaged").glob("*.m4s"))


def test_the_check_tells_its_own_fragments_from_others(other):
    frames = np.random.default_rng(3).integers(0, 255, (24, 64, 64, 3), dtype=np.uint8)
    inits, pieces = [], []
    for on in (False, True):
        other(on)
        inits.append(fragments.encode_init((64, 64), 24, 18, {"a": 1}))
        pieces.append(fragments.encode_chunk(frames, 24, 18))
    ours, theirs = (fragments.parameter_sets(init) for init in inits)
    assert ours != theirs and fragments.decodes(inits[0], pieces[0]) and fragments.decodes(inits[1], pieces[1])
    other(False)
    patched = fragments.encode_init((64, 64), 24, 18, {"a": 1}, theirs)
    assert fragments.parameter_sets(patched) == theirs and fragments.decodes(patched, pieces[1])
