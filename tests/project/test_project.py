"""Projects on disk: what is kept, continued, redone and branched, and what is refused."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from magi_lite.errors import InputError, OutputError
from magi_lite.project import PICTURE_NAME, PREFIX_NAME, Project
from magi_lite.request.checks import content_hash
from magi_lite.request.json import request_from_json
from magi_lite.timeline.text import parse
from magi_lite.video.writer import read_settings

from .conftest import State, differences, folders, reason, run, second, seconds_of


def decode(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_finished_project_holds_all_its_seconds(finished, ask):
    project = Project.open(finished.folder)
    assert (project.status, project.chunks, project.request) == ("finished", 4, ask())
    frames, before = decode(project.video), torch.zeros(1, 4, 6, 4, 4)
    assert len(frames) == 96
    for index in range(4):
        before, wanted = second(ask(), index, before)
        assert torch.equal(project.read_latents(index), before)
        assert np.abs(frames[24 * index : 24 * index + 24].astype(int) - wanted).mean() < 6
        assert Image.open(project.thumbnail(index)).size == (288, 72)
    assert request_from_json(read_settings(project.video)) == ask()
    assert (project.folder / "log.txt").read_text().count("done\n") == 4


def test_states_come_back_bit_for_bit(tmp_path, ask):
    tensors = {"a": torch.randn(2, 3), "b": torch.randn(5).bfloat16(), "c": torch.randn(4, 4)[:, ::2]}
    position = {"next_stage": 3, "nested": [1, {"x": None}], "t": 0.1}
    with Project.create(tmp_path, ask()) as project:
        assert project.latest_state() is None and project.state_before(0) is None
        project.save_state(0, State(position, tensors))
        state = project.state_before(1)
    assert (state.stage, state.position) == (0, position)
    assert all(torch.equal(state.tensors[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("window", "stages", "chunks", "latest"), [(1, 3, 3, 2), (1, 3, 2, 1), (4, 3, 0, 2), (4, 5, 1, 3)]
)
def test_a_state_counts_only_if_the_seconds_it_let_go_are_there(tmp_path, ask, window, stages, chunks, latest):
    """With window w a second leaves after w stages: stage s has let go of s + 2 - w of them."""
    with Project.create(tmp_path, ask(window=window, steps=4, seconds=8)) as project:
        for stage in range(stages):
            project.save_state(stage, State({}, {"x": torch.ones(1)}))
        for index in range(chunks):
            project.write_chunk(index, *second(project.request, index, torch.zeros(1)))
        assert project.latest_state().stage == latest
        project.states.path(latest).write_bytes(b"damaged")
        older = project.latest_state()
        assert older is None if latest == 0 else older.stage == latest - 1


def test_old_states_can_be_dropped(finished):
    finished.prune_states(keep=2)
    assert [finished.state_before(n) is not None for n in range(1, 5)] == [False, False, True, True]
    finished.prune_states(keep=0)
    assert finished.latest_state() is None
    finished.close()


def test_a_finished_second_is_never_overwritten(finished):
    before = seconds_of(finished)
    assert finished.write_chunk(1, torch.zeros(1, 4, 6, 4, 4), np.zeros((24, 32, 32, 3), np.uint8)) is False
    assert seconds_of(finished) == before
    with pytest.raises(ValueError, match="second 5 comes before second 4 is written"):
        finished.write_chunk(5, torch.zeros(1), np.zeros((24, 32, 32, 3), np.uint8))
    finished.close()


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, ask, finished):
    with Project.create(tmp_path / "runs", ask()) as project:
        run(project, stop_after=1)
        assert project.status == "running"
    again = Project.open(project.folder)
    assert (again.status, again.chunks) == ("interrupted", 2)
    assert len(decode(again.video)) == 48
    with again:
        run(again)
    assert differences(seconds_of(again), seconds_of(finished)) == []
    assert again.video.read_bytes() == finished.video.read_bytes()


def test_a_difference_is_named_with_its_place(finished):
    """What the other tests say where they fail, so that a rare failure tells enough."""
    wanted = seconds_of(finished)
    latents, fragment, thumbnails = wanted[1]
    torn = bytearray(fragment)
    torn[-1] ^= 1
    found = [wanted[0], (latents[:-4] + b"\0\0\0\0", bytes(torn), thumbnails[:-1]), wanted[2]]
    count, first, second, third = differences(found, wanted)
    assert count == "3 seconds instead of 4"
    assert first.startswith("second 1's safetensors: 4 bytes differ") and "in number 383:" in first
    assert second.startswith("second 1's m4s: 1 bytes differ") and f"at byte {len(fragment) - 1} in mdat" in second
    assert f"({len(thumbnails) - 1} bytes long, wanted {len(thumbnails)})" in third


@pytest.mark.parametrize("chunk", [0, 1, 3, 4])
def test_redo_keeps_the_earlier_seconds_bit_for_bit(finished, ask, chunk):
    before = seconds_of(finished)
    asked = ask("[0s-4s: something else]", seed=9)
    with finished.branch(chunk, asked) as project:
        assert (project.chunks, project.status) == (chunk, "running")
        assert len(project.video.read_bytes()) == 4096 + sum(len(m4s) for _, m4s, _ in before[:chunk])
        assert (project.latest_state().stage if chunk else None) == (chunk - 1 if chunk else None)
        run(project)
        after = seconds_of(project)
    assert after[:chunk] == before[:chunk] and len(after) == 4
    assert all(new != old for new, old in zip(after[chunk:], before[chunk:], strict=True))
    told = [project.request.timeline.prompt_for(second).text for second in range(4)]
    assert told == ["a", "a", "b", "b"][:chunk] + ["something else"] * (4 - chunk)
    assert [(e["what"], e["from"]) for e in project.history] == [("branched", chunk)]


@pytest.mark.parametrize("chunk", [0, 2, 4])
def test_branch_keeps_both_versions(finished, ask, chunk):
    before, video = seconds_of(finished), finished.video.read_bytes()
    with finished.branch(chunk, ask("[0s-4s: other]", seed=9)) as branch:
        assert (branch.chunks, branch.parent) == (chunk, {"project": finished.name, "from": chunk})
        assert branch.folder.parent == finished.folder.parent and branch.folder != finished.folder
        if chunk:
            assert np.array_equal(decode(branch.video), decode(finished.video)[: 24 * chunk])
        run(branch)
    assert seconds_of(branch)[:chunk] == before[:chunk]
    assert (seconds_of(finished), finished.video.read_bytes()) == (before, video)
    shared = [path for path in branch.folder.rglob("*") if path.is_file() and path.stat().st_nlink > 1]
    assert bool(shared) == (chunk > 0)
    finished.delete()
    assert len(decode(branch.video)) == 96 and folders(branch.folder.parent) == [branch.folder]


def test_extend_goes_on_as_if_the_longer_video_had_been_asked_for(tmp_path, finished, ask):
    with Project.create(tmp_path / "long", ask(seconds=6)) as longer:
        run(longer)
    before = seconds_of(finished)
    with Project.open(finished.folder) as project:
        project.extend(2)
        assert project.state_before(4).stage == 3
        run(project)
    assert differences(seconds_of(project)[:4], before) == []
    assert differences(seconds_of(project), seconds_of(longer)) == []
    assert project.video.read_bytes() == longer.video.read_bytes()
    with pytest.raises(InputError, match="A video cannot be extended by 0 seconds; ask for at least 1"):
        project.extend(0)


def test_a_second_of_another_run_is_not_taken_for_one_of_the_extension(tmp_path, finished, ask):
    """Whole, it lies just behind the end: copied there by hand, or by a program that puts folders together."""
    with Project.create(tmp_path / "long", ask(seconds=6, seed=77)) as other:
        run(other)
    with Project.create(tmp_path / "right", ask(seconds=6)) as longer:
        run(longer)
    for kind in ("safetensors", "m4s"):
        shutil.copy(other.folder / "chunks" / f"00004.{kind}", finished.folder / "chunks")
    stray = (finished.folder / "chunks" / "00004.safetensors").read_bytes()
    with Project.open(finished.folder) as project:
        project.extend(2)
        assert project.chunks == 4
        run(project)
    assert differences(seconds_of(project), seconds_of(longer)) == []
    assert any(path.read_bytes() == stray for path in (project.folder / "damaged").iterdir()), "it is kept aside"


@pytest.mark.parametrize(("old", "more", "kept"), [(4, 2, range(4)), (4, None, range(4)), (None, 1, range(5))])
def test_extending_drops_the_states_that_cannot_go_on(tmp_path, ask, old, more, kept):
    with Project.create(tmp_path, ask(seconds=old, window=4)) as project:
        for index in range(4):
            project.write_chunk(index, *second(ask(), index, 0))
        for stage in range(7):  # a window of 4 begins and ends three seconds after and before
            project.save_state(stage, State({}, {"before": torch.zeros(1)}))
        project.extend(more)
        assert [stage for stage in range(9) if project.state_before(stage + 1)] == list(kept)
        assert project.request.seconds == (None if more is None else 4 + more)


def test_whoever_looks_whether_a_project_is_written_keeps_no_writer_out(finished):
    looking = os.open(finished.folder / ".lock", os.O_RDWR)
    fcntl.flock(looking, fcntl.LOCK_SH)  # as a gallery in another process does, for an instant
    timer = threading.Timer(0.1, os.close, [looking])
    timer.start()
    with Project.open(finished.folder) as project:
        project.lock()
    timer.join()


def test_two_who_look_do_not_take_each_other_for_a_writer(finished):
    with Project.open(finished.folder) as project:
        project.set_status("running")
    looking = os.open(finished.folder / ".lock", os.O_RDWR)
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert Project.open(finished.folder).status == "interrupted"
    os.close(looking)


def test_a_project_that_the_disk_cannot_hold_leaves_nothing_behind(tmp_path, ask):
    import resource

    picture = tmp_path / "picture.png"
    picture.write_bytes(bytes(9000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
        with pytest.raises(OutputError, match="The disk is full or limited"):
            Project.create(tmp_path / "runs", ask(image=picture))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_timeline_edited_while_it_runs_stays_true_to_what_was_said(tmp_path, ask):
    with Project.create(tmp_path, ask()) as project:
        run(project, stop_after=1)
        project.edit_timeline(parse("[0s-4s: c]"), from_chunk=3)
    told = [Project.open(project.folder).request.timeline.prompt_for(second).text for second in range(4)]
    assert told == ["a", "a", "b", "c"]
    with project:
        project.set_status("stopped")
    assert request_from_json(read_settings(project.video)).timeline == parse("[0s-2s: a] [2s-3s: b] [3s-4s: c]")


def test_inputs_are_kept_with_the_project(tmp_path, ask):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8), "red").save(picture)
    content = picture.read_bytes()
    with Project.create(tmp_path / "runs", ask(image=picture)) as project:
        run(project)
    picture.unlink()
    kept = Project.open(project.folder).request.image
    assert kept.read_bytes() == content and kept.is_relative_to(project.folder)
    (project.folder / "inputs" / "prefix.safetensors").write_bytes(b"latents")
    with project.branch(0, ask()) as branch:
        assert list((branch.folder / "inputs").iterdir()) == [], "another start takes nothing along"
    with project.branch(1) as branch:
        assert (branch.folder / "inputs" / "prefix.safetensors").read_bytes() == b"latents"
        assert branch.request.image.read_bytes() == content and branch.request.image.is_relative_to(branch.folder)


@pytest.mark.parametrize(
    "name",
    ["prefix.safetensors", "PREFIX.safetensors", "picture-{sha}.safetensors", "{sha}-other.png", ".a.tmp.png", ".a.png",
     "a@2x.png", "start-prefix.safetensors", "a\nb.png", "\u732b" * 80 + ".png", "{sha}-" + "\u732b" * 75 + ".png"],
)  # fmt: skip
def test_a_start_may_have_any_name(tmp_path, ask, name):
    """Names that the run gives to files of its own, that are hidden, or as long as the disk takes."""
    other = tmp_path / "other.png"
    Image.new("RGB", (8, 8), "blue").save(other)
    block = content_hash(other)
    picture = tmp_path / name.format(sha=block[:12])
    Image.new("RGB", (8, 8), "red").save(picture, format="png")
    content = picture.read_bytes()
    timeline = f'[0s-1s: a] [1s-4s image="{other}": b]'
    with Project.create(tmp_path / "runs", ask(timeline, image=picture)) as project:
        inputs = project.folder / "inputs"
        for latents in (PREFIX_NAME, PICTURE_NAME.format(block[:12])):
            assert not (inputs / latents).exists()
            (inputs / latents).write_bytes(b"latents")
        project.set_status("stopped")
    for path in (picture, other):
        path.unlink()
    with Project.open(project.folder) as again:
        again.lock()
        for found in (again, again.branch(0)):
            with found:
                assert found.request.image.read_bytes() == content and found.request.image.parent.name == "inputs"
                assert content_hash(found.request.timeline.segments[1].image) == block
                assert (found.folder / "inputs" / PREFIX_NAME).read_bytes() == b"latents"


def test_settings_stay_out_of_the_video_when_asked(tmp_path, ask):
    with Project.create(tmp_path, ask(embed_settings=False)) as project:
        run(project)
    assert read_settings(project.video) is None and len(decode(project.video)) == 96


def test_export_is_an_ordinary_file_with_the_same_frames(finished, tmp_path):
    target = finished.export(tmp_path / "out.mp4")
    assert np.array_equal(decode(target), decode(finished.video))
    assert read_settings(target) == read_settings(finished.video)
    with (
        Project.create(tmp_path / "runs", finished.request) as empty,
        pytest.raises(InputError, match="no finished second"),
    ):
        empty.export(tmp_path / "no.mp4")
    with pytest.raises(OutputError, match=r"The folder .* does not exist; create it"):
        finished.export(tmp_path / "missing" / "out.mp4")


LOCKED = """
import sys
from magi_lite.errors import OutputError
from magi_lite.project import PICTURE_NAME, PREFIX_NAME, Project
from magi_lite.request.checks import content_hash
project = Project.open(sys.argv[1])
print(project.status, project.chunks)
try:
    project.set_status("stopped")
