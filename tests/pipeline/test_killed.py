"""`kill -9` at any moment: the file plays to the last finished second, and resuming gives the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from magi_lite.events import Finished
from magi_lite.project import Project
from tests.pipeline.conftest import latents_of, same_bits

ROOT = Path(__file__).parents[2]
PATIENCE = 120
"""Seconds that a loaded machine may take to the next finished second."""


def command(model: Path, tmp_path: Path, *more: str, mark: str = "") -> list[str]:
    timeline = f"[0s-1s: a red ball] [1s-6s{mark}: a blue box]"
    return [
        *(sys.executable, "-m", "magi_lite", "generate", "--preset", "demo", "--model", str(model)),
        *("--timeline", timeline, "--size", "32x32", "--seed", "7", "--scheme", "float32", "--t5", "float32"),
        *("--projects", str(tmp_path / "projects"), *more),
    ]


def frames_in(video: Path) -> int:
    try:
        with av.open(str(video)) as container:
            return sum(1 for _ in container.decode(video=0))
    except (av.FFmpegError, OSError):
        return 0


@pytest.mark.parametrize(("finished", "mark"), [(0, ""), (2, ""), (1, " cut")])
def test_a_killed_run_plays_and_resumes_to_the_same_bits(
    finished: int, mark: str, tiny_model: Path, run: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "killed.mp4"
    home = {**os.environ, "HOME": str(tmp_path)}
    begun = command(tiny_model, tmp_path, "--out", str(out), mark=mark)
    process = subprocess.Popen(begun, cwd=ROOT, env=home, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + PATIENCE
    wanted = "Making the first second" if finished == 0 else f"{finished - 1}s-{finished}s is finished"
    while time.monotonic() < until:
        line = process.stderr.readline()
        if wanted in line or not line:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert wanted in line
    assert frames_in(out) % 24 == 0
    assert frames_in(out) >= 24 * finished

    (folder,) = (tmp_path / "projects").iterdir()
    with Project.open(folder) as project:
        assert project.status == "interrupted"
        assert project.chunks >= finished
    events = run(None, resume=folder)
    assert isinstance(events[-1], Finished)
    assert frames_in(out) == 24 * 6

    again = command(tiny_model, tmp_path / "whole", mark=mark)
    whole = subprocess.run(again, cwd=ROOT, env=home, check=True, capture_output=True)
    other = Path(whole.stdout.decode().strip()).parent
    assert same_bits(latents_of(folder), latents_of(ROOT / other))


def test_interrupt_keeps_what_is_finished(tiny_model: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tiny_model, tmp_path, "--out", str(tmp_path / "stopped.mp4")),
        cwd=ROOT,
        env={**os.environ, "HOME": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if "0s-1s is finished" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    process.wait(timeout=PATIENCE)
    process.stderr.close()
    assert process.returncode == 130
    assert "stopped after" in rest
    assert frames_in(tmp_path / "stopped.mp4") >= 24
