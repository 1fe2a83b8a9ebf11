"""Settings from files that anybody may have written: one sentence each, nothing they name is touched."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import magi_lite
from magi_lite.cli import main
from magi_lite.errors import InputError, MagiLiteError
from magi_lite.library import read_settings
from magi_lite.request.build import build
from magi_lite.request.checks import check, content_hash
from magi_lite.request.json import request_from_json, request_to_json
from magi_lite.request.settings import LIMIT_BYTES, settings_from_data
from magi_lite.ui import uploads
from magi_lite.video.writer import VideoWriter

GOOD = request_to_json(build(prompt="a red ball 红球", preset="demo", seed=3, seconds=1))
TIMELINE = GOOD["timeline"]


def with_setting(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Good settings but for one value."""
    data = json.loads(json.dumps(GOOD))
    place = data
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return data


HOSTILE: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "a model in markdown": (("model",), "![p](http://127.0.0.1:1/p.png)", "not the name of one"),
    "a model on another computer": (("model",), r"\\evil\share\model", "on another computer"),
    "a picture on another computer": (("image",), r"\\evil\share\a.png", "on another computer"),
    "a clip behind slashes": (("video",), "//evil/share/a.mp4", "on another computer"),
    "mixed slashes": (("image",), "\\/evil/share/a.png", "on another computer"),
    "a block's picture on another computer": (
        ("timeline", "segments"),
        [{"start": 0, "end": 1, "prompt": "a ball", "image": "//evil/share/a.png"}],
        "on another computer",
    ),
    "a block's picture with a wrong checksum": (
        ("timeline", "segments"),
        [{"start": 0, "end": 1, "prompt": "a ball", "image": "a.png", "image_sha256": "../../a"}],
        "a checksum that belongs to no picture",
    ),
    "half a character in a picture's name": (("image",), "a\ud83d.png", "is no text"),
    "half a character in a clip's name": (("video",), "\udcff.mp4", "is no text"),
    "half a character in a checksum": (("source_sha256",), "\ud800", "is no text"),
    "half a character in the name of a block's picture": (
        ("timeline", "segments"), [{"start": 0, "end": 1, "prompt": "a ball", "image": "\ud800.png"}],
        "no file can be called",
    ),
    "a lone surrogate": (("timeline", "global_prompt"), "a \ud83d ball", "lone surrogate"),
    "a surrogate in a block": (
        ("timeline", "segments"), [{"start": 0, "end": 1, "prompt": "\udc00"}], "lone surrogate",
    ),
    "a surrogate for a name": (("preset",), "\ud800", "not the name of a preset"),
    "a long prompt": (("timeline", "global_prompt"), "word " * 30_000, "10000 is the most"),
    "a large seed": (("seed",), 10**30, "out of range"),
    "a large length": (("seconds",), 10**30, "A video cannot have"),
    "a length of e30": (("seconds",), 1e30, "whole number"),
    "a large size": (("width",), 10**30, "A width of"),
    "a large blend": (("timeline", "blend"), 10**30, "too long"),
    "a late block": (("timeline", "segments"), [{"start": 0, "end": 10**30, "prompt": "a"}], "ends later"),
    "memory that is none": (("overrides", "vram_gb"), float("nan"), "cannot be planned"),
    "no end of memory": (("overrides", "vram_gb"), float("inf"), "cannot be planned"),
    "slices": (("overrides", "mlp_slice"), 10**30, "mlp_slice cannot be"),
    "a preset that is not here": (("preset",), "99tb", "No preset is called"),
    "a preset elsewhere": (("preset",), "../../etc/passwd", "No preset is called"),
    "a zero byte": (("image",), "a\0b", "no name has"),
    "a long path": (("image",), "a" * 5000, "4096 is the most"),
    "styles of their own": (("tokens", "styles"), ["<img src=x>"], "no style"),
    "a scheme": (("overrides", "scheme"), "int1", "scheme cannot be 'int1'"),
    "steps and window": (("window",), 3, "does not divide"),
    "nothing": (("timeline", "segments"), None, "must be a list"),
    "the version": (("version",), [1], "version"),
    "a hash that is none": (("source_sha256",), 5, "must be text"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_settings_get_one_sentence(name: str) -> None:
    path, value, words = HOSTILE[name]
    with pytest.raises(InputError, match=words) as caught:
        check(settings_from_data(with_setting(path, value)))
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and len(text) < 400
    text.encode()  # a page can show it


def test_what_settings_name_is_not_touched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a path of this computer nor of another is looked at before it is known to be the right one."""
    touched: list[str] = []
    for name in ("stat", "open", "scandir", "lstat"):
        real = getattr(os, name)

        def noted(path: Any, *rest: Any, _real: Any = real, **named: Any) -> Any:
            touched.append(str(path))
            return _real(path, *rest, **named)

        monkeypatch.setattr(os, name, noted)
    for key in ("image", "video", "model", "models_folder", "out"):
        for place in (r"\\evil\share\a.png", "//evil/share/a.png", str(tmp_path / "private.png")):
            with contextlib.suppress(InputError):
                settings_from_data(with_setting((key,), place))
            block = {"start": 0, "end": 1, "prompt": "a ball", "image": place}
            with contextlib.suppress(InputError):
                settings_from_data(with_setting(("timeline", "segments"), [block]))
    assert not [path for path in touched if "evil" in path or "private" in path]


def test_places_on_the_computer_where_they_were_written_are_dropped() -> None:
    request = settings_from_data(with_setting(("models_folder",), "/elsewhere/models") | {"out": "/elsewhere/a.mp4"})
    assert request.models_folder is None and request.out is None


def clip(path: Path, settings: dict[str, Any]) -> Path:
    """A video of ours that carries settings."""
    with VideoWriter(path, (32, 32), settings=settings) as writer:
        writer.append(np.full((24, 32, 32, 3), 90, np.uint8))
    return path


@pytest.mark.parametrize("name", ["a lone surrogate", "a model in markdown", "a large seed", "a preset elsewhere"])
def test_a_clip_with_hostile_settings_is_still_a_clip(name: str, tmp_path: Path) -> None:
    path, value, words = HOSTILE[name]
    found = uploads.look_at(clip(tmp_path / "a.mp4", with_setting(path, value)), "a.mp4")
    assert found["kind"] == "video" and "settings" not in found and words in found["settings_error"]
    json.dumps(found).encode()
    good = uploads.look_at(clip(tmp_path / "b.mp4", GOOD), "b.mp4")
    assert settings_from_data(good["settings"]) == request_from_json(GOOD)


def test_large_settings_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = with_setting(("timeline", "global_prompt"), "x " * LIMIT_BYTES)
    (tmp_path / "a.json").write_text(json.dumps(long), encoding="utf-8")
    for path in (tmp_path / "a.json", clip(tmp_path / "a.mp4", long)):
        with pytest.raises(MagiLiteError, match="1000000"):
            read_settings(path)
    assert "1000000" in uploads.look_at(tmp_path / "a.mp4", "a.mp4")["settings_error"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "be with a mark"])
def test_settings_and_timelines_of_any_shell_are_read(encoding: str, tmp_path: Path) -> None:
    def encoded(text: str) -> bytes:
        return codecs.BOM_UTF16_BE + text.encode("utf-16-be") if "mark" in encoding else text.encode(encoding)

    text = json.dumps(GOOD, indent=2, ensure_ascii=False).replace("\n", "\r\n")
    (tmp_path / "a.json").write_bytes(encoded(text))
    (tmp_path / "a.txt").write_bytes(encoded(text))
    for name in ("a.json", "a.txt"):
        assert read_settings(tmp_path / name) == request_from_json(GOOD)
    from magi_lite.cli.reading import timeline_of

    (tmp_path / "timeline.txt").write_bytes(encoded("[0s-1s: a ball]\r\n[1s-2s: it falls]\r\n"))
    assert timeline_of(str(tmp_path / "timeline.txt")).end == 2


NO_SETTINGS = [b"\xff\xfe\x00", b"{\xe9}", b"[" * 100_000, b'{"a":' * 100_000, b"{", b"null", b"3"]


@pytest.mark.parametrize("content", NO_SETTINGS, ids=lambda content: repr(content[:8]))
def test_what_is_no_settings_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_settings(tmp_path / "a.json")
    assert str(caught.value).endswith(".")


# --- the same settings, the same video -----------------------------------------------------------------------------


@pytest.fixture
def started_from_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A video that starts from ball.png, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32), (200, 60, 40)).save("ball.png")
    made = magi_lite.generate(
        "a ball", image="ball.png", preset="demo", size="32x32", window=1, seconds=1, seed=4, out="made.mp4"
    )
    assert made.request.source_sha256 == content_hash(Path("ball.png"))
    return made.path


def test_settings_know_the_picture_by_what_is_in_it(
    started_from_a_picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["generate", "--settings", str(started_from_a_picture), "--out", "again.mp4"]
    assert main(command) == 0
    assert Path("again.mp4").read_bytes() == started_from_a_picture.read_bytes()
    capsys.readouterr()
    shutil.copy("ball.png", "kept.png")
    Image.new("RGB", (32, 32), (20, 160, 40)).save("ball.png")
    assert main([*command, "--overwrite"]) == 2
    said = capsys.readouterr().err
    assert "ball.png is not the file" in said and "--image" in said and "Traceback" not in said
    assert magi_lite.library.ask(settings=started_from_a_picture, image="kept.png").source_sha256 is None
    check(magi_lite.library.ask(settings=started_from_a_picture, image="ball.png"))  # another one, asked for


def test_settings_of_earlier_versions_ask_for_the_picture(
    started_from_a_picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They say a name only, and any file may have it."""
    settings = request_to_json(read_settings(started_from_a_picture))
    del settings["source_sha256"]
    Path("old.json").write_text(json.dumps(settings))
    assert main(["generate", "--settings", "old.json"]) == 2
    said = capsys.readouterr().err
    assert "ball.png without saying what is in it" in said and "--image" in said
    assert magi_lite.library.ask(settings="old.json", image="ball.png").image == Path("ball.png")
