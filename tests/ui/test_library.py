"""The gallery's list: found, searched, grouped, named, thrown away and taken back. No browser is needed here."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from magi_lite.errors import InputError, OutputError
from magi_lite.jobs import JobQueue
from magi_lite.jobs.recover import unfinished
from magi_lite.project.record import new_record, write_record
from magi_lite.request.build import build
from magi_lite.ui import library as library_module
from magi_lite.ui.actions import Actions
from magi_lite.ui.entries import settings_table
from magi_lite.ui.expose import for_api, for_page
from magi_lite.ui.labels import LABELS, read_labels
from magi_lite.ui.library import Library
from magi_lite.ui.machine import Machine
from magi_lite.ui.saved import Saved


def make(root: Path, name: str, prompt: str, *, parent: str | None = None, seconds: int = 1, **options: object) -> Path:
    """A small run's folder with `seconds` finished ones."""
    folder = root / name
    for part in ("chunks", "states", "inputs"):
        (folder / part).mkdir(parents=True)
    for second in range(seconds):
        for kind in ("safetensors", "m4s", "jpg"):
            (folder / "chunks" / f"{second:05}.{kind}").write_bytes(b"x")
    (folder / "video.mp4").write_bytes(b"x" * 10 * seconds)
    (folder / ".lock").touch()
    request = build(prompt=prompt, preset="demo", seconds=max(1, seconds), **options)
    record = new_record(request, {"project": parent, "from": 1} if parent else None)
    write_record(folder, record.then("made", 0, status="finished" if seconds else "stopped"))
    data = json.loads((folder / "project.json").read_text())
    data["created"] = f"2026-01-01T00:00:{name[1:]}+00:00"
    (folder / "project.json").write_text(json.dumps(data))
    return folder


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.setattr(library_module, "LOOK_EVERY", -1.0)  # whoever asks is told what is there now
    make(tmp_path, "v01", "a red ball", seed=7)
    make(tmp_path, "v02", "a blue square moves", seed=42, seconds=3)
    make(tmp_path, "v03", "a red ball falls", parent="v01", seed=8, seconds=2)
    make(tmp_path, "v04", "never begun", seconds=0, seed=1)
    return Library(tmp_path)


def ids(library: Library, **asked: object) -> list[str]:
    return [video["id"] for video in library.page(**asked)["videos"]]  # type: ignore[arg-type]


def test_search_filter_sort_and_pages(library: Library) -> None:
    assert ids(library) == ["v04", "v03", "v02", "v01"]
    assert ids(library, search="BALL red") == ["v03", "v01"]
    assert ids(library, search="42") == ["v02"] and ids(library, search="demo square") == ["v02"]
    assert ids(library, show="unfinished") == ["v04"] and ids(library, show="finished", sort="longest")[0] == "v02"
    assert ids(library, sort="oldest") == ["v01", "v02", "v03", "v04"]
    assert ids(library, sort="name") == ["v02", "v01", "v03", "v04"]
    assert ids(library, offset=1, limit=2) == ["v03", "v02"] and library.page(limit=1)["total"] == 4
    for wrong in ({"show": "best"}, {"sort": "luck"}):
        with pytest.raises(InputError, match="choose one of"):
            library.page(**wrong)  # type: ignore[arg-type]


