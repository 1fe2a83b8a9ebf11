"""The text for bug reports: complete, and without what is the user's own. No browser is needed here."""

from __future__ import annotations

import getpass
import io
import sys
from pathlib import Path

import pytest

from magi_lite.ui.report import Console, report, without_paths


@pytest.mark.parametrize(
    "line",
    [
        "There is no file /mnt/data/secret/run/video.mp4; give the path.",
        'File "/opt/secret/magi_lite/ui/page.py", line 3',
        "C:\\Users\\secret\\x.mp4 cannot be read",
        "file:///srv/secret/a b",
        "~/secret/films is full",
        "(/data/secret/x)",
        "at '/data/secret/x', and /data/secret/y.",
    ],
)
def test_no_path_is_left(line: str) -> None:
    assert "secret" not in without_paths(line)


def test_source_files_addresses_and_words_stay() -> None:
    text = 'File "/opt/me/magi_lite/ui/page.py", line 3; see https://example.org/a/b/c at 3/4 and/or 24 frames/s'
    found = without_paths(text)
    assert "page.py" in found and "https://example.org/a/b/c" in found and "3/4 and/or 24 frames/s" in found


def test_own_folders_and_names_go_whatever_they_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "janedoe")
    text = report("made /v x/a clip.mp4 for JaneDoe", [("Card", "RTX 4090")], [Path("/v x")])
    assert "/v x" not in text and "janedoe" not in text.lower() and "RTX 4090" in text and "torch: " in text
    assert "/v x/a" in report("made /v x/a", [], [Path("/v x")], with_paths=True)


def test_the_console_is_kept_and_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", out)
    console = Console()
    console.listen()
    print("one")
    print("10 %\r50 %\r100 %", file=sys.stderr)
    sys.stdout.write("half a ")
    sys.stdout.write("line")
    assert console.text() == "one\n100 %\nhalf a line"
    assert out.getvalue() == "one\n10 %\r50 %\r100 %\nhalf a line" and not sys.stdout.isatty()
    for number in range(5000):
        print(number)
    assert console.text().splitlines()[-1] == "4999" and len(console.text().splitlines()) <= 3001
