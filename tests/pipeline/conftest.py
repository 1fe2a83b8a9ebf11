"""A tiny untrained model on disk and the means to run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from magi_lite.control import RunControl
from magi_lite.events import Event, Finished, Progress, Stopped
from magi_lite.pipeline import generate
from magi_lite.project import Project
from magi_lite.request.request import GenerationRequest, Overrides
from magi_lite.timeline.text import parse


@pytest.fixture
def request_for(tiny_model: Path) -> Callable[..., GenerationRequest]:
    """Requests for the tiny model at 32 x 32; keyword arguments change them."""

    def make(timeline: str = "[0s-1s: a red ball] [1s-3s: a blue box]", **changes: object) -> GenerationRequest:
        request = GenerationRequest(
            timeline=parse(timeline),
            seconds=3,
            width=32,
            height=32,
            steps=8,
            window=4,
            seed=7,
            model=str(tiny_model),
            preset="demo",
            overrides=Overrides(scheme="float32", t5="float32"),
        )
        return replace(request, **changes)

    return make


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Event]]:
    """Run to the end; projects lie in tmp_path / "projects", embeddings in tmp_path too."""
    monkeypatch.setattr("magi_lite.pipeline.prompts.EMBEDDINGS_FOLDER", tmp_path / "embeddings")

    def collect(request: GenerationRequest | None, **options: object) -> list[Event]:
        return list(generate(request, projects_folder=tmp_path / "projects", **options))

    return collect


def paused_everywhere(request: GenerationRequest, projects: Path) -> Path:
    """The folder of a run that was paused at every stage boundary, and resumed each time until it was finished."""
    folder: Path | None = None
    for _ in range(20):
        control = RunControl()
        for last in generate(None if folder else request, resume=folder, control=control, projects_folder=projects):
            if isinstance(last, Progress):
                control.pause()
        assert isinstance(last, Finished) or (isinstance(last, Stopped) and last.reason == "paused"), last
        folder = last.project
        assert folder is not None
        if isinstance(last, Finished):
            return folder
    raise AssertionError("it was paused more often than it has stages")


def latents_of(folder: Path) -> list[np.ndarray]:
    """The finished seconds of a project, to be compared bit for bit."""
    with Project.open(folder) as project:
        return [project.read_latents(second).numpy() for second in range(project.chunks)]


def same_bits(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return len(first) == len(second) and all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
