"""Pipes, devices, endless and huge files where records, weights and seconds are looked for: none is waited for or read.

A pipe without a writer keeps whoever opens it waiting for ever, and a link to a device never ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from magi_lite.cli import main
from magi_lite.errors import CheckpointError, InputError, MagiLiteError
from magi_lite.library import plan, read_settings, read_timeline
from magi_lite.machine import findings
from magi_lite.project import Project
from magi_lite.request.checks import kind_of_file
from magi_lite.ui.library import Library
from magi_lite.weights import layout
from magi_lite.weights.contents import check_contents
from magi_lite.weights.layout import CACHE_FOLDER
from magi_lite.weights.loader import load_special_tokens
from magi_lite.weights.opening import open_model
from magi_lite.weights.t5 import load_tokenizer
from quant.errors import WeightsError
from quant.storage.files import read_small
from quant.storage.headers import read_header
from tests.project.conftest import ask, finished  # noqa: F401


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """What hangs fails."""

    def ring(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(kind: str, path: Path) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.symlink_to(kind)


def put_back(path: Path, content: bytes) -> None:
    """An ordinary file again, in the place of what `put` put there."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    path.write_bytes(content)


KINDS = ("pipe", "folder", "huge", "loop", "/dev/null", "/dev/zero")


@pytest.mark.parametrize("kind", KINDS)
def test_runs(kind: str, tmp_path: Path, finished: Any) -> None:  # noqa: F811
    """A gallery shows the runs beside it; a second without a piece is damaged and is made again."""
    for name in ("bad", "good", "labelled"):
        shutil.copytree(finished.folder, tmp_path / name)
    put(kind, tmp_path / "bad" / "project.json")
    put(kind, tmp_path / "labelled" / "labels.json")
    assert [one.id for one in Library(tmp_path).entries()] == ["labelled", "good"]
    with pytest.raises(InputError):
        Project.open(tmp_path / "bad")
    shutil.copytree(finished.folder, tmp_path / "video")
    put(kind, tmp_path / "video" / "video.mp4")
    with Project.open(tmp_path / "video") as project:
        project.lock()
        assert project.chunks == finished.chunks
        project.set_status("finished")
    assert (tmp_path / "video" / "video.mp4").read_bytes() == (finished.folder / "video.mp4").read_bytes()
    for number, suffix in enumerate(("safetensors", "m4s", "jpg")):
        run = tmp_path / f"cut{number}"
        shutil.copytree(finished.folder, run)
        put(kind, run / "chunks" / f"00001.{suffix}")
        with Project.open(run) as project:
            project.lock()
            assert project.chunks in (1, finished.chunks)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["ckpt/magi", "ckpt/vae", "ckpt/t5"])
