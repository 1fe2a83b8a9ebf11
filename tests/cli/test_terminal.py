"""Consoles of other code pages, closed streams, full disks: the answer comes, or one sentence why not."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from magi_lite.cli import main
from magi_lite.cli.terminal import Stream, printable
from magi_lite.errors import OutputError
from magi_lite.resources import presets_folder
from tests.request.test_settings import GOOD, clip

ROOT = Path(__file__).parents[2]


def shell(line: str, **environment: str) -> tuple[int, bytes]:
    """Exit code and what was printed to the streams that are left open."""
    done = subprocess.run(
        line.replace("magi ", f"{sys.executable} -m magi_lite "), shell=True, cwd=ROOT, env=os.environ | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp932", "utf-8"])
def test_own_characters_have_look_alikes(encoding: str) -> None:
    text = printable("720×720 … ▕████▌ ▏ “a” 猫 \ud800 é", encoding)
    text.encode(encoding)
    if encoding == "ascii":
        assert text == '720x720 ... |##### | "a" \\u732b \\ud800 \\xe9'
    assert printable("720×720 猫", "utf-8") == "720×720 猫"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_plan_is_printed_whole(encoding: str) -> None:
    code, out = shell("magi plan --gpu 'RTX 4090'", PYTHONIOENCODING=encoding)
    assert code == 0 and b"activations" in out and b"|####" in out and b"Traceback" not in out


def test_settings_stay_true_where_characters_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON has escapes; look-alikes would change the prompt."""
    path = clip(tmp_path / "a.mp4", GOOD)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    assert main(["info", str(path)]) == 0
    assert json.loads(raw.getvalue().decode("ascii")) == GOOD
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
    assert main(["info", str(path)]) == 0
    assert "红球" in raw.getvalue().decode("utf-8")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("magi plan --list-gpus >/dev/full", 4, b"cannot be written (No space left on device)"),
        ("magi plan --list-gpus 2>/dev/full", 0, b"RTX 4090"),
        ("magi plan --gpu nothing 2>/dev/full", 2, b""),
        ("magi plan --list-gpus >&-", 0, b""),
        ("magi plan --gpu nothing 2>&-", 2, b""),
    ],
)
def test_streams_that_take_nothing(line: str, code: int, words: bytes) -> None:
    found, out = shell(line)
    assert found == code and words in out and b"Traceback" not in out and b"Exception ignored" not in out


def test_a_video_is_finished_though_nothing_can_be_printed(tmp_path: Path) -> None:
    """Descriptors 1 and 2 are closed: no file that the run opens may get their numbers."""
    video = tmp_path / "a.mp4"
    line = f"magi generate --prompt 'a ball' --preset demo --size 32x32 --window 1 --seconds 1 --out {video}"
    code, _ = shell(f"{line} --projects {tmp_path} >&- 2>&-")
    assert code == 0
    assert main(["info", str(video)]) == 0


def test_an_error_of_the_parser_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["generate", "--redo-from", "x"])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1


def test_a_stream_that_fails_is_dropped_or_named() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    assert Stream(Full(), forgiving=True).write("abc") == 3
    with pytest.raises(OutputError, match="No space left"):
        Stream(Full(), forgiving=False).write("abc")


def test_files_of_other_editors_are_read(tmp_path: Path) -> None:
    """A mark in front of JSON and TOML that we read."""
    from magi_lite.config_files import read_json
    from magi_lite.request import presets
    from magi_lite.ui import examples

    preset = (presets_folder() / "12gb.toml").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(preset, encoding="utf-8-sig")
    assert presets.load("mine", tmp_path).vram_gb == 12
    (tmp_path / "config.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert read_json(tmp_path / "config.json", "a configuration") == {"a": 1}
    example = next((presets_folder() / "timelines").glob("*.json"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / example.name).write_text(example.read_text(encoding="utf-8"), encoding="utf-16")
    assert list(examples.load(tmp_path / "b")) == [json.loads(example.read_text(encoding="utf-8"))["title"]]