def test_a_video_without_a_job_is_read_again_when_it_changed(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    job = library.job("v02")
    assert (job.id, job.state, job.done, job.video) == ("v02", "finished", 3, library.folder / "v02" / "video.mp4")
    opened: list[str] = []
    real = library.open
    monkeypatch.setattr(library, "open", lambda name: (opened.append(name), real(name))[1])
    assert library.job("v02") == job and not opened  # every page asks twice a second
    (library.folder / "v02" / "chunks" / "00002.m4s").unlink()
    assert (library.job("v02").done, library.job("v02").state) == (2, "interrupted")
    assert library.job("v04").state == "stopped" and library.job("v04").video is None
    shutil.rmtree(library.folder / "v04")
    for gone in ("v04", "never"):
        with pytest.raises(InputError, match="may have been deleted"):
            library.job(gone)


def test_versions_are_one_video_that_the_chosen_one_stands_for(library: Library) -> None:
    assert ids(library, grouped=True) == ["v04", "v03", "v02"]
    assert [one["name"] for one in library.versions("v03")] == ["v01", "v03"]
    for one in ("v01", "v03"):
        assert ids(library, versions_of=one) == ["v03", "v01"] and library.page(versions_of=one)["total"] == 2
    assert ids(library, versions_of="v02") == ["v02"] and ids(library, versions_of="gone") == []
    library.label("v01", main=True)
    assert ids(library, grouped=True) == ["v04", "v02", "v01"]
    library.label("v03", main=True)
    assert not read_labels(library.path("v01")).main  # one at a time
    library.label("v01", main=True)
    library.throw("v02")
    assert library.last_video() == library.folder / "v01" / "video.mp4"
    assert ids(library, grouped=True, search="falls") == ["v03"]  # the one that fits, where the chosen one does not
    library.throw("v01")
    make(library.folder, "v05", "a red ball rises", parent="v01")
    assert [one["name"] for one in library.versions("v05")] == ["v03", "v05"]  # their first version lies in the bin


def test_names_and_stars_are_found_and_kept(library: Library) -> None:
    before = library.version()
    library.label("v02", name="  The \n best  one ", starred=True)
    assert library.version() != before
    again = Library(library.folder)
    assert ids(again, search="best", show="starred") == ["v02"] and again.page(search="42")["videos"][0]["starred"]
    assert again.details("v02")["title"] == "The best one"
    library.label("v02", name="")
    assert again.details("v02")["title"] == "a blue square moves" and again.details("v02")["starred"]
    for damaged in ("{", "[]", '{"name": 3, "starred": "yes"}', "[" * 5000):
        (library.folder / "v02" / LABELS).write_text(damaged)
        assert read_labels(library.folder / "v02").name == "" and "v02" in ids(library)


def test_the_bin_gives_back_what_it_holds_until_it_is_emptied(library: Library) -> None:
    content = sorted(path.name for path in library.path("v02").rglob("*"))
    library.throw("v02")
    assert "v02" not in ids(library) and [one["id"] for one in library.binned()] == ["v02"]
    assert library.page()["binned"] == 1
    library.restore("v02")
    assert "v02" in ids(library) and sorted(path.name for path in library.path("v02").rglob("*")) == content
    library.throw("v02")
    make(library.folder, "v02", "another of that name")
    with pytest.raises(OutputError, match="There is another v02"):
        library.restore("v02")
    assert library.empty(["v02"]) == 1 and library.binned() == [] and "v02" in ids(library)
    for name in ("", "..", ".bin", "../v01", "v09"):
        with pytest.raises(InputError, match="no video"):
            library.throw(name)


def test_a_run_whose_writer_is_just_ending_is_thrown_all_the_same(library: Library) -> None:
    with library.open("v02") as project:
        project._acquire()
        ending = threading.Timer(1.0, project.close)
        ending.start()
        library.throw("v02")
        ending.join()
    assert "v02" not in ids(library)


def test_a_run_that_is_being_written_stays(library: Library) -> None:
    with library.open("v02") as project:
        project._acquire()
        with pytest.raises(OutputError, match="being written"):
            library.throw("v02")
    assert "v02" in ids(library)


def test_folders_in_the_making_and_on_their_way_out_are_no_videos(library: Library) -> None:
    """Such a folder is renamed a moment later, and every address in it leads nowhere."""
    before = library.version()
    for hidden in (".new-20260101-x", ".trash-v02-1"):
        shutil.copytree(library.path("v02"), library.folder / hidden)
    shutil.copytree(library.path("v04"), library.folder / ".new-20260102-x")
    assert ids(library) == ["v04", "v03", "v02", "v01"] and library.version() == before
    assert [one["name"] for one in library.versions("v02")] == ["v02"]
    library.throw("v02")
    library.throw("v03")
    assert library.last_video() == library.folder / "v01" / "video.mp4"
    assert [job.project and job.project.name for job in unfinished(library.folder)] == ["v04"]


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_folder_whose_name_is_no_text_disturbs_no_other(library: Library, queue: JobQueue) -> None:
    """As old disks have them; such a name cannot be sent to a page."""
    before = ids(library)
    shutil.copytree(library.path("v04"), library.folder / os.fsdecode(b"bad\xff"))
    shutil.copytree(library.path("v02"), library.folder / ".bin" / os.fsdecode(b"gone\xff"))
    assert library.page()["binned"] == 0
    assert ids(library) == before and json.dumps(library.page()).encode()
    assert library.version().encode()
    assert [job.project and job.project.name for job in unfinished(library.folder)] == ["v04"]


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_half_characters_in_one_run_do_not_hide_the_others(library: Library, queue: JobQueue) -> None:
    """In the name of the picture that it started from, and in the name that it was given: each is written out."""
    actions = Actions(queue, library, Machine(library.folder, "auto"))
    picture = library.path("v02") / "inputs" / os.fsdecode(b"old\xff.png")
    Image.new("RGB", (32, 32)).save(picture)
    make(library.folder, "v05", "a ball", seed=2, image=picture)
    (library.path("v04") / LABELS).write_text(json.dumps({"version": 1, "name": "half \ud83d"}))
    for name in ("gallery", "details", "versions", "status", "queue"):
        action = getattr(actions, name)
        for video in ("v04", "v05"):
            asked = {"details": {"video": video}, "versions": {"video": video}, "status": {"job": video}}.get(name, {})
            for answer in (for_page(action)(asked), for_api(action)(**asked)):
                assert "error" not in answer
                assert json.dumps(answer, ensure_ascii=False).encode()  # what a server sends
    titles = {tile["id"]: tile["title"] for tile in for_page(actions.gallery)()["videos"]}
    assert titles["v04"] == "half \\ud83d" and set(titles) >= {"v01", "v02", "v03", "v05"}
    assert ["Starts from", "old\\udcff.png"] in for_page(actions.details)({"video": "v05"})["settings"]


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "bad\udcff"])
def test_a_video_of_an_impossible_name_is_none(name: str, library: Library) -> None:
    with pytest.raises(InputError, match=r"There is no video .{1,60} in"):
        library.open(name)


