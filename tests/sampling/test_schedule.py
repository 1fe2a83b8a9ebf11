"""The schedule against tables worked out by other means: numpy's float32, and a chunk's own point of view."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest

from magi_lite.errors import InputError
from magi_lite.models import Guidance, SamplerSettings
from magi_lite.sampling.guidance import guidance_weights
from magi_lite.sampling.schedule import PUBLISHED_STEPS, Schedule, step_intervals, step_size_number, time_grid

CASES = [(steps, window) for steps in PUBLISHED_STEPS for window in (1, 2, 3, 4, 8, 16) if steps % window == 0]


def plan(steps: int, window: int, offset: int = 0, total: int | None = None) -> Schedule:
    return Schedule(SamplerSettings(steps=steps, window=window), offset, total)


@pytest.mark.parametrize("steps", PUBLISHED_STEPS)
@pytest.mark.parametrize("shortcut", ["8,16,16", "16,16,8"])
def test_times_are_float32_and_rise_from_noise_to_clean(steps: int, shortcut: str) -> None:
    grid = time_grid(steps, shortcut)
    assert all(np.float64(np.float32(t)) == t for t in grid)
    assert grid[0] == 0.0
    assert grid[-1] == 1.0000001192092896
    assert all(a < b for a, b in pairwise(grid))
    assert grid[3 * steps // 4] == float(np.float32(0.3)) > 0.3


def test_times_follow_the_formula() -> None:
    """In float64, to float32's precision; the 12 steps are 16 with four of them made of two."""
    for steps in PUBLISHED_STEPS:
        left_out = {"8,16,16": 1, "16,16,8": 3}
        for shortcut, gap in left_out.items():
            u = np.arange(17) / 16 if steps == 12 else np.arange(steps + 1) / steps
            if steps == 12:
                u = np.array([x for i, x in enumerate(u) if i == 16 or i % 4 != gap])
            t = (u**2 / 3) / (1 + (1 / 3 - 1) * u**2)
            assert np.abs(np.array(time_grid(steps, shortcut)) - t).max() < 2e-7
            spans = np.diff(u) * (16 if steps == 12 else steps)
            assert np.allclose(spans, step_intervals(12, shortcut) if steps == 12 else 1.0)


def test_step_sizes_tell_the_length_of_a_step() -> None:
    """The number is proportional to the subdivisions of a quarter that a step is one of."""
    assert [step_size_number(steps, 1) for steps in (8, 16, 32, 64)] == [4, 8, 16, 32]
    assert [step_size_number(12, interval) for interval in (1, 2)] == [8, 4]
    assert plan(12, 4).step_size(0) == 4
    assert plan(12, 4).step_size(1) == 8
    assert Schedule(SamplerSettings(distilled=False)).step_size(0) is None


@pytest.mark.parametrize(("steps", "window"), CASES)
@pytest.mark.parametrize(("offset", "new"), [(0, 1), (0, 7), (3, 5)])
def test_every_chunk_makes_every_step_once_in_order(steps: int, window: int, offset: int, new: int) -> None:
    schedule = plan(steps, window, offset, offset + new)
    made: dict[int, list[int]] = {}
    cleaned: list[int] = []
    for stage in schedule.stages():
        assert stage.chunks <= window
        if stage.clean is not None:
            cleaned.append(stage.clean)
            assert made[stage.clean] == list(range(steps))  # clean indeed
        for step in range(schedule.steps_per_stage):
            for chunk, number in enumerate(schedule.made(stage, step), start=stage.first):
                made.setdefault(chunk, []).append(number)
        finished = [c for c in made if len(made[c]) == steps and c == stage.first]
        assert bool(finished) == stage.finishes(window)
    assert made == {chunk: list(range(steps)) for chunk in range(offset, offset + new)}
    assert cleaned == list(range(offset, offset + new - 1))
    assert schedule.total_steps == len(list(schedule.stages())) * schedule.steps_per_stage


@pytest.mark.parametrize(("steps", "window"), CASES)
@pytest.mark.parametrize("offset", [0, 1, 2, 7])
def test_the_slots_are_just_enough(steps: int, window: int, offset: int) -> None:
    """From each stage's ranges: never more than the slots before the window, and at some stage all of them."""
    schedule = plan(steps, window, offset, offset + 2 * window + 8)
    used: dict[int, int] = {}
    for stage in schedule.stages():
        steps_of_stage = range(schedule.steps_per_stage)
        seen = [range(*span) for step in steps_of_stage for span in schedule.kv_ranges(stage, step)]
        for chunk, span in zip([*range(stage.first, stage.last)] * len(steps_of_stage), seen, strict=True):
            assert chunk == span[-1]
        reached = stage.first - min(span[0] for span in seen)
        slots = schedule.slots(stage.index)
        assert reached <= slots
        used[slots] = max(used.get(slots, 0), reached)
    assert used[schedule.slots(2 * window + 4)] == schedule.reach
    assert schedule.reach == max(1, 5 - window)


def test_published_ranges_go_by_quarters() -> None:
    schedule = plan(8, 1, 0, 9)
    spans = [schedule.kv_ranges(schedule.stage(7), step)[0] for step in range(8)]
    assert [last - first for first, last in spans] == [5, 5, 4, 4, 3, 3, 2, 2]


def test_an_endless_run_has_the_stages_of_a_long_one() -> None:
    endless, long = plan(8, 4), plan(8, 4, 0, 1000)
    assert list(islice(endless.stages(), 900)) == list(islice(long.stages(), 900))
    assert (endless.stage_count, endless.total_steps) == (None, None)


def test_guidance_weights_sum_to_one_and_change_at_the_stated_times() -> None:
    guidance = Guidance()
    for t in time_grid(64):
        weights = guidance_weights(guidance, t)
        assert weights.uncond + weights.prev + weights.full == pytest.approx(1)
        early = t < 0.3 - 1e-6
        assert (weights.uncond, weights.prev, weights.full) == ((-0.5, -6.0, 7.5) if early else (0.0, 1.0, 0.0))


@pytest.mark.parametrize(
    ("change", "total", "sentence"),
    [
        ({"steps": 10}, 4, "10 steps cannot be scheduled; use one of 8, 12, 16, 32, 64"),
        ({"steps": 0}, 4, "0 steps"),
        ({"window": 3}, 4, "A window of 3 does not divide 8 steps; use one of 1, 2, 4, 8"),
        ({"window": 0}, 4, "A window of 0"),
        ({"shortcut": "8,8,16"}, 4, "shortcut '8,8,16' is not known"),
        ({"noise_to_clean_ranges": (5, 0)}, 4, "range is below 1"),
        ({"clean_range": 2}, 4, "use clean_range 1"),
        ({}, 0, "ask for at least 1"),
    ],
)
def test_what_cannot_be_scheduled_is_refused(change: dict[str, object], total: int, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Schedule(replace(SamplerSettings(), **change), 0, total)
