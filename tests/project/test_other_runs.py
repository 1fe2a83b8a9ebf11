"""Seconds of another run, copied into a run's folder with all their checksums: seen, moved aside and made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from magi_lite.errors import InputError
from magi_lite.project import Project

from .conftest import KINDS, State, run, second


def run_holding(project: Project) -> None:
    """Go on as `run` does, with states that hold the latents of the second made last, as the sampler's do."""
    state = project.latest_state()
    before = state.tensors["before"] if state else 0
    for index in range(state.stage + 1 if state else 0, project.request.seconds):
        before, frames = second(project.request, index, before)
        project.write_chunk(index, before, frames)
        project.save_state(index, State({"next_stage": index + 1}, {"before": before, f"clean.{index}": before}))
    project.set_status("finished")


def made(root: Path, request: Any, holding: bool = True) -> Path:
    with Project.create(root, request) as project:
        (run_holding if holding else run)(project)
    return project.folder


def put(source: Path, target: Path, *seconds: int) -> None:
    for index in seconds:
        for kind in KINDS:
            shutil.copyfile(source / "chunks" / f"{index:05}.{kind}", target / "chunks" / f"{index:05}.{kind}")


def whole(folder: Path) -> list[tuple[bytes, bytes]]:
    """Latents and fragment of each second."""
    project = Project.open(folder)
    indices = range(project.chunks)
    return [(project.read_latents(n).numpy().tobytes(), project.read_fragment(n)) for n in indices]