def test_weights(kind: str, part: str, tmp_path: Path) -> None:
    shutil.copytree(open_model("demo").vae.parents[1], tmp_path / "m")
    (weights,) = (tmp_path / "m" / part).rglob("*.safetensors")
    content = weights.read_bytes()
    put(kind, weights)
    with pytest.raises(MagiLiteError):
        check_contents(open_model(tmp_path / "m"))
    put_back(weights, content)
    tokens = tmp_path / "m" / "special_tokens.safetensors"
    content = tokens.read_bytes()
    put(kind, tokens)
    with pytest.raises(MagiLiteError):
        load_special_tokens(open_model(tmp_path / "m"))
    put_back(tokens, content)
    (config,) = (tmp_path / "m" / part).rglob("config.json")
    put(kind, config)
    with pytest.raises(MagiLiteError):
        check_contents(open_model(tmp_path / "m"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_in_the_users_folder(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written anew; a folder or a device in its place stays."""
    path = tmp_path / "kept.json"
    monkeypatch.setattr(findings, "FILE", path)
    put(kind, path)
    assert findings.known() == {}
    assert findings.find("a card", lambda: {"by": "product"}) == {"by": "product"}
    assert findings.known() == ({} if kind == "folder" else {"a card": {"by": "product"}})


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer(kind: str, tmp_path: Path) -> None:
    shutil.copytree(open_model("demo").text_encoder, tmp_path / "t5")
    put(kind, tmp_path / "t5" / "tokenizer.json")
    with pytest.raises(CheckpointError, match="download it again"):
        load_tokenizer(tmp_path / "t5")


@pytest.mark.parametrize("kind", KINDS)
def test_which_snapshot_is_the_newest(kind: str, tmp_path: Path) -> None:
    snapshot = tmp_path / CACHE_FOLDER / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (tmp_path / CACHE_FOLDER / "refs").mkdir()
    put(kind, tmp_path / CACHE_FOLDER / "refs" / "main")
    assert layout.model_root(tmp_path) == snapshot


def test_a_file_of_the_system_that_gives_nothing_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc/kmsg calls itself an ordinary file, and is read by whoever waits for the kernel's next line."""
    path = tmp_path / "waiting.txt"
    os.mkfifo(path)
    keep_open = os.open(path, os.O_RDWR)  # a writer that says nothing
    monkeypatch.setattr("stat.S_ISREG", lambda mode: True)
    with pytest.raises(InputError, match=r"waiting\.txt cannot be read; .*\.$"):
        read_timeline(path)
    with pytest.raises(MagiLiteError, match=r"waiting\.txt is empty; use another copy\.$"):
        read_settings(path)
    assert kind_of_file(path) == ""
    with pytest.raises(OSError, match="nothing to read yet"):
        read_small(path)
    with pytest.raises(WeightsError, match=r"cannot be read: it has nothing to read yet\.$"):
        read_header(path)
    os.close(keep_open)


NUMBERS = [
    ("ckpt/magi/demo", "model_config", "num_layers"),
    ("ckpt/magi/demo", "model_config", "hidden_size"),
    ("ckpt/magi/demo", "runtime_config", "num_steps"),
    ("ckpt/magi/demo", "runtime_config", "window_size"),
    ("ckpt/magi/demo", "runtime_config", "chunk_width"),
    ("ckpt/vae", "ddconfig", "depth"),
    ("ckpt/vae", "ddconfig", "video_size"),
    ("ckpt/t5/demo", None, "num_layers"),
    ("ckpt/t5/demo", None, "vocab_size"),
]


@pytest.mark.parametrize(("folder", "part", "name"), NUMBERS)
@pytest.mark.parametrize("value", [10**9, 10**30])
def test_numbers_that_nothing_has(folder: str, part: str | None, name: str, value: int, tmp_path: Path) -> None:
    """A layer count of a milliard is not counted to."""
    shutil.copytree(open_model("demo").vae.parents[1], tmp_path / "m")
    path = tmp_path / "m" / folder / "config.json"
    content = json.loads(path.read_text())
    (content[part] if part else content)[name] = value
    path.write_text(json.dumps(content))
    for use in (lambda: check_contents(open_model(tmp_path / "m")), lambda: plan("a", model=str(tmp_path / "m"))):
        with pytest.raises(CheckpointError, match=f"{name} .* which must be a whole number from 1 to"):
            use()


@pytest.mark.parametrize("kind", ["pipe", "/dev/null"])
@pytest.mark.parametrize("option", ["--out", "--record-activations"])
def test_no_output_takes_the_place_of_a_device(
    kind: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.mp4"
    put(kind, target)
    before = target.lstat()
    command = ["generate", "--model", "demo", "--preset", "demo", "--seconds", "1", "--prompt", "a red ball"]
    assert main([*command, "--projects", str(tmp_path / "runs"), option, str(target), "--overwrite"]) != 0
    assert "is a device or a pipe, which a file would replace; give another name." in capsys.readouterr().err
    assert target.lstat() == before and not list((tmp_path).glob("runs/2*"))


def test_recorded_activations_replace_no_file_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dear = tmp_path / "dear.txt"
    dear.write_text("dear")
    command = ["generate", "--model", "demo", "--preset", "demo", "--seconds", "1", "--prompt", "a red ball"]
    assert main([*command, "--projects", str(tmp_path / "runs"), "--record-activations", str(dear)]) != 0
    assert f"{dear} exists; give another name, or add --overwrite." in capsys.readouterr().err
    assert dear.read_text() == "dear"
