"""Run folders that are damaged in odd ways: what is shown is what was made, what goes on makes the same bits, and the
rest is one sentence; nothing outside of the folder is written to.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from magi_lite.errors import InputError, MagiLiteError
from magi_lite.pipeline.export import exporting
from magi_lite.project import Project, seconds
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline.text import parse
from magi_lite.ui.library import Library
from tests.bad_input.test_fuzz_files import frames_of
from tests.project.conftest import SIZE, run

SECONDS = 3
Damage = Callable[[Path, Path], object]
"""Of a run's folder; the second folder lies outside."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    asked = GenerationRequest(parse("[0s-1s: a] [1s-3s: b]"), SECONDS, SIZE, SIZE, window=1, steps=4, seed=3)
    with Project.create(tmp_path_factory.mktemp("runs"), asked) as project:
        run(project)
    return project.folder


def record(**changes: Any) -> Damage:
    """Another value in the record; those that have a checksum are changed as in a run of an earlier version."""

    def damage(folder: Path, outside: Path) -> None:
        path = folder / "project.json"
        data = json.loads(path.read_text())
        for name, value in changes.items():
            part = data["request"] if name in data["request"] else data
            if part is data["request"] or name in ("parent", "history", "autoencoder"):
                data.pop("checksum", None)
            part[name] = value
        path.write_text(json.dumps(data))

    return damage


def text(change: Callable[[bytes], bytes], name: str = "project.json") -> Damage:
    return lambda folder, outside: (folder / name).write_bytes(change((folder / name).read_bytes()))


def put(name: str, content: bytes | str) -> Damage:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder, outside: (folder / name).write_bytes(data)


