"""Whole runs of the commands on the shipped demo model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from magi_lite.cli import main
from magi_lite.library import read_settings
from magi_lite.project import Project
from tests.cli.test_cli import parsed, sentence

REPOSITORY = Path(__file__).parents[2]

SMALL = ("--preset", "demo", "--size", "32x32", "--window", "1", "--prompt", "a red ball moves right")


def start(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "magi_lite", "generate", *SMALL, *arguments, "--projects", str(folder)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_heed_hangups
    )


def _heed_hangups() -> None:
    """As a terminal starts programs; whoever runs the tests may ignore hang-ups, as nohup does."""
    for name in ("SIGHUP", "SIGTERM"):
        signal.signal(signal.Signals[name], signal.SIG_DFL)


def interrupted_after_a_second(
    run: subprocess.Popen[str], by: signal.Signals = signal.SIGINT
) -> tuple[int, str, str]:
    """A signal once a second is finished: exit code, stdout and stderr."""
    assert run.stderr
    seen = ""
    for line in run.stderr:
        seen += line
        if "is finished" in line:
            break
    run.send_signal(by)
    out, err = run.communicate(timeout=120)
    return run.returncode, out, seen + err


def test_an_endless_video_ends_well_with_ctrl_c(tmp_path: Path) -> None:
    code, out, err = interrupted_after_a_second(start("--endless", folder=tmp_path))
    assert code == 0, err
    assert "stopped after" in err and "0s-1s is finished: 24 frames" in err
    assert Path(out.strip()).is_file()


def test_a_video_cut_short_by_ctrl_c_says_so_to_the_shell_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = interrupted_after_a_second(start("--seconds", "40", "--seed", "3", folder=tmp_path))
    assert code == 130, err
    folder = Path(out.strip()).parent
    with Project.open(folder) as project:
        finished = project.chunks
    assert 1 <= finished < 40
    again = ["--resume", str(folder), "--redo-from", str(finished), "--seconds", str(finished + 1)]
    assert main(["generate", *again]) == 0
    assert f"{finished}s-{finished + 1}s is finished" in capsys.readouterr().err


@pytest.mark.parametrize("by", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_stop_before_the_run_has_begun_waits_for_nothing(
    by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries may be on their way into memory, which takes seconds; there is no run yet to keep anything of."""
    before = signal.signal(signal.Signals[by], signal.default_int_handler)

    def slow(*_: object) -> None:
        os.kill(os.getpid(), signal.Signals[by])
        time.sleep(60)

    monkeypatch.setattr("magi_lite.pipeline.prepare.check_model", slow)
    began = time.monotonic()
    try:
        assert main(["generate", *SMALL, "--seconds", "1", "--projects", str(tmp_path / "runs")]) == 130
    finally:
        signal.signal(signal.Signals[by], before)
    assert time.monotonic() - began < 30 and "Interrupted; " in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*/project.json"))


@pytest.mark.parametrize("by", ["SIGTERM", "SIGHUP"])
def test_a_closed_terminal_ends_a_run_as_ctrl_c_does(tmp_path: Path, by: str) -> None:
    code, out, err = interrupted_after_a_second(start("--seconds", "40", folder=tmp_path), signal.Signals[by])
    assert code == 130 and "stopped after" in err
    assert Project.open(Path(out.strip()).parent).status == "stopped"


def test_a_file_that_is_there_is_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "dear.mp4"
    out.write_bytes(b"dear to someone")
    command = ["generate", *SMALL, "--seconds", "1", "--out", str(out), "--projects", str(tmp_path / "runs")]
    assert main(command) == 4
    assert "add --overwrite" in sentence(capsys) and out.read_bytes() == b"dear to someone"
    assert main([*command, "--overwrite"]) == 0
    assert read_settings(out).width == 32


def test_the_settings_in_a_video_make_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "a.mp4", tmp_path / "b.mp4"
    command = ["generate", "--projects", str(tmp_path / "runs"), "--out"]
    assert main([*command, str(first), *SMALL, "--seconds", "1"]) == 0
    capsys.readouterr()
    assert main(["info", str(first)]) == 0
    (tmp_path / "a.json").write_text(capsys.readouterr().out)
    assert main([*command, str(second), "--settings", str(tmp_path / "a.json")]) == 0
    assert second.read_bytes() == first.read_bytes()
    changed = parsed("--settings", str(first), "--seconds", "3", "--prompt", "it falls", "--scheme", "int8")
    assert (changed.seconds, changed.overrides.scheme, changed.width) == (3, "int8", 32)
    assert [mix.text for mix in changed.timeline.compile(3)] == ["it falls"] * 3


def test_plan_knows_the_demo_and_folders(capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("demo", str(REPOSITORY / "presets" / "demo")):
        assert main(["plan", "--model", model, "--size", "64x64", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["peak_ram_bytes"] > 0
    assert main(["plan", "--model", "demo"]) == 0
    assert "96x96" in capsys.readouterr().out