except OutputError as error:
    print(error)
"""


def test_two_processes_cannot_write_one_project(tmp_path, ask, request):
    import os

    with Project.create(tmp_path, ask()) as project:
        run(project, stop_after=0)
        command = [sys.executable, "-c", LOCKED, str(project.folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=request.config.rootpath)
        with pytest.raises(OutputError, match=f"{project.name} is being written by process {os.getpid()}; wait for it"):
            Project.open(project.folder).set_status("stopped")
        with pytest.raises(OutputError, match="is being written"):
            Project.open(project.folder).delete()
    sentence = f"{project.name} is being written by process {os.getpid()}; wait for it or stop it."
    assert result.stdout.splitlines() == ["running 1", sentence]
    with Project.open(project.folder) as other:
        other.set_status("stopped")
    assert Project.open(project.folder).status == "stopped"


def test_broken_folders_are_refused_with_their_reason(finished):
    root = finished.folder.parent
    (root / "empty").mkdir()
    broken = {"cut": lambda text: text[: len(text) // 2], "list": lambda text: "[]", "binary": lambda text: "\0" * 50}
    broken["future"] = lambda text: text.replace('"version": 1', '"version": 9', 1)
    broken["unknown"] = lambda text: text.replace('"seed"', '"sead"')
    for name, damage in broken.items():
        shutil.copytree(finished.folder, root / name)
        path = root / name / "project.json"
        path.write_text(damage(path.read_text()))
    assert reason(finished.folder) == ""
    damaged = "cannot be opened: its project.json is damaged; "
    damaged += "its settings are also in {}, and --settings makes it again."
    expected = {
        "empty": f"{root / 'empty'} is not a project; it holds no project.json.",
        "cut": f"cut {damaged.format(root / 'cut' / 'video.mp4')}",
        "list": f"list {damaged.format(root / 'list' / 'video.mp4')}",
        "binary": f"binary {damaged.format(root / 'binary' / 'video.mp4')}",
        "future": "future cannot be opened: it was made by another version of the program (format 9).",
    }
    assert {name: reason(root / name) for name in expected} == expected
    assert reason(root / "unknown").startswith(
        "unknown cannot be opened: The settings have an unknown key 'sead'; known are"
    )


ENTRY = {"at": "2026-01-02T03:04:05+00:00", "what": "redone", "from": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"history": [0.5]}, {"history": [[]]}, {"history": ["a"]}, {"history": [None]}, {"history": [{}]},
        {"history": [{**ENTRY, "what": 1}]}, {"history": [{**ENTRY, "from": "1"}]},
        {"history": [{**ENTRY, "from": 1.5}]}, {"history": [{**ENTRY, "from": True}]},
        {"history": [{"at": "", "from": 1}]},
        {"history": [{**ENTRY, "what": "extended", "started": "2", "seconds": 3}]},
        {"history": [{**ENTRY, "what": "extended", "started": 2, "seconds": []}]},
        {"history": [{**ENTRY, "what": "extended", "started": 2}]},
        {"parent": {"project": 3, "from": 1}}, {"parent": {"project": "a", "from": None}}, {"parent": {"project": "a"}},
    ],
    ids=str,
)  # fmt: skip
def test_a_history_or_parent_of_another_kind_is_a_damaged_record(finished, changes):
    path = finished.folder / "project.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert reason(finished.folder).startswith(f"{finished.name} cannot be opened: its project.json is damaged; ")


@pytest.mark.parametrize(
    "place",
    [
        {"next_stage": "4"},
        {"next_stage": -1},
        {"shot": None},
        {"offset": 0.5},
        {"kept": [1]},
        {"total": "4"},
        {"total": -2},
    ],
    ids=str,
)
def test_a_state_whose_place_makes_no_sense_is_passed_over(finished, place):
    stage = finished.states.stages()[-1]
    state = finished.states.read(stage)
    finished.states.save(stage, replace(state, position=state.position | place))
    assert finished.states.read(stage) is None
    assert finished.latest_state().stage == stage - 1


@pytest.mark.parametrize("name", ["²²²²²", "0²345", "٠٠٠٠٩", "-0001", "1e004", "7", "000000008", "9" * 200, "99999"])
def test_files_that_are_no_seconds_of_this_run_are_left_alone(finished, name):
    """Names that only look like numbers, and a number far behind all others, up to which each would be looked at."""
    finished.close()
    before = seconds_of(finished), finished.states.stages()
    strange = [finished.folder / "chunks" / f"{name}.{kind}" for kind in ("m4s", "safetensors")]
    for path in strange:
        path.write_bytes(b"x")
    if name != "99999":
        strange.append(finished.folder / "states" / f"{name}.safetensors")
        strange[-1].write_bytes(b"x")
    with Project.open(finished.folder) as project:
        project.lock()
        assert (project.chunks, project.notices, project.seconds.damage()) == (4, [], [])
        assert (seconds_of(project), project.states.stages()) == before
    assert all(path.read_bytes() == b"x" for path in strange)


def test_nothing_that_was_moved_aside_is_overwritten(finished):
    aside = finished.folder / "damaged"
    aside.mkdir()
    for number in (7, 999, 1000):
        (aside / f"{number:03}-00001.m4s").write_bytes(b"earlier")
    path = finished.seconds.path(1, "m4s")
    path.write_bytes(b"damaged")
    finished.lock()
    assert (aside / "1001-00001.m4s").read_bytes() == b"damaged"
    assert all((aside / f"{number:03}-00001.m4s").read_bytes() == b"earlier" for number in (7, 999, 1000))


def test_damaged_latents_are_one_sentence(finished):
    finished.seconds.path(1, "safetensors").write_bytes(b"not a tensor")
    sentence = f"The latents of second 1 in {finished.name} are damaged; resume the run to restore them"
    with pytest.raises(InputError, match=sentence):
        finished.read_latents(1)
    with pytest.raises(InputError, match="has no finished second 4; it has 4"):
        finished.read_latents(4)


def test_what_a_redo_cannot_do(finished, ask):
    with pytest.raises(InputError, match="cannot go on from second 5; it has 4 finished seconds"):
        finished.branch(5)
    for change, old, new in (("width", 32, 48), ("steps", 4, 8), ("model", "demo", "24B-base")):
        sentence = f"The seconds to keep have {change} {old}, not {new}; start a new video to change that"
        with pytest.raises(InputError, match=sentence):
            finished.branch(2, replace(ask(), **{change: new}))
    assert finished.chunks == 4
    finished.close()
    with pytest.raises(InputError, match="3 seconds are kept, more than the 2 asked for"):
        finished.branch(3, ask("[0s-2s: other]", seconds=2))


def test_names_sort_by_time_and_never_meet(tmp_path, ask):
    names = []
    for _ in range(5):
        with Project.create(tmp_path, ask("[0s-4s: A cat, walking! över 猫]")) as project:
            names.append(project.name)
    assert len(set(names)) == 5 and all("-a-cat-walking-" in name for name in names)
    assert json.loads((tmp_path / names[0] / "project.json").read_text())["version"] == 1


@pytest.mark.parametrize("age", [-7200, 10, 7200])
def test_leftovers_of_crashes_are_removed_and_what_is_in_the_making_stays(tmp_path, ask, age):
    """Whatever their times say: clocks are set forward and back."""
    import os

    from quant.storage.lock import FileLock

    for name in (".new-dead", ".new-older", ".trash-dead", ".new-alive"):
        (tmp_path / name / "chunks").mkdir(parents=True)
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / ".new-dead.lock").touch()
    (tmp_path / ".new-gone.lock").touch()
    lock = FileLock(tmp_path / ".new-alive.lock", "alive")
    Project.create(tmp_path, ask()).close()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == [".new-alive", ".new-alive.lock"]
    lock.release()
    Project.create(tmp_path, ask()).close()
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_folder_in_the_place_of_the_lock_is_named(finished):
    lock = finished.folder / ".lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()
    with pytest.raises(OutputError, match=r"\.lock is a folder in the place of the lock's file; remove it"):
        Project.open(finished.folder).lock()


def test_runs_stand_in_the_order_in_which_they_were_made_whatever_the_clock_says(tmp_path, ask, monkeypatch):
    from datetime import datetime, timedelta, timezone

    from magi_lite.project import folder

    hours, names = 0, []

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(timezone.utc) + timedelta(hours=hours)

    monkeypatch.setattr(folder, "datetime", Clock)
    for hours in (0, 30, -30, -30 * 365 * 24, 31):  # noqa: B007
        for _ in range(2):
            with Project.create(tmp_path, ask()) as project:
                names.append((folder.place_in_time(project.name, project.created), project.name))
    assert names == sorted(names) and len({place for place, _ in names}) == len(names)


@pytest.mark.parametrize("room", [4096 + 900, 3000, 1500])
def test_a_disk_that_fills_up_is_one_sentence_and_the_run_goes_on_when_there_is_room(tmp_path, ask, finished, room):
    """The system's own limit on the size of files, so that video, thumbnails or latents really cannot be written."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Project.create(tmp_path / "runs", ask()) as project:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
            with pytest.raises(
                OutputError, match=r"The disk is full or limited at .*; free some space or choose another"
            ):
                run(project)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert differences(seconds_of(project), seconds_of(finished)[: project.chunks]) == [] and project.chunks < 4
        assert not [path for path in project.folder.rglob("*") if ".tmp" in path.name]
        run(project)
    assert differences(seconds_of(project), seconds_of(finished)) == []
    assert project.video.read_bytes() == finished.video.read_bytes()


@pytest.mark.parametrize("name", [".lock", "log.txt", "video.mp4", "chunks/00001.m4s", "chunks/00001.safetensors"])
@pytest.mark.parametrize("same", [False, True])
def test_links_in_a_run_lead_nowhere(tmp_path, finished, name, same):
    """A run from somebody else may name any file of the user's; nothing is written to it, and the run goes on."""
    dear, own = tmp_path / "dear", finished.folder / name
    before = own.read_bytes() if same and own.exists() else b"dear to someone"
    dear.write_bytes(before)
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to(dear)
    with Project.open(copy) as project:
        project.lock()
        project.log("a line")
        project.extend(1)
        run(project)
    assert dear.read_bytes() == before and project.chunks == finished.chunks + 1


def test_of_a_linked_run_only_the_link_is_deleted(tmp_path, ask, finished):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "linked").symlink_to(finished.folder)
    Project.open(tmp_path / "elsewhere" / "linked").delete()
    assert list((tmp_path / "elsewhere").iterdir()) == [] and finished.folder.is_dir()
    (tmp_path / "elsewhere" / ".trash-linked-1").symlink_to(finished.folder)
    Project.create(tmp_path / "elsewhere", ask()).close()
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1 and finished.video.is_file()
