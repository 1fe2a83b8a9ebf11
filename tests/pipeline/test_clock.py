"""The pace of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from magi_lite.clock import Clock
from magi_lite.events import Event, PlanReady
from magi_lite.planner import learned
from magi_lite.request.request import GenerationRequest


class _Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_no_pace_before_the_first_step() -> None:
    clock = Clock(now=_Time())
    assert clock.seconds_per_step is None
    assert clock.left(10) is None


def test_a_slow_first_step_is_forgotten_once_there_are_others() -> None:
    time = _Time()
    clock = Clock(now=time)
    time.now += 30
    clock.step(1)
    assert clock.seconds_per_step == 30
    for step in (2, 3):
        time.now += 2
        clock.step(step)
    assert clock.seconds_per_step == 2
    assert clock.left(5) == 10


def test_a_resumed_run_is_paced_by_its_own_steps() -> None:
    time = _Time()
    clock = Clock(steps_before=40, now=time)
    time.now += 3
    clock.step(41)
    assert clock.seconds_per_step == 3


def test_laps_add_up_to_the_elapsed_time() -> None:
    time = _Time()
    clock = Clock(now=time)
    time.now += 4
    assert clock.lap() == 4
    time.now += 1.5
    assert clock.lap() == 1.5
    assert clock.elapsed == 5.5


def test_a_run_that_reads_the_text_encoder_teaches_how_long_loading_takes(
    run: Callable[..., list[Event]],
    request_for: Callable[..., GenerationRequest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(learned, "FILE", tmp_path / "data" / "speeds.json")

    def loading(request: GenerationRequest) -> tuple[float, float]:
        """What the plan promises until the first step, and how it differs from one for a machine that did nothing."""
        plan = next(event.plan for event in run(request) if isinstance(event, PlanReady))
        return plan.time_to_load, plan.measured_load

    asked = request_for(seconds=1, timeline="[0s-1s: a red ball]")
    guess, factor = loading(asked)
    assert factor == 1
    shown, factor = loading(replace(asked, seed=8))
    assert factor != 1 and shown == pytest.approx(guess * factor)
    assert loading(replace(asked, seed=9)) == (shown, factor), "the run before had its prompt encoded already"
    assert loading(request_for(seconds=1, timeline="[0s-1s: a blue box]")) == (shown, factor)
    assert loading(replace(asked, seed=10)) != (shown, factor), "and the last one read it again"
