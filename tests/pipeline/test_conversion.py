"""Weights of a run: a published text encoder is converted once, planned and shown; what does not fit is refused."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magi_lite.control import RunControl
from magi_lite.errors import CheckpointError
from magi_lite.events import Finished, PhaseStarted, PlanReady, Stopped
from magi_lite.library import plan_request
from magi_lite.pipeline import generate
from magi_lite.request.request import Overrides
from magi_lite.ui.machine import Machine


@pytest.fixture
def pickled(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with its text encoder in a pickle."""
    root = shutil.copytree(tiny_model, tmp_path / "pickled")
    (weights,) = root.glob("ckpt/t5/*/model.safetensors")
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    return root


def test_the_conversion_is_planned_and_shown_and_comes_once(
    pickled: Path, request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    request = request_for(
        model=str(pickled), seconds=1, timeline="[0s-1s: a red ball]", overrides=Overrides(scheme="float32", t5="bf16")
    )
    events = run(request)
    assert isinstance(events[-1], Finished)
    (plan,) = [event.plan for event in events if isinstance(event, PlanReady)]
    assert any("converted to 16 bits before its first prompt, once" in note for note in plan.notes)
    said = [event.detail for event in events if isinstance(event, PhaseStarted) and event.phase == "text"]
    assert said[0] == "Converting the text encoder to 16 bits, once" and said[-1] == "Encoding 1 prompt"
    assert said[-2].endswith(": 100 %") and len(said) <= 13
    (copy,) = pickled.rglob("converted-bfloat16")
    assert any(copy.glob("*.safetensors"))
    again = run(request_for(model=str(pickled), seconds=1, timeline="[0s-1s: b]", overrides=request.overrides))
    assert not [event for event in again if isinstance(event, PhaseStarted) and "Converting" in event.detail]
    (plan,) = [event.plan for event in again if isinstance(event, PlanReady)]
    assert not any("converted" in note for note in plan.notes)


def test_every_plan_tells_of_the_conversion_that_is_to_come(
    pickled: Path, request_for: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's and the command's as the run's own; not where the folder cannot be written, and read as it is."""
    request = request_for("[0s-1s: a]", model=str(pickled), seconds=1, overrides=Overrides(scheme="float32", t5="bf16"))

    def notes() -> list[str]:
        on_page = Machine(tmp_path).plan(request)["notes"]
        assert list(plan_request(request).notes) == list(on_page)
        return [note for note in on_page if "converted to 16 bits" in note]

    (note,) = notes()
    as_float32 = replace(request, overrides=Overrides(scheme="float32", t5="float32"))
    assert not any("converted" in note for note in plan_request(as_float32).notes)
    with monkeypatch.context() as read_only:
        read_only.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        assert not notes()
    (plan,) = [event.plan for event in run(request) if isinstance(event, PlanReady)]
    assert note in plan.notes and not notes()


def test_a_stop_ends_the_conversion(pickled: Path, request_for: Callable, run: Callable, tmp_path: Path) -> None:
    control = RunControl()
    request = request_for(
        model=str(pickled), seconds=1, timeline="[0s-1s: a red ball]", overrides=Overrides(scheme="float32", t5="bf16")
    )
    for event in generate(request, control=control, projects_folder=tmp_path / "projects"):
        if isinstance(event, PhaseStarted) and event.detail.startswith("Converting"):
            control.stop()
    assert isinstance(event, Stopped)
    assert isinstance(run(None, resume=event.project)[-1], Finished)


def test_weights_of_another_shape_are_refused_before_there_is_a_run(
    tiny_model: Path, request_for: Callable, run: Callable, tmp_path: Path
) -> None:
    root = shutil.copytree(tiny_model, tmp_path / "model")
    (weights,) = root.glob("ckpt/magi/*/*/model.safetensors")
    tensors = load_file(weights)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    tensors[name] = torch.zeros(3, 5)
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        run(request_for(model=str(root)))
    assert not (tmp_path / "projects").exists() or not list((tmp_path / "projects").iterdir())
