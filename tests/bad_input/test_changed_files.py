"""Files that are cut, changed or taken away while they are being read: a sentence, and never the end of the program.

A file that is mapped into memory and then cut ends the program that looks at it, so each case runs in a child.
"""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from magi_lite import files
from magi_lite.errors import MagiLiteError, MediaError
from magi_lite.project import Project, tensors
from magi_lite.project.tensors import Damaged
from magi_lite.request.checks import content_hash
from magi_lite.video import images
from quant.storage import tensors as weights
from quant.storage.shards import Checkpoint
from tests.project.conftest import ask, finished, in_child, run  # noqa: F401

CUTS = (0, 10, 200, 5000)
"""Bytes that are left."""
ENDINGS = {0: "read", 1: "refused", 2: "program error"}


def ending(work: Callable[[], object]) -> str:
    """How some work ends in a process of its own."""

    def ended() -> int:
        try:
            work()
            return 0
        except (MagiLiteError, Damaged) as error:
            return 1 if str(error).endswith(".") and "\n" not in str(error) else 2
        except BaseException:
            traceback.print_exc()
            return 2

    code = in_child(ended)
    return ENDINGS.get(code, f"signal {-code}")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("left", CUTS)
@pytest.mark.parametrize(
    "name", ["a.bmp", "grey.bmp", "a.tif", "grey.tif", "a.png", "a.jpg", "a.gif", "a.webp", "a.ppm", "a.tga", "a.ico"]
)
def test_a_picture_that_is_cut_behind_its_header(name: str, left: int, tmp_path: Path) -> None:
    """Grey BMP and TIFF are what Pillow maps if it is let."""
    pixels = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    path = tmp_path / name
    Image.fromarray(pixels[..., 0] if name.startswith("grey") else pixels).save(path)

    def work() -> None:
        decode = images._decoded

        def cut_first(*given: Any) -> Image.Image:
            os.truncate(path, min(left, path.stat().st_size))
            return decode(*given)

        images._decoded = cut_first
        images.load_image(path, (64, 64))

    whole_in_memory = name in ("a.webp", "a.ico")
    assert ending(work) == ("read" if whole_in_memory else "refused")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("left", CUTS)
@pytest.mark.parametrize("name", ["chunks/00001.safetensors", "states/00001.safetensors"])
def test_a_runs_numbers_that_are_cut_while_they_are_read(
    name: str, left: int, tmp_path: Path, finished: Any  # noqa: F811
) -> None:
    """Their page as much as who goes on with them: the header is read whole, then the file is cut."""
    shutil.copytree(finished.folder, tmp_path / "run")
    path = tmp_path / "run" / name

    def work() -> None:
        read = tensors._read_header

        def cut_then(file: Any) -> Any:
            found = read(file)
            os.truncate(path, left)
            return found

        tensors._read_header = cut_then
        tensors.load_tensors(path)

    assert ending(work) == "refused"
    with Project.open(tmp_path / "run") as project:
        project.lock()
        run(project)
        assert project.chunks == finished.chunks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_numbers_stay_what_they_were_when_their_file_is_cut_later(tmp_path: Path, finished: Any) -> None:  # noqa: F811
    shutil.copytree(finished.folder, tmp_path / "run")
    path = tmp_path / "run" / "states" / "00001.safetensors"
    before = {name: tensor.clone() for name, tensor in tensors.load_tensors(path)[0].items()}

    def work() -> None:
        found, _ = tensors.load_tensors(path)
        os.truncate(path, 0)
        assert found.keys() == before.keys() and all(bool((found[n] == before[n]).all()) for n in before)

    assert ending(work) == "read"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("own", [False, True], ids=["mapped", "in memory"])
@pytest.mark.parametrize("left", CUTS)
def test_a_shard_that_is_cut_behind_its_header(left: int, own: bool, tmp_path: Path) -> None:
    import torch

    path = tmp_path / "model.safetensors"
    weights.write_tensors(path, {"a": torch.ones(64, 64), "b": torch.ones(32, 64)})

    def work() -> None:
        checkpoint = Checkpoint.open(path)
        os.truncate(path, left)
        with files.storage_errors():
            for name in ("a", "b"):
                assert bool((checkpoint.read(name, own=own) == 1).all())

    assert ending(work) == "refused"


def changed(path: Path) -> None:
    Image.new("RGB", (8, 8), "blue").save(path)


ACCIDENTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed": (changed, "a.png was changed meanwhile; give it again."),
    "cut": (lambda path: os.truncate(path, 20), "a.png was changed meanwhile; give it again."),
    "taken away": (Path.unlink, "{} cannot be read (No such file or directory); use another copy."),
    "a folder now": (lambda path: (path.unlink(), path.mkdir()), "{} cannot be read ("),
    "a pipe now": (lambda path: (path.unlink(), os.mkfifo(path)), "{} cannot be read ("),
}


@pytest.mark.parametrize("block", [False, True], ids=["the start", "a block's"])
@pytest.mark.parametrize("accident", ACCIDENTS)
def test_a_picture_that_is_changed_between_the_check_and_its_copy(
    accident: str, block: bool, tmp_path: Path, ask: Any, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    """What a run keeps is what was looked at, and a run that keeps something else does not come to be."""
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8), "red").save(path)
    spoil, sentence = ACCIDENTS[accident]
    asked = ask(f'[0s-2s image="{path}" sha256={content_hash(path)}: a]') if block else ask(
        image=path, source_sha256=content_hash(path)
    )  # fmt: skip
    opened = files._opened

    def spoiled_first(source: Path) -> Any:
        spoil(source)
        return opened(source)

    monkeypatch.setattr(files, "_opened", spoiled_first)
    with pytest.raises(MediaError) as caught:
        Project.create(tmp_path / "runs", asked)
    assert str(caught.value).startswith(sentence.format(path)) and str(caught.value).endswith(".")
    assert not [one for one in (tmp_path / "runs").iterdir() if not one.name.endswith(".lock")]