@pytest.mark.parametrize("holding", [True, False], ids=["held by states", "not held"])
@pytest.mark.parametrize("video", ["whole", "gone", "copied"])
@pytest.mark.parametrize("which", [(0,), (1,), (2,), (3,), (1, 2), (2, 3), (0, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("change", [{"seed": 4}, {"text": "[0s-2s: c] [2s-4s: b]"}], ids=["seed", "prompts"])
def test_seconds_of_another_run_are_made_again(tmp_path, ask, change, which, video, holding):
    mine, other = made(tmp_path / "a", ask(), holding), made(tmp_path / "b", ask(**change), holding)
    wanted = whole(mine)
    put(other, mine, *which)
    names = [f"{index:05}.{kind}" for index in which for kind in ("m4s", "safetensors")]
    copied = {(mine / "chunks" / name).read_bytes() for name in names}
    if video == "gone":
        (mine / "video.mp4").unlink()
    elif video == "copied":
        shutil.copyfile(other / "video.mp4", mine / "video.mp4")
    with Project.open(mine) as project:
        project.lock()
        for index in which:
            assert any(text.startswith(f"Second {index} was of another run; it is kept") for text in project.notices)
        (run_holding if holding else run)(project)
    assert whole(mine) == wanted
    assert copied <= {path.read_bytes() for path in (mine / "damaged").iterdir()}
    with Project.open(mine) as project:
        project.lock()
        assert project.notices == []


def test_who_does_not_resume_gets_the_runs_own_seconds_or_none(tmp_path, ask):
    """An export or a version: restored from the sampler's states and the video, else refused."""
    mine, other = made(tmp_path / "a", ask()), made(tmp_path / "b", ask(seed=4))
    wanted = whole(mine)
    put(other, mine, 1, 2)
    with Project.open(mine).branch(3) as version:
        assert whole(version.folder) == wanted[:3]
    put(other, mine, 1, 2)
    (mine / "video.mp4").unlink()
    with pytest.raises(InputError, match=r"second 1 .* damaged or missing; resume the run to"):
        Project.open(mine).branch(3)
    Project.open(mine).branch(1).close()


def test_seconds_that_are_the_same_to_the_bit_are_the_runs_own(tmp_path, ask):
    mine, other = made(tmp_path / "a", ask()), made(tmp_path / "b", ask())
    put(other, mine, 1, 3)
    with Project.open(mine) as project:
        project.check_whole(restore=False)
        project.lock()
        assert project.notices == [] and not (mine / "damaged").exists()


def test_versions_of_versions_keep_their_seconds(tmp_path, ask):
    """Redone with other prompts and another seed, extended and redirected: no second is taken for another run's."""
    first = made(tmp_path / "runs", ask())
    with Project.open(first).branch(2, ask("[0s-2s: a] [2s-4s: c]", seed=9)) as project:
        run_holding(project)
        again = project.folder
    with Project.open(again).branch(3, ask("[0s-2s: a] [2s-3s: c] [3s-5s: d]", seconds=5, seed=11)) as project:
        run_holding(project)
        project.extend(2)
        project.edit_timeline(ask("[0s-5s: a] [5s-7s: e]", seconds=7).timeline, 5)
        run_holding(project)
        last = project.folder
    wanted = whole(last)
    assert len(wanted) == 7 and wanted[:2] == whole(first)[:2] and wanted[2] == whole(again)[2]
    with Project.open(last) as project:
        project.check_whole(restore=False)
        project.lock()
        assert project.notices == []
    for source, index in ((first, 3), (again, 3), (first, 2)):  # what the version was made from is another run, too
        put(source, last, index)
        with Project.open(last) as project:
            project.lock()
            assert [text[:8] for text in project.notices] == [f"Second {index}"]
            run_holding(project)
        assert whole(last) == wanted


@pytest.mark.parametrize("lost", ["", "the next", "the video"])
@pytest.mark.parametrize("index", [2, 3])
def test_a_second_of_a_version_that_shares_all_before_it(tmp_path, ask, index, lost):
    mine = made(tmp_path / "a", ask())
    with Project.open(mine).branch(index, ask("[0s-2s: a] [2s-4s: z]", seed=8)) as version:
        run_holding(version)
    wanted = whole(mine)
    put(version.folder, mine, index)
    if lost == "the next" and index == 2:
        (mine / "chunks" / "00003.safetensors").unlink()
    elif lost == "the video":
        (mine / "video.mp4").unlink()
    with Project.open(mine) as project:
        project.lock()
        assert any(text.startswith(f"Second {index} was of another run") for text in project.notices)
        run_holding(project)
    assert whole(mine) == wanted


@pytest.mark.parametrize("kind", ["safetensors", "m4s"])
@pytest.mark.parametrize("states", ["whole", "gone"])
def test_one_piece_of_a_second_of_another_run(tmp_path, ask, kind, states):
    """Its own other piece, which the video has as well, does not vouch for it."""
    mine, other = made(tmp_path / "a", ask()), made(tmp_path / "b", ask(seed=4))
    wanted = whole(mine)
    shutil.copyfile(other / "chunks" / f"00003.{kind}", mine / "chunks" / f"00003.{kind}")
    if states == "gone":
        shutil.rmtree(mine / "states")
    with Project.open(mine) as project:
        project.lock()
        assert project.notices
        run_holding(project)
    assert whole(mine) == wanted


def test_a_state_of_another_run_is_not_gone_on_with(tmp_path, ask):
    mine, other = made(tmp_path / "a", ask()), made(tmp_path / "b", ask(seed=4))
    wanted = whole(mine)
    for index in (2, 3):
        for kind in KINDS:
            (mine / "chunks" / f"{index:05}.{kind}").unlink()
        state = f"states/{index - 1:05}.safetensors"
        shutil.copyfile(other / state, mine / state)
        (mine / "states" / f"{index:05}.safetensors").unlink()
    (mine / "video.mp4").unlink()
    with Project.open(mine) as project:
        assert project.latest_state().stage == 0
        run(project)
    assert whole(mine) == wanted


def test_runs_of_the_version_before_have_no_chain_and_go_on(tmp_path, ask):
    from safetensors import safe_open
    from safetensors.torch import load_file

    from magi_lite.project.tensors import save_tensors

    mine = made(tmp_path / "a", ask())
    latents = [Project.open(mine).read_latents(index) for index in range(4)]
    for path in [*(mine / "chunks").glob("*.safetensors"), *(mine / "states").glob("*.safetensors")]:
        with safe_open(path, "pt") as file:
            header = file.metadata()
        for name in ("before", "origin", "checksum"):
            header.pop(name, None)
        save_tensors(path, load_file(path), header)
    record = json.loads((mine / "project.json").read_text())
    assert record.pop("origin") and record.pop("checksum")
    (mine / "project.json").write_text(json.dumps(record))
    with Project.open(mine) as project:
        project.check_whole(restore=False)
        project.extend(1)
        run_holding(project)
        assert project.notices == [] and project.chunks == 5
        assert all((project.read_latents(index) == latents[index]).all() for index in range(4))
    with Project.open(mine).branch(3, ask("[0s-2s: a] [2s-4s: c]", seed=9)) as project:
        run_holding(project)
        assert project.notices == []
    with Project.open(project.folder) as project:
        project.lock()
        assert project.notices == []


@pytest.mark.parametrize("number", [4, 7])
@pytest.mark.parametrize("whose", ["its own", "another's"])
def test_a_second_behind_the_end_stands_in_nobodys_way(tmp_path, ask, whose, number):
    """Not of who exports or branches, which leave it where it is, nor of who goes on, which moves it aside."""
    mine = made(tmp_path / "a", ask())
    other = mine if whose == "its own" else made(tmp_path / "b", ask(seed=4, seconds=8, text="[0s-8s: a]"))
    wanted, kinds = whole(mine), ("m4s", "safetensors", "jpg")
    for kind in kinds:
        source = other / "chunks" / f"{1 if whose == 'its own' else number:05}.{kind}"
        shutil.copyfile(source, mine / "chunks" / f"{number:05}.{kind}")
    project = Project.open(mine)
    assert (project.chunks, project.status, project.notices) == (4, "finished", [])
    project.check_whole(restore=False)
    project.export(tmp_path / "out.mp4")
    with project.branch(4, ask("[0s-4s: a] [4s-6s: b]", seconds=6)) as version:
        assert whole(version.folder) == wanted
        run_holding(version)
        assert version.chunks == 6
    with Project.open(mine) as project:
        project.extend(2)
        assert [text[:33] for text in project.notices] == ["What lay behind the video's end ("]
        assert project.chunks == 4 and whole(mine) == wanted
