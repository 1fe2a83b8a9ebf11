"""Damaged files of a run: nothing whole is lost, what is damaged is restored or made again, and it is said."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import av
import numpy as np
import pytest
from PIL import Image

from magi_lite.control import RunControl
from magi_lite.errors import InputError
from magi_lite.events import ChunkFinished, Event, Finished, Notice, PhaseStarted
from magi_lite.pipeline import generate
from magi_lite.pipeline.export import exporting
from magi_lite.project import Project
from magi_lite.ui.library import Library
from magi_lite.video.thumbnails import strip, to_jpeg
from tests.pipeline.conftest import latents_of, same_bits

SECONDS = 4
TIMELINE = "[0s-2s: a red ball] [2s-4s: a blue box]"


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit of the last quarter, which is numbers or pictures and no header."""
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    path.write_bytes(data)


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(1).bytes(5000))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {"deleted": Path.unlink, "empty": empty, "cut": cut, "flipped": flip, "garbage": garbage, "folder": folder}


def frames_of(video: Path) -> np.ndarray:
    with av.open(str(video)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def finished_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four seconds, done."""
    return make_run(tiny_model, tmp_path_factory.mktemp("finished"), stop_after=None)


@pytest.fixture(scope="module")
def paused_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, paused after two seconds."""
    return make_run(tiny_model, tmp_path_factory.mktemp("paused"), stop_after=1)


def make_run(model: Path, root: Path, stop_after: int | None) -> Path:
    from magi_lite.request.request import GenerationRequest, Overrides
    from magi_lite.timeline.text import parse

    request = GenerationRequest(
        parse(TIMELINE), SECONDS, 32, 32, steps=4, window=1, seed=7, model=str(model), preset="demo",
        overrides=Overrides(scheme="float32", t5="float32"),
    )  # fmt: skip
    control = RunControl()
    for event in generate(request, projects_folder=root, control=control):
        if isinstance(event, ChunkFinished) and event.chunk == stop_after:
            control.pause()
    (found,) = (path for path in root.iterdir() if path.is_dir())
    return found


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """A run's folder to damage."""
    return lambda run: Path(shutil.copytree(run, tmp_path / "projects" / "run"))


def resume(run: Path) -> list[Event]:
    return list(generate(None, resume=run))


def notices(events: list[Event]) -> str:
    return " ".join(event.message for event in events if isinstance(event, Notice))


@pytest.mark.parametrize("second", [0, 2, 3])
@pytest.mark.parametrize("piece", ["safetensors", "m4s"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_one_damaged_piece_is_restored_bit_for_bit(
    damage: str, piece: str, second: int, finished_run: Path, copy_of: Callable, run: Callable
) -> None:
    path = copy_of(finished_run)
    DAMAGES[damage](path / "chunks" / f"{second:05}.{piece}")
    events = resume(path)
    assert isinstance(events[-1], Finished) and Project.open(path).status == "finished"
    assert same_bits(latents_of(path), latents_of(finished_run))
    for name in ("video.mp4", *(f"chunks/{index:05}.m4s" for index in range(SECONDS))):
        assert (path / name).read_bytes() == (finished_run / name).read_bytes(), name
    what = "latents" if piece == "safetensors" else "frames"
    last_leaves_no_trace = piece == "safetensors" and second == SECONDS - 1 and damage == "deleted"
    assert last_leaves_no_trace or f"The {what} of second {second} were damaged or missing" in notices(events)
    kept = [path.name for path in (path / "damaged").glob("*")] if (path / "damaged").is_dir() else []
    assert bool(kept) == (damage != "deleted"), "a damaged file is moved aside, not deleted"


@pytest.mark.parametrize("opened", ["resumed", "shown"])
@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage != "flipped"])
def test_lost_thumbnails_are_made_again_from_the_video(
    damage: str, opened: str, finished_run: Path, copy_of: Callable
) -> None:
    """Where a run goes on, and where the app shows it; those that are whole stay as they are."""
    path = copy_of(finished_run)
    for second in (1, 3):
        DAMAGES[damage](path / "chunks" / f"{second:05}.jpg")
    if opened == "resumed":
        resume(path)
    else:
        Library(path.parent).details(path.name)
    shown = frames_of(path / "video.mp4").reshape(SECONDS, -1, 32, 32, 3)
    for second in range(SECONDS):
        made, first = (run / "chunks" / f"{second:05}.jpg" for run in (path, finished_run))
        wanted = Image.open(io.BytesIO(to_jpeg(strip(shown[second]))))
        if second in (1, 3):
            assert np.array_equal(np.asarray(Image.open(made)), np.asarray(wanted))
        else:
            assert made.read_bytes() == first.read_bytes()
    assert (path / "video.mp4").read_bytes() == (finished_run / "video.mp4").read_bytes()


@pytest.mark.parametrize("thrown", [False, True], ids=["gallery", "bin"])
def test_a_card_gets_its_lost_picture_back(thrown: bool, finished_run: Path, copy_of: Callable) -> None:
    path = copy_of(finished_run)
    (path / "chunks" / "00000.jpg").unlink()
    library = Library(path.parent)
    if thrown:
        library.throw(path.name)
    tiles = library.binned() if thrown else library.page()["videos"]
    (tile,) = (tile for tile in tiles if tile["id"] == path.name)
    lost = Path(unquote(tile["thumbnail"]).removeprefix("/gradio_api/file="))
    assert lost.parts[-3:] == (path.name, "chunks", "00000.jpg")
    path = lost.parents[1]
    shown = frames_of(path / "video.mp4").reshape(SECONDS, -1, 32, 32, 3)
    wanted = Image.open(io.BytesIO(to_jpeg(strip(shown[0]))))
    assert np.array_equal(np.asarray(Image.open(lost)), np.asarray(wanted))


@pytest.mark.parametrize("second", [0, 2, 3])
@pytest.mark.parametrize("damage", ["deleted", "flipped"])
def test_a_second_without_any_whole_piece_is_computed_again_and_later_ones_stay(
    damage: str, second: int, finished_run: Path, copy_of: Callable, run: Callable
) -> None:
    path = copy_of(finished_run)
    for name in (f"chunks/{second:05}.safetensors", f"chunks/{second:05}.m4s", "video.mp4"):
        DAMAGES[damage](path / name)
    for state in (path / "states").iterdir():  # those that still hold its latents
        if int(state.stem) >= second:
            state.unlink()
    later = path / "chunks" / "00003.m4s"
    written = later.stat().st_mtime_ns if second < 3 else None
    events = resume(path)
    assert isinstance(events[-1], Finished)
    assert same_bits(latents_of(path), latents_of(finished_run))
    assert np.array_equal(frames_of(path / "video.mp4"), frames_of(finished_run / "video.mp4"))
    assert [event.chunk for event in events if isinstance(event, ChunkFinished)] == [second]
    assert written is None or later.stat().st_mtime_ns == written


def swap(folder: Path, name: str, other: str) -> None:
    """Two files under each other's name."""
    data = (folder / name).read_bytes()
    (folder / name).write_bytes((folder / other).read_bytes())
    (folder / other).write_bytes(data)


@pytest.mark.parametrize("video", ["whole", "gone"])
@pytest.mark.parametrize("pieces", [["safetensors"], ["m4s"], ["safetensors", "m4s"]], ids="+".join)
def test_seconds_under_each_others_name_are_not_taken_for_each_other(
    pieces: list[str], video: str, finished_run: Path, copy_of: Callable, run: Callable
) -> None:
    path = copy_of(finished_run)
    for kind in pieces:
        swap(path / "chunks", f"00001.{kind}", f"00002.{kind}")
    if video == "gone":
        (path / "video.mp4").unlink()
    events = resume(path)
    assert isinstance(events[-1], Finished) and "of second 1 were damaged or missing" in notices(events)
    assert same_bits(latents_of(path), latents_of(finished_run))
    assert (path / "video.mp4").read_bytes() == (finished_run / "video.mp4").read_bytes()


@pytest.mark.parametrize("kind", [b"I32", b"U32"])
def test_latents_whose_type_was_changed_are_damaged(
    kind: bytes, finished_run: Path, copy_of: Callable, run: Callable
) -> None:
    """All numbers are there, and mean something else."""
    path = copy_of(finished_run)
    latents = path / "chunks" / "00001.safetensors"
    latents.write_bytes(latents.read_bytes().replace(b'"F32"', b'"%s"' % kind, 1))
    with Project.open(path) as project, pytest.raises(InputError, match="The latents of second 1 in run are damaged"):
        project.read_latents(1)
    resume(path)
    assert same_bits(latents_of(path), latents_of(finished_run))


@pytest.mark.parametrize("what", ["states/00003.safetensors", "chunks/00000.safetensors"])
def test_another_whole_file_in_the_place_of_latents(
    what: str, finished_run: Path, copy_of: Callable, run: Callable
) -> None:
    path = copy_of(finished_run)
    shutil.copyfile(path / what, path / "chunks" / "00002.safetensors")
    assert "The latents of second 2 were damaged or missing" in notices(resume(path))
    assert same_bits(latents_of(path), latents_of(finished_run))


def test_frames_that_nothing_vouches_for_are_made_again(finished_run: Path, copy_of: Callable, run: Callable) -> None:
    """Their checksum lay in the latents, which are gone, and so is the video with the other copy."""
    path = copy_of(finished_run)
    (path / "chunks" / "00002.safetensors").unlink()
    (path / "video.mp4").unlink()
    flip(path / "chunks" / "00002.m4s")
    flipped = (path / "chunks" / "00002.m4s").read_bytes()
    resume(path)
    assert flipped in [kept.read_bytes() for kept in (path / "damaged").iterdir()]
    assert (path / "video.mp4").read_bytes() == (finished_run / "video.mp4").read_bytes()
    assert same_bits(latents_of(path), latents_of(finished_run))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_video_is_put_together_again(
    damage: str, finished_run: Path, copy_of: Callable, run: Callable
) -> None:
    path = copy_of(finished_run)
    DAMAGES[damage](path / "video.mp4")
    resume(path)
    assert (path / "video.mp4").read_bytes() == (finished_run / "video.mp4").read_bytes()


@pytest.mark.parametrize("damage", DAMAGES)
def test_all_fragments_gone_come_back_out_of_the_video(
    damage: str, finished_run: Path, copy_of: Callable, run: Callable
) -> None:
    path = copy_of(finished_run)
    for fragment in (path / "chunks").glob("*.m4s"):
        DAMAGES[damage](fragment)
    resume(path)
    assert [p.read_bytes() for p in sorted((path / "chunks").glob("*.m4s"))] == [
        p.read_bytes() for p in sorted((finished_run / "chunks").glob("*.m4s"))
    ]
    assert (path / "video.mp4").read_bytes() == (finished_run / "video.mp4").read_bytes()


def test_a_video_whose_seconds_are_all_gone_is_moved_aside(
    finished_run: Path, copy_of: Callable, run: Callable
) -> None:
    """Its frames are all that is left of them; the run computes them again, and replaces nothing."""
    path = copy_of(finished_run)
    for file in (*(path / "chunks").iterdir(), *(path / "states").iterdir()):
        file.unlink()
    video = (path / "video.mp4").read_bytes()
    resume(path)
    assert [file.read_bytes() for file in (path / "damaged").iterdir()] == [video]
    assert same_bits(latents_of(path), latents_of(finished_run))


@pytest.mark.parametrize("which", ["newest", "all"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_states_are_passed_over(
    damage: str, which: str, finished_run: Path, paused_run: Path, copy_of: Callable, run: Callable
) -> None:
    path = copy_of(paused_run)
    states = sorted((path / "states").iterdir())
    for state in states if which == "all" else states[-1:]:
        DAMAGES[damage](state)
    assert isinstance(resume(path)[-1], Finished)
    assert same_bits(latents_of(path), latents_of(finished_run))


HURT_RECORD = r"^run cannot be opened: its project.json is damaged; its settings are also in .*, and --settings .*\.$"


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "garbage"])
def test_a_damaged_record_is_one_sentence_and_touches_nothing(
    damage: str, finished_run: Path, copy_of: Callable
) -> None:
    path = copy_of(finished_run)
    DAMAGES["garbage" if damage == "flipped" else damage](path / "project.json")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=HURT_RECORD):
        resume(path)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"seed": 7', '"seed": 6'), ("a blue box", "a blue bax"), ('"seconds": 4', '"seconds": 5'),
        ('"what": "created"', '"what": "creatad"'), ('"width": 32', '"width": 48'),
    ],
)  # fmt: skip
def test_a_record_with_another_figure_is_damaged(old: str, new: str, paused_run: Path, copy_of: Callable) -> None:
    """It reads as well as the one that was written, and the run would go on to another video."""
    path = copy_of(paused_run)
    text = (path / "project.json").read_text()
    assert old in text
    (path / "project.json").write_text(text.replace(old, new, 1))
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=HURT_RECORD):
        resume(path)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_a_status_that_is_none_is_as_if_the_run_had_been_interrupted(paused_run: Path, copy_of: Callable) -> None:
    path = copy_of(paused_run)
    text = (path / "project.json").read_text()
    (path / "project.json").write_text(text.replace('"status": "paused"', '"status": "pausad"'))
    assert Project.open(path).status == "interrupted"


