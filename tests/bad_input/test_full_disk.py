"""Every small file on a disk that takes no more: one sentence that names it, what was there before, and no leftover."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from magi_lite import files, kept
from magi_lite.errors import OutputError
from magi_lite.project import Project
from magi_lite.text.cache import EmbeddingCache
from magi_lite.ui import uploads
from magi_lite.ui.library import Library
from magi_lite.video.export import open_export
from magi_lite.video.formats import FORMATS
from magi_lite.video.writer import finalize
from tests.disk import small_files
from tests.project.conftest import ask, finished  # noqa: F401


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file but locks, and what an export has to replace."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock" and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def exported(name: str) -> Callable[[Path, Any], None]:
    noise = np.random.default_rng(0).uniform(-1, 1, (24, 64, 64, 3)).astype(np.float32)

    def work(folder: Path, run: Any) -> None:
        target = folder / f"made{FORMATS[name].suffix}"
        if FORMATS[name].kind != "pictures":
            target.write_bytes(b"dear to someone")
        before = snapshot(folder)
        try:
            with open_export(name, target, (64, 64), {"seed": 1}, overwrite=True) as writer:
                for frame in noise:
                    writer.write(frame)
        finally:
            assert snapshot(folder) == before

    return work


def picture(folder: Path) -> Path:
    path = folder / "a.png"
    if not path.exists():
        Image.effect_noise((64, 64), 90).save(path)
    return path


FILES: dict[str, Callable[[Path, Any], object]] = {
    "a record": lambda folder, run: run.edit_timeline(run.request.timeline, 4),
    "a run": lambda folder, run: Project.create(folder / "outputs", run.request),
    "a version": lambda folder, run: run.branch(2),
    "a name and a star": lambda folder, run: Library(run.folder.parent).label(run.name, name="x" * 150),
    "an upload": lambda folder, run: uploads.keep(picture(folder), "a.png", folder / "uploads"),
    "a picture of a block": lambda folder, run: files.copy_source(picture(folder), folder / "b.png", None),
    "a video with its index in front": lambda folder, run: finalize(run.video, folder / "a.mp4"),
    **{f"an export as {name}": exported(name) for name in FORMATS},
}


@pytest.mark.parametrize("case", FILES)
def test_a_full_disk_is_one_sentence(
    case: str, tmp_path: Path, finished: Any, capfd: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    """And nothing else: no traceback out of a library either."""
    picture(tmp_path)
    with finished:
        finished.lock()
        before = snapshot(tmp_path)
        with small_files(100), pytest.raises(OutputError) as caught:
            FILES[case](tmp_path, finished)
    said = str(caught.value)
    assert said.startswith("The disk is full or limited at ") and said.endswith(".") and ".tmp" not in said
    left = snapshot(tmp_path)
    assert {name for name in before if left.get(name) != before[name]} == set(), "nothing that was there is lost"
    assert {name for name in left.keys() - before.keys() if not name.startswith("made.")} == set()
    assert [line for line in capfd.readouterr().err.splitlines() if not line.startswith("Svt[")] == []
    with Project.open(finished.folder) as again:
        assert (again.chunks, again.status) == (4, "finished")


def test_what_only_saves_time_is_left_out_without_a_word(tmp_path: Path) -> None:
    kept.write_entries(tmp_path / "kept.json", {"a": 1}, 10)
    cache = EmbeddingCache(tmp_path)
    with small_files(100):
        kept.write_entries(tmp_path / "kept.json", {"a": "b" * 1000}, 10)
        cache.put("model", "prompt", torch.ones(100, 8))
    assert json.loads((tmp_path / "kept.json").read_text()) == {"a": 1}
    assert cache.get("model", "prompt") is None and [path.name for path in tmp_path.iterdir()] == ["kept.json"]
