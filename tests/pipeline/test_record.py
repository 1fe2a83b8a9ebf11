"""Activations recorded by a run calibrate a static FP8 checkpoint, which then runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import quant.__main__ as convert
from magi_lite.errors import InputError, OutputError
from magi_lite.events import Finished, PlanReady
from magi_lite.pipeline import generate
from magi_lite.project import Project
from magi_lite.request.request import Overrides
from tests.disk import small_files

WEIGHTS = Path("ckpt/magi/demo/inference_weight.distill")


def test_a_recorded_run_calibrates_static_fp8(
    request_for: Callable, run: Callable, tiny_model: Path, tmp_path: Path
) -> None:
    recording = tmp_path / "seen.safetensors"
    request = request_for("[0s-1s: a red ball]", seconds=1)
    run(request, record=recording)
    model = tmp_path / "static"
    shutil.copytree(tiny_model, model)
    shutil.rmtree(model / WEIGHTS)
    arguments = [str(tiny_model / WEIGHTS), str(model / WEIGHTS), "--scheme", "published"]
    assert convert.main([*arguments, "--calibration", str(recording)]) == 0
    events = run(request_for("[0s-1s: a red ball]", seconds=1, model=str(model), overrides=Overrides()))
    assert isinstance(events[-1], Finished)
    assert [event.plan.execution.scheme for event in events if isinstance(event, PlanReady)] == ["published"]
    with pytest.raises(InputError, match="unquantized"):
        run(request_for("[0s-1s: a red ball]", seconds=1, model=str(model), overrides=Overrides()), record=recording)


def test_a_recording_that_cannot_be_kept_is_refused_before_the_run(
    request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match=r"The folder .*such does not exist"):
        run(request_for("[0s-1s: a red ball]", seconds=1), record=tmp_path / "no" / "such" / "file")
    assert not (tmp_path / "projects").exists()


def test_a_video_is_finished_even_where_its_recording_is_lost(
    request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    record = tmp_path / "seen.safetensors"
    events = generate(
        request_for("[0s-1s: a red ball]", seconds=1), projects_folder=tmp_path / "projects", record=record
    )
    finished = next(event for event in events if isinstance(event, Finished))
    with small_files(100), pytest.raises(OutputError, match=r"seen\.safetensors"):
        next(events)
    with Project.open(finished.project) as project:
        assert project.status == "finished"
    assert not list(tmp_path.glob("seen*"))