def test_a_run_whose_folder_goes_away_is_one_sentence(finished_run: Path, copy_of: Callable) -> None:
    path = copy_of(finished_run)
    with Project.open(path) as project:
        shutil.rmtree(path)
        with pytest.raises(InputError, match=r"The folder .* cannot be read \(No such file or directory\)\."):
            _ = project.chunks


def test_runs_of_the_version_before_have_no_checksums_and_still_open(
    finished_run: Path, copy_of: Callable, run: Callable
) -> None:
    from safetensors.torch import load_file, save_file

    path = copy_of(finished_run)
    for latents in (path / "chunks").glob("*.safetensors"):
        save_file(load_file(latents), latents)
    (path / "chunks" / "00000.m4s").unlink()
    resume(path)
    assert (path / "chunks" / "00000.m4s").read_bytes() == (finished_run / "chunks" / "00000.m4s").read_bytes()
    assert same_bits(latents_of(path), latents_of(finished_run))


def test_checksums_of_the_version_before_still_hold(finished_run: Path, copy_of: Callable, run: Callable) -> None:
    """They covered neither a tensor's type nor the file's place."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    def digest(metadata: dict[str, str], latents: np.ndarray) -> str:
        header = json.dumps(metadata, sort_keys=True).encode()
        return hashlib.sha256(header + f"latents {list(latents.shape)}".encode() + latents.tobytes()).hexdigest()

    path = copy_of(finished_run)
    for file in (path / "chunks").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            metadata, latents = dict(opened.metadata()), opened.get_tensor("latents")
        del metadata["checksum"]
        save_file({"latents": latents}, file, metadata | {"checksum": digest(metadata, latents.numpy())})
    record = json.loads((path / "project.json").read_text())
    del record["checksum"]
    (path / "project.json").write_text(json.dumps(record))
    assert same_bits(latents_of(path), latents_of(finished_run))
    flip(path / "chunks" / "00001.safetensors")
    assert "The latents of second 1 were damaged" in notices(resume(path))
    assert same_bits(latents_of(path), latents_of(finished_run))


# --- who copies seconds without resuming the run


def exclusive_or(path: Path) -> None:
    """The byte in the middle: pictures or numbers, and no header."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def without_tfdt(path: Path) -> None:
    """The fragment's own headers are whole, and one that places it is called otherwise."""
    data = bytearray(path.read_bytes())
    data[data.index(b"tfdt")] ^= 1
    path.write_bytes(data)


