"""A user's folder that cannot be written, or is not there: everything works, and nothing is said of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
HOMES = {"read only": "/sys/kernel", "not there": "/proc/nowhere/at", "a file": "/dev/null", "no folder": ""}
"""Of these the system itself lets nobody make a file in, the superuser included."""


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs Linux")
@pytest.mark.parametrize("home", HOMES)
def test_a_home_that_takes_nothing(home: str, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "magi_lite", "generate", "--prompt", "a red ball", "--seconds", "1", "--preset", "demo",
        "--size", "32x32", "--window", "1", "--out", str(tmp_path / "a.mp4"), "--projects", str(tmp_path / "runs"),
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    environment |= {"HOME": HOMES[home], "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "a.mp4")), done.stderr
    assert (tmp_path / "a.mp4").stat().st_size > 1000
    assert not any(word in done.stderr for word in ("ermission", "Traceback", "arning", "rror")), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "runs"]


@pytest.mark.skipif(os.name == "nt", reason="Windows deletes no folder that somebody is in")
@pytest.mark.parametrize("program", ["magi_lite plan", "magi_lite generate --prompt x", "quant a b --scheme int8"])
def test_a_working_folder_that_was_deleted(program: str, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = f"import os, runpy, sys; os.rmdir(os.getcwd()); sys.argv = {program.split()!r}; "
    command += "runpy.run_module(sys.argv[0], run_name='__main__')"
    where = {"cwd": tmp_path / "gone", "env": os.environ | {"PYTHONPATH": str(REPOSITORY)}}
    done = subprocess.run([sys.executable, "-c", command], **where, capture_output=True, text=True, timeout=60)
    assert done.returncode and not done.stdout
    sentence = "The folder that this was started in is no longer there; change to another one."
    assert done.stderr.strip().removeprefix("error: ") == sentence
