"""Which passes a run makes and what each of them reads, taken from the sampler's own `Schedule`.

A plan counts what the sampler will do, so it asks the sampler's schedule and copies none of it: chunks in the window,
stored chunks that its ranges reach, slots of the KV store, and how many passes there are for a second of video.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from magi_lite.models import ModelSpec, SamplerSettings
from magi_lite.request.request import GenerationRequest
from magi_lite.sampling.guidance import guidance_weights
from magi_lite.sampling.schedule import Schedule, Stage

GROWING_SECONDS = 60
"""What an endless run is planned for, where memory grows with every second."""


@dataclass(frozen=True)
class WindowPass:
    """What memory a pass over the window depends on, chunk counts throughout.

    past: the most stored chunks that one range reads; starts: ranges that begin with different stored chunks, each of
    which joins its keys and values to the window's own.
    """

    chunks: int
    past: int
    starts: int


def prefix_chunks(request: GenerationRequest, settings: SamplerSettings) -> int:
    """Whole chunks before the first new one: of a clip, as many as the first new chunk sees."""
    return settings.prefix_reach if request.video is not None else 0


def schedules_of(request: GenerationRequest, window: int, model: ModelSpec) -> tuple[Schedule, ...]:
    """The schedules that the samplers of the request's shots will follow, one after the other.

    Raises:
        InputError: the request's steps and window cannot be scheduled.
    """
    settings = model.sampling(request, window)
    return _schedules(settings, prefix_chunks(request, settings), request.timeline.shot_lengths(request.seconds))


def distinct_schedules(
    request: GenerationRequest, window: int, model: ModelSpec
) -> tuple[tuple[Schedule, int], ...]:
    """The same, each with how many shots follow it; that of the first shot comes first."""
    settings = model.sampling(request, window)
    return _distinct(settings, prefix_chunks(request, settings), request.timeline.shot_lengths(request.seconds))


@lru_cache(maxsize=512)
def _distinct(
    settings: SamplerSettings, offset: int, lengths: tuple[int | None, ...]
) -> tuple[tuple[Schedule, int], ...]:
    return tuple(Counter(_schedules(settings, offset, lengths)).items())


@lru_cache(maxsize=512)
def _schedules(settings: SamplerSettings, offset: int, lengths: tuple[int | None, ...]) -> tuple[Schedule, ...]:
    offsets = [offset] + [0] * (len(lengths) - 1)
    return tuple(
        Schedule(settings, before, None if length is None else before + length)
        for before, length in zip(offsets, lengths, strict=True)
    )


@lru_cache(maxsize=512)
def stages_to_look_at(schedule: Schedule) -> tuple[Stage, ...]:
    """Stages among which every kind of pass of the run is: those until the window and all ranges are full.

    Where every chunk sees everything, the last ones matter too: of an endless run, those after `GROWING_SECONDS`.
    """
    window, ranges = schedule.settings.window, schedule.settings.noise_to_clean_ranges
    if ranges:
        count = window + max(ranges) + 1
        last = count if schedule.stage_count is None else min(count, schedule.stage_count)
        return tuple(schedule.stage(index) for index in range(last))
    count = schedule.stage_count or GROWING_SECONDS
    indices = {*range(min(count, window + 1)), *range(max(0, count - 2 * window), count)}
    return tuple(schedule.stage(index) for index in sorted(indices))


@lru_cache(maxsize=512)
def window_passes(schedule: Schedule) -> frozenset[WindowPass]:
    """The different passes over the window that a run makes."""
    return frozenset(
        _pass_of(stage, schedule.kv_ranges(stage, step))
        for stage in stages_to_look_at(schedule)
        for step in range(schedule.steps_per_stage)
    )


def _pass_of(stage: Stage, ranges: tuple[tuple[int, int], ...]) -> WindowPass:
    stored = {first for first, _ in ranges if first < stage.first}
    return WindowPass(stage.chunks, stage.first - min(stored, default=stage.first), len(stored))


@lru_cache(maxsize=512)
def kv_slots(schedule: Schedule) -> int:
    """Clean chunks whose keys and values are kept at once, at most."""
    return max(schedule.slots(stage.index) for stage in stages_to_look_at(schedule))


@dataclass(frozen=True)
class Work:
    """Forwards of one kind: `chunks` chunks whose queries see `keys` chunks each on average, `times` of them."""

    chunks: int
    keys: float
    times: float


@lru_cache(maxsize=512)
def work_per_second(schedule: Schedule) -> tuple[Work, ...]:
    """The forwards that one more second of video takes: in the steady state, a full window far from any start.

    Where every chunk sees everything, there is no such state: the mean over the run.
    """
    if schedule.settings.sees_everything:
        seconds = GROWING_SECONDS if schedule.total is None else schedule.total - schedule.offset
        finite = Schedule(schedule.settings, schedule.offset, schedule.offset + seconds)
        whole = _merged([work for stage in finite.stages() for work in _stage_work(finite, stage)])
        return tuple(Work(work.chunks, work.keys, work.times / seconds) for work in whole)
    return tuple(_merged(_stage_work(schedule, _steady_stage(schedule))))


@lru_cache(maxsize=512)
def work_of_shots(schedules: tuple[tuple[Schedule, int], ...]) -> tuple[Work, ...]:
    """The forwards that a second of video takes on average where it has cuts: the window fills and empties each time.

    Without a cut, and in an endless video, where the last shot outweighs all others: those of the steady state.

    Args:
        schedules: see `distinct_schedules`.
    """
    endless = [schedule for schedule, _ in schedules if schedule.total is None]
    if endless or (len(schedules) == 1 and schedules[0][1] == 1):
        return work_per_second(endless[0] if endless else schedules[0][0])
    seconds = sum(count * ((schedule.total or 0) - schedule.offset) for schedule, count in schedules)
    whole = _merged(
        Work(work.chunks, work.keys, work.times * count)
        for schedule, count in schedules
        for work in _whole_work(schedule)
    )
    return tuple(Work(work.chunks, work.keys, work.times / seconds) for work in whole)


@lru_cache(maxsize=512)
def _whole_work(schedule: Schedule) -> tuple[Work, ...]:
    """The forwards of a shot's whole schedule; of the stages between filling and emptying one is looked at."""
    settings, count = schedule.settings, schedule.stage_count or 0
    steady = settings.window + max(settings.noise_to_clean_ranges, default=count)
    if count <= steady + settings.window or settings.sees_everything:
        return tuple(_merged(work for stage in schedule.stages() for work in _stage_work(schedule, stage)))
    middle = count - steady - settings.window + 1
    ends = [*range(steady), *range(count - settings.window + 1, count)]
    whole = [work for index in ends for work in _stage_work(schedule, schedule.stage(index))]
    whole += [Work(w.chunks, w.keys, w.times * middle) for w in _stage_work(schedule, schedule.stage(steady))]
    return tuple(_merged(whole))