def hurt(run: Path, what: str) -> None:
    fragment, latents = run / "chunks" / "00001.m4s", run / "chunks" / "00001.safetensors"
    match what:
        case "frames":
            exclusive_or(fragment)
        case "frames and latents":
            exclusive_or(fragment)
            exclusive_or(latents)
        case "latents":
            exclusive_or(latents)
        case "header":
            without_tfdt(fragment)
        case "second deleted":
            for path in (run / "chunks").glob("00001.*"):
                path.unlink()
        case "last second deleted":
            for path in (run / "chunks").glob("00003.*"):
                path.unlink()
        case "states deleted":
            shutil.rmtree(run / "states")
        case "chunks deleted":
            shutil.rmtree(run / "chunks")


HURTS = ("frames", "frames and latents", "latents", "header", "second deleted", "last second deleted")
FOLDERS = ("states deleted", "chunks deleted")


def at_once_or_resumed(what: str, path: Path, work: Callable[[], Any], untouched: Callable[[], bool]) -> Any:
    """What `work` makes of a hurt run: at once, or, where two copies are gone, refused and made behind a resume."""
    try:
        return work()
    except InputError as error:
        assert what in ("frames and latents", "chunks deleted"), error
        assert str(error).endswith("in run are damaged or missing; resume the run to restore them or make them again.")
    assert untouched()
    resume(path)
    return work()


