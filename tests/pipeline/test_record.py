"""Activations recorded by a run calibrate a static FP8 checkpoint, which then runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import quant.__main__ as convert
from magi_lite.config import Overrides
from magi_lite.errors import InputError
from magi_lite.events import Finished, PlanReady

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
