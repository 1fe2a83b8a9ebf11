"""Seconds of another run, copied into a run's folder with all their checksums: seen, moved aside and made again."""

from __future__ import annotations

import json
import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from magi_lite.errors import InputError
from magi_lite.pipeline.export import exporting
from magi_lite.project import Project
from magi_lite.project import project as project_module
from magi_lite.project.record import read_record
from magi_lite.timeline.text import parse

from .conftest import KINDS, State, frames_of, run, second


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


@pytest.mark.parametrize("chain", [False, True], ids=["no chain", "a chain and no list"])
def test_runs_of_versions_before_go_on(tmp_path, ask, chain):
    from safetensors import safe_open
    from safetensors.torch import load_file

    from magi_lite.project.tensors import save_tensors

    mine = made(tmp_path / "a", ask())
    latents = [Project.open(mine).read_latents(index) for index in range(4)]
    for path in [*(mine / "chunks").glob("*.safetensors"), *(mine / "states").glob("*.safetensors")]:
        with safe_open(path, "pt") as file:
            header = file.metadata()
        for name in ("asked", "checksum") if chain else ("before", "origin", "asked", "checksum"):
            header.pop(name, None)
        save_tensors(path, load_file(path), header)
    record = json.loads((mine / "project.json").read_text())
    assert record.pop("asked") and record.pop("made") and record.pop("checksum")
    if not chain:
        assert record.pop("origin")
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


@pytest.mark.parametrize("kind", ["a version", "another run", "its own, renamed"])
@pytest.mark.parametrize("pieces", [("safetensors", "m4s", "jpg"), ("m4s",), ("safetensors",)], ids=len)
@pytest.mark.parametrize("number", [3, 5])
def test_what_lies_behind_the_end_of_a_stopped_endless_run(tmp_path, ask, kind, pieces, number):
    """No part of it: it is exported as it is, and what lay there stands in nobody's way where it goes on."""
    mine = made(tmp_path / "a", ask("[0s-9s: a]", seconds=3))
    with Project.open(mine) as project:
        project.extend(None)
        project.set_status("stopped")
    if kind == "a version":
        with Project.open(mine).branch(2, ask("[0s-9s: z]", seconds=9)) as version:
            run_holding(version)
            other = version.folder
    else:
        other = mine if kind == "its own, renamed" else made(tmp_path / "b", ask("[0s-9s: a]", seconds=9, seed=4))
    wanted = whole(mine)
    for piece in pieces:
        source = other / "chunks" / f"{1 if other == mine else number:05}.{piece}"
        shutil.copyfile(source, mine / "chunks" / f"{number:05}.{piece}")
    [*exporting(mine, tmp_path / "out.mp4", metadata=False)]
    assert whole(mine) == wanted
    with Project.open(mine) as project:
        project.lock()
        assert project.chunks == 3 and not [n for n in range(3, 9) if (mine / "chunks" / f"{n:05}.m4s").exists()]


def test_a_second_that_an_endless_run_lost_is_asked_for(tmp_path, ask):
    mine = made(tmp_path / "a", ask("[0s-9s: a]", seconds=4))
    with Project.open(mine) as project:
        project.extend(None)
        project.set_status("stopped")
    (mine / "video.mp4").unlink()
    shutil.rmtree(mine / "states")
    for kind in KINDS:
        (mine / "chunks" / f"00001.{kind}").unlink()
    with pytest.raises(InputError, match=r"second 1 .* damaged or missing; resume the run to"):
        [*exporting(mine, tmp_path / "out.mp4", metadata=False)]


class Made(NamedTuple):
    """A run, and what each of its seconds was asked for: those that a version kept, for what its parent was."""

    folder: Path
    asked: list[Any]


def go_on(project: Project, asked: list[Any]) -> None:
    """Go on as the pipeline does: frames that are missing are decoded; else from a state, or behind the last second."""
    while (index := project.seconds.undecoded()) is not None and index < len(asked):
        latents = project.read_latents(index) if index < project.chunks else project.seconds.read_latents(index)
        project.write_chunk(index, latents, frames_of(latents))
    state, index = project.latest_state(), project.chunks
    before = project.read_latents(index - 1) if index else 0
    if state is not None:
        before, index = state.tensors["before"], state.stage + 1
    for second_index in range(index, len(asked)):
        before, frames = second(asked[second_index], second_index, before)
        project.write_chunk(second_index, before, frames)
        tensors = {"before": before, f"clean.{second_index}": before}
        project.save_state(second_index, State({"next_stage": second_index + 1}, tensors))
    project.set_status("finished")