def runs_beside(path: Path) -> list[str]:
    return [one.name for one in path.parent.iterdir() if not one.name.startswith(".")]


@pytest.mark.parametrize("what", HURTS + FOLDERS)
def test_an_export_restores_what_is_damaged_or_refuses(
    what: str, finished_run: Path, copy_of: Callable, tmp_path: Path
) -> None:
    path = copy_of(finished_run)
    hurt(path, what)
    out = tmp_path / "out.mp4"
    events = at_once_or_resumed(what, path, lambda: list(exporting(path, out)), lambda: not out.exists())
    assert any("Copying 4 seconds" in event.detail for event in events if isinstance(event, PhaseStarted))
    assert np.array_equal(frames_of(tmp_path / "out.mp4"), frames_of(finished_run / "video.mp4"))


@pytest.mark.parametrize("what", HURTS + FOLDERS)
def test_a_redo_restores_what_is_damaged_or_refuses(
    what: str, finished_run: Path, copy_of: Callable, run: Callable
) -> None:
    from magi_lite.library import ask

    path = copy_of(finished_run)
    hurt(path, what)

    def redo() -> Path:
        request = ask(resume=path, redo_from=3, seed=9)
        return next(e.project for e in generate(request, resume=path, from_chunk=3) if isinstance(e, Finished))

    made = at_once_or_resumed(what, path, redo, lambda: runs_beside(path) == ["run"])
    assert same_bits(latents_of(made)[:3], latents_of(finished_run)[:3])
    for index in range(3):
        name = f"chunks/{index:05}.m4s"
        assert (made / name).read_bytes() == (finished_run / name).read_bytes()