def gone(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def moved_away(name: str) -> Damage:
    """A link to where it lies now, as who has little room on a disk makes it."""

    def damage(folder: Path, outside: Path) -> None:
        (folder / name).rename(outside / "kept")
        (folder / name).symlink_to(outside / "kept")

    return damage


def linked(name: str, content: str | None = None) -> Damage:
    """A link to a file outside; None: to nothing."""

    def damage(folder: Path, outside: Path) -> None:
        gone(folder / name)
        if content is not None:
            (outside / "dear").write_text(content)
        (folder / name).symlink_to(outside / "dear")

    return damage


def other_kind(name: str, kind: str) -> Damage:
    def damage(folder: Path, outside: Path) -> None:
        gone(folder / name)
        {"folder": Path.mkdir, "file": Path.touch, "pipe": os.mkfifo}[kind](folder / name)

    return damage


def both(*damages: Damage) -> Damage:
    return lambda folder, outside: [damage(folder, outside) for damage in damages]


def without(*names: str) -> Damage:
    return lambda folder, outside: [gone(folder / name) for name in names]


def copies(*pairs: tuple[str, str]) -> Damage:
    return lambda folder, outside: [shutil.copyfile(folder / one, folder / other) for one, other in pairs]


def upper(folder: Path, outside: Path) -> None:
    for path in (folder / "chunks").iterdir():
        path.rename(path.with_name(path.name.upper()))


def remuxed(folder: Path, outside: Path) -> None:
    with av.open(str(folder / "video.mp4")) as source, av.open(str(outside / "a.mp4"), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux():
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    shutil.copyfile(outside / "a.mp4", folder / "video.mp4")


def latents(change: Callable[[Any], Any], keep: bool = True) -> Damage:
    def damage(folder: Path, outside: Path) -> None:
        path = folder / "chunks" / "00001.safetensors"
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata()
        save_file({"latents": change(load_file(path)["latents"])}, path, metadata if keep else None)

    return damage


CUT = text(lambda data: data[:50], "chunks/00001.m4s")
HISTORY = {"at": "x", "from": 0, "what": "timeline"}
RECORD = "its project.json is damaged"
MORE = "are damaged or missing; resume the run to restore them or make them again."
SAME = ""
CASES: dict[str, tuple[Damage, str, str]] = {
    "seconds on another disk": (moved_away("chunks"), SAME, SAME),
    "states on another disk": (moved_away("states"), SAME, SAME),
    "video on another disk": (moved_away("video.mp4"), SAME, SAME),
    "a fragment on another disk": (moved_away("chunks/00001.m4s"), SAME, SAME),
    "record on another disk": (moved_away("project.json"), SAME, SAME),
    "seconds on a disk that is gone": (linked("chunks"), MORE, SAME),
    "states on a disk that is gone": (linked("states"), SAME, SAME),
    "video on a disk that is gone": (linked("video.mp4"), SAME, SAME),
    "video is another file": (linked("video.mp4", "dear"), SAME, SAME),
    "bytes behind the video": (text(lambda data: data + b"garbage" * 100, "video.mp4"), SAME, SAME),
    "a box behind the video": (
        text(lambda data: data + struct.pack(">I4s", 16, b"free") + bytes(8), "video.mp4"), SAME, SAME
    ),
    "the video twice": (text(lambda data: data * 2, "video.mp4"), SAME, SAME),
    "the video remuxed": (remuxed, SAME, SAME),
    "names in upper case": (upper, MORE, SAME),
    "copies of a synchronizing program": (
        copies(("chunks/00001.m4s", "chunks/00001 (1).m4s"), ("project.json", "project (1).json")), SAME, SAME
    ),
    "numbers that are none": (
        copies(*((f"chunks/00001.{kind}", f"chunks/{name}.{kind}") for kind in ("m4s", "safetensors")
                 for name in ("99999", "1000000000", "-0001", "٣٣٣٣٣"))), SAME, SAME
    ),
    **{
        f"{what} behind the end, as {number}": (
            copies(*((f"chunks/00001.{kind}", f"chunks/{number:05}.{kind}") for kind in kinds)), SAME, SAME
        )
        for number in (3, 4, 7)
        for what, kinds in {
            "a second": ("m4s", "safetensors", "jpg"), "frames": ("m4s",), "latents": ("safetensors",)
        }.items()
    },
    "no frames behind the end": (put("chunks/00003.m4s", b"x"), SAME, SAME),
    "seconds behind the end, and a damaged one": (
        both(copies(("chunks/00001.m4s", "chunks/00003.m4s"), ("chunks/00001.safetensors", "chunks/00003.safetensors")),
             CUT), SAME, SAME
    ),
    "a gap, and no video": (without("chunks/00001.m4s", "video.mp4"), MORE, SAME),
    "only the record": (without("chunks", "states", "inputs", "video.mp4"), MORE, SAME),
    "record with a mark of its bytes' order": (text(lambda data: b"\xef\xbb\xbf" + data), SAME, SAME),
    "record in UTF-16": (text(lambda data: data.decode().encode("utf-16")), SAME, SAME),
    "record with a Windows editor's lines": (text(lambda data: data.replace(b"\n", b"\r\n")), SAME, SAME),
    "record with a name twice": (text(lambda data: b'{"status":"failed",' + data[1:]), SAME, SAME),
    "record cut": (text(lambda data: data[:300]), RECORD, RECORD),
    "record of zeros": (text(lambda data: bytes(len(data))), RECORD, RECORD),
    "record without anything": (put("project.json", "{}"), RECORD, RECORD),
    "record a list": (put("project.json", "[]"), RECORD, RECORD),
    "record deep": (put("project.json", "[" * 100_000), RECORD, RECORD),
    "a version in text": (record(version="1"), "reads version 1", "reads version 1"),
    "a version of the future": (record(version=10**30), "reads version 1", "reads version 1"),
    "status a list": (record(status=["a"]), RECORD, RECORD),
    "status unknown": (record(status="asleep"), SAME, SAME),
    "a long message": (record(message="x" * 10**6), SAME, SAME),
    "a message with markup": (record(status="failed", message="<script>\n![](http://x/y.png)"), SAME, SAME),
    "made yesterday": (record(created="yesterday"), SAME, SAME),
    "parent elsewhere": (record(parent={"project": "../../etc", "from": 1}), SAME, SAME),
    "parent without a name": (record(parent={"from": 1}), RECORD, RECORD),
    "parent before the beginning": (record(parent={"project": "x", "from": -5}), SAME, SAME),
    "a long history": (record(history=[HISTORY] * 20_000), SAME, SAME),
    "a history of large numbers": (record(history=[HISTORY | {"from": 10**400}]), SAME, SAME),
    "a history that is none": (record(history=[3]), RECORD, RECORD),
    "no width": (record(width=0), "A width of 0 is out of range", "A width of 0 is out of range"),
    "a quality below nothing": (record(crf=-7), "The quality (crf) -7 is out of", "The quality (crf) -7 is out of"),
    "a window of nothing": (record(window=0), "A window of 0 does not divide", "A window of 0 does not divide"),
    "a width in text": (record(width="wide"), "must be a whole number, not 'wide'", "must be a whole number"),
    "an autoencoder that is a number": (record(autoencoder=5), RECORD, RECORD),
    "more seconds than are there": (record(seconds=5), MORE, SAME),
    "labels a list": (put("labels.json", "[1,2]"), SAME, SAME),
    "labels long": (put("labels.json", json.dumps({"name": "x" * 10**6, "star": "yes", "chosen": [1]})), SAME, SAME),
    "labels deep": (put("labels.json", "[" * 100_000), SAME, SAME),
    "a number for a name": (put("labels.json", '{"name": 5}'), SAME, SAME),
    "log a folder": (both(other_kind("log.txt", "folder"), CUT), SAME, SAME),
    "log another file": (linked("log.txt", "dear"), SAME, SAME),
    "log a pipe": (both(other_kind("log.txt", "pipe"), CUT), SAME, SAME),
    "a file called damaged": (both(put("damaged", "x"), CUT), SAME, SAME),
    "damaged things elsewhere": (both(linked("damaged"), CUT), SAME, SAME),
    "no room in the folder damaged": (
        both(other_kind("damaged", "folder"), put("damaged/999999999-x", ""), CUT), SAME, SAME
    ),
    "inputs a file": (other_kind("inputs", "file"), SAME, SAME),
    "states a file": (other_kind("states", "file"), SAME, SAME),
    "seconds a file": (other_kind("chunks", "file"), MORE, SAME),
    "exports a file": (put("exports", "x"), SAME, SAME),
    "folders called as unfinished files": (
        both(other_kind(".x.tmp", "folder"), other_kind("chunks/.y.tmp1", "folder")), SAME, SAME
    ),
    "lock another file": (linked(".lock", "dear"), SAME, SAME),
    "latents without a checksum": (latents(lambda tensor: tensor.clone(), keep=False), SAME, SAME),
    "latents of NaN": (latents(lambda tensor: tensor * float("nan")), MORE, SAME),
    "latents of another shape": (latents(lambda tensor: tensor[:, :2].contiguous()), MORE, SAME),
    "all fragments the first": (
        copies(("chunks/00000.m4s", "chunks/00001.m4s"), ("chunks/00000.m4s", "chunks/00002.m4s")), SAME, SAME
    ),
    "a page for thumbnails": (put("chunks/00000.jpg", "<script>alert(1)</script>"), SAME, SAME),
}  # fmt: skip
"""Damage, what an export says, and what going on says: a part of the sentence, or `SAME`."""


def said(work: Callable[[], object]) -> str:
    """The one sentence with which it is refused; `SAME` where it is not."""
    try:
        work()
    except MagiLiteError as error:
        text = str(error)
        assert text.endswith(".") and "\n" not in text and len(text) < 700
        return text
    return SAME


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes and links")
@pytest.mark.parametrize("case", CASES)
def test_a_damaged_run(case: str, whole: Path, tmp_path: Path) -> None:
    damage, shown, resumed = CASES[case]
    outside, folder, target = tmp_path / "outside", tmp_path / "runs" / whole.name, tmp_path / "out.mp4"
    outside.mkdir()
    shutil.copytree(whole, folder)
    damage(folder, outside)
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    Library(tmp_path / "runs").entries()
    sentence = said(lambda: [*exporting(folder, target, metadata=False)])
    assert shown in sentence and bool(shown) == bool(sentence), sentence
    if not shown:
        [*exporting(whole, tmp_path / "wanted.mp4", metadata=False)]
        assert frames_of(target) == frames_of(tmp_path / "wanted.mp4")

    def go_on() -> None:
        with Project.open(folder) as project, Project.open(whole) as wanted:
            project.lock()
            run(project)
            for index in range(SECONDS):
                assert project.read_fragment(index) == wanted.read_fragment(index)
                assert (project.read_latents(index) == wanted.read_latents(index)).all()
            assert frames_of(project.video)[: SECONDS * 24] == frames_of(wanted.video)

    sentence = said(go_on)
    assert resumed in sentence and bool(resumed) == bool(sentence), sentence
    for path, content in before.items():
        if "another disk" not in case:
            assert path.read_bytes() == content, "something outside was written to"


def test_a_video_that_held_other_frames_is_said_and_kept(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.copyfile(folder / "chunks" / "00000.m4s", folder / "chunks" / "kept")
    data = (folder / "video.mp4").read_bytes()
    (folder / "video.mp4").write_bytes(data[:-40] + bytes(40))
    with Project.open(folder) as project:
        project.lock()
        (notice,) = project.notices
        assert notice.startswith("video.mp4 was damaged, or held other frames than the run's seconds; it was put")
        run(project)
    assert (folder / "video.mp4").read_bytes() == data
    assert [path.name for path in (folder / "damaged").iterdir()] == ["000-video.mp4"]
    with Project.open(folder) as project:
        project.lock()
        assert not project.notices


def test_a_video_that_held_other_frames_is_read_once_to_see_that(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One compares its seconds with the folder's; a film's video has gigabytes."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    data = (folder / "video.mp4").read_bytes()
    (folder / "video.mp4").write_bytes(data[:-40] + bytes(40))
    read: list[int] = []
    pieces = seconds._VideoPieces.read
    monkeypatch.setattr(seconds._VideoPieces, "read", lambda self, index: read.append(index) or pieces(self, index))
    with Project.open(folder) as project:
        project.lock()
        assert project.notices
    assert read == [*range(SECONDS)]


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60
    with pytest.raises(InputError):
        Project.open(Path("nowhere"))
