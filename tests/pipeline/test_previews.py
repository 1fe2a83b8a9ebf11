"""How often a run shows a still of an unfinished second: as often as it costs next to nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from magi_lite import clock
from magi_lite.events import ChunkFinished, Finished, MovingPreview, Preview, Progress
from magi_lite.pipeline import run as runs
from magi_lite.pipeline.engine import Engine

Runner = Callable[..., list[Any]]


class Time:
    """A clock that nothing but steps and previews move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: float, preview: float) -> None:
        self.now, self.stills = 0.0, 0
        own, took = clock.Clock.step, preview

        def stepped(self_: clock.Clock, done: int) -> None:
            self.now += step
            own(self_, done)

        def decoded(self_: Engine, latents: object) -> np.ndarray:
            self.now += took
            self.stills += 1
            return np.zeros((8, 8, 3), np.uint8)

        monkeypatch.setattr(runs, "Clock", lambda before=0: clock.Clock(before, now=lambda: self.now))
        monkeypatch.setattr(clock.Clock, "step", stepped)
        monkeypatch.setattr(Engine, "preview", decoded)


def before_the_first_second(events: list[Any]) -> Iterator[Any]:
    """Events until a second is finished; afterwards colours show the others."""
    for event in events:
        if isinstance(event, ChunkFinished):
            return
        yield event


@pytest.mark.parametrize(
    ("step", "preview", "stills"),
    [
        pytest.param(2.0, 0.1, 7, id="cheap: after every step"),
        pytest.param(2.0, 0.2, 4, id="4 s apart"),
        pytest.param(10.0, 8.0, 1, id="dear: 160 s apart"),
        pytest.param(0.5, 0.0, 2, id="never more often than every 1.5 s"),
    ],
)
def test_stills_take_a_small_share_of_the_time(
    step: float, preview: float, stills: int, run: Runner, request_for: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = Time(monkeypatch, step, preview)
    events = run(request_for("[0s-1s: a red ball]", seconds=1, window=1))
    shown = [event for event in before_the_first_second(events) if isinstance(event, Preview)]
    steps = [event for event in events if isinstance(event, Progress)]
    assert isinstance(events[-1], Finished) and len(steps) == 8
    assert len(shown) == time.stills == stills


def test_once_a_second_is_finished_colours_move_again_however_dear_stills_are(
    run: Runner, request_for: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    time = Time(monkeypatch, step=10.0, preview=100.0)
    events = run(request_for(window=1))
    assert time.stills == 1
    assert any(isinstance(event, MovingPreview) for event in events)