@pytest.mark.parametrize("what", HURTS + FOLDERS)
def test_a_resume_makes_whole_whatever_is_damaged(
    what: str, finished_run: Path, copy_of: Callable, run: Callable
) -> None:
    path = copy_of(finished_run)
    hurt(path, what)
    assert isinstance(resume(path)[-1], Finished)
    assert same_bits(latents_of(path), latents_of(finished_run))
    assert (path / "video.mp4").read_bytes() == (finished_run / "video.mp4").read_bytes()


@pytest.mark.parametrize("listed", [True, False])
def test_which_copy_of_the_frames_is_whole_is_not_guessed(
    finished_run: Path, copy_of: Callable, run: Callable, tmp_path: Path, listed: bool
) -> None:
    """The video is the damaged one, the latents with the checksum are too.

    The list of what was made knows; without it an export that refuses decides nothing.
    """
    path = copy_of(finished_run)
    fragment = (path / "chunks" / "00001.m4s").read_bytes()
    video = bytearray((path / "video.mp4").read_bytes())
    video[video.index(fragment) + len(fragment) // 2] ^= 0xFF
    (path / "video.mp4").write_bytes(video)
    exclusive_or(path / "chunks" / "00001.safetensors")
    if listed:
        list(exporting(path, tmp_path / "out.mp4", metadata=False))
        list(exporting(finished_run, tmp_path / "wanted.mp4", metadata=False))
        assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "wanted.mp4").read_bytes()
    else:
        record = json.loads((path / "project.json").read_text())
        for name in ("made", "asked", "origin", "checksum"):
            del record[name]
        (path / "project.json").write_text(json.dumps(record))
        with pytest.raises(InputError, match="The latents of second 1 in run are damaged or missing"):
            list(exporting(path, tmp_path / "out.mp4"))
    resume(path)
    assert (path / "video.mp4").read_bytes() == (finished_run / "video.mp4").read_bytes()


def test_a_part_before_what_is_damaged_can_be_exported(finished_run: Path, copy_of: Callable, tmp_path: Path) -> None:
    path = copy_of(finished_run)
    for name in ("chunks/00001.m4s", "chunks/00001.safetensors", "video.mp4"):
        (path / name).unlink()
    events = list(exporting(path, tmp_path / "out.mp4", (0, 1)))
    assert any("Copying 1 second to" in event.detail for event in events if isinstance(event, PhaseStarted))
    with pytest.raises(InputError, match="of second 1 and the frames of second 1 in run are damaged or missing"):
        list(exporting(path, tmp_path / "all.mp4"))


@pytest.mark.parametrize("kind", ["m4s", "safetensors"])
def test_a_stray_file_behind_the_end_makes_no_second_missing(
    kind: str, finished_run: Path, copy_of: Callable, run: Callable
) -> None:
    path = copy_of(finished_run)
    (path / "chunks" / f"00007.{kind}").write_bytes(b"x")
    said = notices(resume(path))
    assert "made again" not in said and f"behind the video's end (00007.{kind})" in said
    assert not (path / "chunks" / f"00007.{kind}").exists()