def family(root: Path, ask: Any) -> list[Made]:
    """Runs of which most are versions of others: they share their first seconds and the origin."""
    text = "[0s-2s: a] [2s-4s: b]"
    found = []
    for request in (ask(text), ask(text, seed=4), ask("[0s-4s: c]")):
        found.append(Made(made(root / "runs", request), [request] * 4))
    for parent, start, request in (
        (0, 2, ask("[0s-2s: a] [2s-4s: z]")), (0, 1, ask(text, seed=9)), (0, 3, ask(text, seed=11)),
        (3, 3, ask("[0s-2s: a] [2s-3s: z] [3s-4s: y]")), (0, 4, ask(text, seconds=6)),
    ):  # fmt: skip
        with Project.open(found[parent].folder).branch(start, request) as version:
            run_holding(version)
        asked = [*found[parent].asked[:start], *[request] * (request.seconds - start)]
        found.append(Made(version.folder, asked))
    return found


def mixed(runs: list[Made], folder: Path, chance: random.Random) -> Made:
    """A copy of one of the runs at `folder`, with files of others in the places of its own; the run it was."""
    mine = chance.choice(runs)
    shutil.copytree(mine.folder, folder)
    for _ in range(chance.randint(1, 4)):
        other = chance.choice(runs).folder
        names = [str(path.relative_to(other)) for part in ("chunks", "states") for path in (other / part).iterdir()]
        match chance.randrange(5):
            case 0:  # whole seconds to the end
                start = f"chunks/{chance.randrange(4):05}"
                copied = [name for name in names if name.startswith("chunks") and name >= start]
            case 1:
                copied = [name for name in names if name.startswith("states")]
            case 2:
                copied = ["video.mp4"]
            case 3:  # one second
                copied = [name for name in names if name.startswith(f"chunks/{chance.randrange(4):05}")]
            case _:
                copied = chance.sample(names, chance.randint(1, 3))
        for name in copied:
            shutil.copyfile(other / name, folder / name)
    own = [path for part in ("chunks", "states") for path in (folder / part).iterdir()]
    for path in chance.sample([*own, folder / "video.mp4"], chance.choice((0, 0, 1, 3))):
        path.unlink()
    return mine


def check_mixture(runs: list[Made], root: Path, seed: int) -> None:
    """Whatever of other runs lies in a run's folder: what is exported and what it goes on to are its own bits."""
    folder, target = root / f"{seed}", root / "out.mp4"
    mine = mixed(runs, folder, random.Random(seed))
    try:
        [*exporting(folder, target, metadata=False, overwrite=True)]
    except InputError as error:
        assert "resume the run" in str(error)
    else:
        [*exporting(mine.folder, root / "wanted.mp4", metadata=False, overwrite=True)]
        assert target.read_bytes() == (root / "wanted.mp4").read_bytes(), f"mixture {seed} exported"
    with Project.open(folder) as project:
        project.lock()
        go_on(project, mine.asked)
    assert whole(folder) == whole(mine.folder), f"mixture {seed} made other bits"
    shown = [(one / "video.mp4").read_bytes() for one in (folder, mine.folder)]
    assert shown[0] == shown[1], f"mixture {seed} shows others"
    shutil.rmtree(folder)


def test_random_mixtures_of_versions_and_other_runs(tmp_path, ask):
    runs = family(tmp_path, ask)
    for seed in range(30):
        check_mixture(runs, tmp_path, seed)


def test_a_second_that_is_listed_and_new_prompts_do_not_lose_each_other(tmp_path, ask, monkeypatch):
    """On a card seconds are written in a thread of their own, beside the one that redirects."""
    real, listing, redirected = project_module.write_record, threading.Event(), threading.Event()

    def slow(folder: Path, record: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            listing.set()
            redirected.wait(0.5)  # as long as a disk may take
        real(folder, record)

    with Project.create(tmp_path, ask()) as project:
        latents, frames = second(project.request, 0, 0)
        monkeypatch.setattr(project_module, "write_record", slow)
        with ThreadPoolExecutor(1) as beside:
            writing = beside.submit(project.write_chunk, 0, latents, frames)
            assert listing.wait(10)
            project.edit_timeline(parse("[0s-2s: a] [2s-4s: c]"), 2)
            redirected.set()
            writing.result()
    record = read_record(project.folder)
    assert len(record.made) == 1 and record.made[0]
    assert record.request.timeline.prompt_for(3).text == "c"
    assert [entry["what"] for entry in record.history].count("timeline") == 1