@lru_cache(maxsize=512)
def work_to_first_second(schedule: Schedule) -> tuple[Work, ...]:
    """The forwards until the first new second is clean."""
    window = schedule.settings.window
    stages = window if schedule.stage_count is None else min(window, schedule.stage_count)
    ranges = [schedule.clean_kv_range(chunk) for chunk in range(schedule.offset)]
    prefix = [Work(1, float(last - first), 1.0) for first, last in ranges]
    return tuple(_merged([*prefix, *(w for i in range(stages) for w in _stage_work(schedule, schedule.stage(i)))]))


def _steady_stage(schedule: Schedule) -> Stage:
    settings = schedule.settings
    index = settings.window + max(settings.noise_to_clean_ranges)
    return Schedule(settings, schedule.offset).stage(index)


def _stage_work(schedule: Schedule, stage: Stage) -> Iterator[Work]:
    """The forwards of a stage, as `sampling.passes` makes them."""
    settings = schedule.settings
    clean_passes = 0 if stage.clean is None else 1
    for step in range(schedule.steps_per_stage):
        seen = [last - first for first, last in schedule.kv_ranges(stage, step)]
        whole = Work(stage.chunks, sum(seen) / len(seen), 1.0)
        times = schedule.timesteps(stage, step)
        if settings.guidance is None:
            yield whole
            if settings.nearly_clean and times[0] > settings.nearly_clean_threshold:
                yield Work(1, 1.0, 1.0)
            continue
        weights = [guidance_weights(settings.guidance, t) for t in times]
        with_caption = any(weight.full for weight in weights)
        yield from [whole] * (2 if with_caption else 1)
        yield Work(1, 1.0, float(sum(bool(weight.uncond) for weight in weights)))
        if step == 0 and with_caption:
            clean_passes *= 2
    if stage.clean is not None:
        first, last = schedule.clean_kv_range(stage.clean)
        yield Work(1, float(last - first), float(clean_passes))


def _merged(work: list[Work] | Iterator[Work]) -> Iterator[Work]:
    times: dict[tuple[int, float], float] = {}
    for one in work:
        times[one.chunks, one.keys] = times.get((one.chunks, one.keys), 0.0) + one.times
    return (Work(chunks, keys, count) for (chunks, keys), count in times.items() if count)
