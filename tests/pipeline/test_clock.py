"""The pace of a run."""

from __future__ import annotations

from magi_lite.clock import Clock


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