def test_only_what_changed_is_read_again(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    library.entries()
    read: list[str] = []
    real = library_module.read_entry
    monkeypatch.setattr(library_module, "read_entry", lambda folder: (read.append(folder.name), real(folder))[1])
    library.label("v03", starred=True)
    read.clear()
    assert next(one for one in library.entries() if one.id == "v03").labels.starred
    assert read == ["v03"]


def test_the_folder_is_looked_at_once_in_a_while(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    before = library.version()
    monkeypatch.setattr(library_module, "LOOK_EVERY", 3600.0)
    make(library.folder, "v09", "another")
    assert library.version() == before
    library.label("v09", starred=True)  # what is done here shows at once
    assert library.version() != before


def test_a_change_is_seen_after_the_clock_was_put_back(library: Library) -> None:
    """The newest file is then not the one that was written last."""
    for name in ("one", "two"):
        (library.folder / name).mkdir()
        (library.folder / name / "project.json").write_text("{}")
    before = library.version()
    assert library.version() == before
    path = library.folder / "one" / "project.json"
    path.write_text("{ }")
    an_hour_ago = path.stat().st_mtime_ns - 3600 * 10**9
    os.utime(path, ns=(an_hour_ago, an_hour_ago))
    assert library.version() != before


def test_the_table_of_settings_says_when_velocities_were_reused() -> None:
    tables = [dict(settings_table(build(prompt="a cat", preset="demo", steps=32, reuse=how))) for how in ("low", "off")]
    assert [table.get("Reuse between steps") for table in tables] == ["low", None]


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    made = JobQueue(tmp_path / ".queue", lambda job, control: iter(()))
    yield made
    made.close()


def test_a_redo_never_makes_the_same_seconds_again(
    library: Library, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without another prompt it takes another seed; with one the seed stays, so that the prompt alone is compared."""
    monkeypatch.setattr("magi_lite.project.Project.check_whole", lambda *_: None)  # these seconds hold nothing
    actions = Actions(queue, library, Machine(library.folder / "models"))
    assert actions.redo("v02", 1)["seed"] != 42
    assert actions.redo("v02", 1, prompt="a green square")["seed"] == 42
    assert actions.redo("v02", 1, seed=42)["seed"] == 42
    other = {"segments": [{"start": 0, "end": 3, "prompt": "it falls"}]}
    assert actions.redo("v02", 1, timeline=other)["seed"] == 42


def test_a_folder_needs_a_name_and_a_machine_some_memory(library: Library, queue: JobQueue) -> None:
    machine = Machine(library.folder / "models")
    actions = Actions(queue, library, machine)
    for folder in ("", "  "):
        with pytest.raises(InputError, match="Give the folder of the models, such as ~/models"):
            actions.use_models_folder(folder)
    assert machine.models_folder == library.folder / "models"
    for memory in (0, -5):
        with pytest.raises(InputError, match=f"no {memory} GB of RAM; give a number above 0"):
            actions.plan_for("RTX 4090", ram_gb=memory)


def test_settings_that_were_deleted_are_no_start_for_others_of_their_name(queue: JobQueue) -> None:
    store = Saved(queue)
    store.put("mine", {"steps": 16})
    store.choose_start("mine")
    store.put("other", {"steps": 8})
    store.delete("other")
    assert store.at_start() == {"steps": 16}
    store.delete("mine")
    store.put("mine", {"steps": 32})
    assert store.at_start() == {}


def test_a_made_video_whose_picture_is_gone_names_what_works(
    library: Library, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a button of a video is pressed there is no box to drop a picture into."""
    monkeypatch.setattr("magi_lite.project.Project.check_whole", lambda *_: None)
    kept = library.folder / ".uploads" / "a.png"
    kept.parent.mkdir()
    Image.new("RGB", (64, 64)).save(kept)
    make(library.folder, "from_picture", "a photograph", seconds=3, image=str(kept))
    actions = Actions(queue, library, Machine(library.folder / "models"))
    job = queue.add(build(prompt="a photograph", preset="demo", image=str(kept)))
    kept.unlink()
    remedy = "The picture that the video starts from is gone; make a new video and drop it there"
    with pytest.raises(InputError, match=remedy):
        actions.redo("from_picture", 1)
    with pytest.raises(InputError, match=remedy):
        actions.clone(job.id)
