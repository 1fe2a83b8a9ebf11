"""The denoising schedule: which chunks are in the window, how noisy each is, and what each may look at.

Pure bookkeeping, no tensors, so that the planner can count passes before a weight is loaded. `steps` are split over
`window` stages; a chunk enters with every stage, makes `steps / window` steps in each of `window` stages, and leaves
clean. Chunk numbers are absolute: whole chunks of a prefix count from 0, the first new chunk is `Schedule.offset`.

Every float is a float32 value computed in float32: at three quarters of the way t is float32(0.3), just ABOVE the 0.3
at which guidance changes, while in float64 it could fall below (MAGI-1 report, arXiv 2505.13211, and its program).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from magi_lite.errors import InputError
from magi_lite.models import PREFIX_RANGE, SamplerSettings

Shortcut = Literal["", "8,16,16", "16,16,8"]
Transform = Literal["sd3", "square", "identity", "piecewise"]

PUBLISHED_STEPS = (8, 12, 16, 32, 64)
"""What the models were distilled for (base models: 64)."""
_QUARTER_KEEPS = {"8,16,16": (0, 2, 3), "16,16,8": (0, 1, 2)}
"""Of the four subdivisions of a quarter, those at which a step of a shortcut schedule starts."""
_INTERVALS = {"8,16,16": (2.0, 1.0, 1.0), "16,16,8": (1.0, 1.0, 2.0)}
GROWTH = 4
"""Chunks by which a KV store grows at a time, where every chunk sees everything before it."""
PIECEWISE_KNEE = 0.875
"""Progress at which the piecewise transform reaches t = 0.5."""


def f32(value: float) -> float:
    """`value` rounded to float32. One rounded operation on float32 values in float64 equals the float32 operation."""
    return struct.unpack("f", struct.pack("f", value))[0]


# --- time ------------------------------------------------------------------------------------------------------------


def _even_grid(steps: int) -> list[float]:
    """0..1 in `steps` equal float32 steps, counted from both ends towards the middle as torch.linspace does."""
    step = f32(1 / steps)
    points = steps + 1
    return [f32(step * i) if i < points // 2 else f32(1.0 - step * (steps - i)) for i in range(points)]


def _piecewise(u: float) -> float:
    if u < PIECEWISE_KNEE:
        return f32(f32(0.5 / PIECEWISE_KNEE) * u)
    return f32(0.5 + f32(0.5 / (1 - PIECEWISE_KNEE) * f32(u - PIECEWISE_KNEE)))


def _shift(t: float, shift: float) -> float:
    """Spend more of the steps where it is noisy: t/s / (1 + (1/s - 1) t)."""
    inverse = 1 / shift
    return f32(f32(f32(inverse) * t) / f32(1.0 + f32(f32(inverse - 1) * t)))


def time_grid(
    steps: int, shortcut: Shortcut = "", transform: Transform = "sd3", shift: float = 3.0
) -> tuple[float, ...]:
    """The `steps + 1` times of a chunk from noise (0) to clean (1.0000001, as published).

    The 12-step schedule runs on the 16-step grid with one of each quarter's four points left out. Published models use
    the transform "sd3" (u squared, then shifted by 3); the others are of the published program too.
    """
    if steps == 12:
        keeps = _QUARTER_KEEPS[shortcut or "8,16,16"]
        even = _even_grid(16)
        progress = [even[4 * quarter + keep] for quarter in range(4) for keep in keeps] + [even[16]]
    else:
        progress = _even_grid(steps)
    if transform == "identity":
        return tuple(progress)
    if transform == "piecewise":
        return tuple(_piecewise(u) for u in progress)
    squared = [f32(u * u) for u in progress]
    return tuple(squared) if transform == "square" else tuple(_shift(t, shift) for t in squared)


def step_intervals(steps: int, shortcut: Shortcut = "") -> tuple[float, ...]:
    """How many subdivisions of the finer grid each step spans: 1 or 2 where a shortcut applies, else 1."""
    if shortcut and steps % 3 == 0:
        return _INTERVALS[shortcut] * (steps // 3)
    return (1.0,) * steps


def step_size_number(steps: int, interval: float) -> float:
    """The number that tells a distilled model the length of the step (docs/architecture.md, section 2 of the model)."""
    return 4 / interval * 2 if steps == 12 else steps / 4 * 2


# --- chunks ----------------------------------------------------------------------------------------------------------


def chunk_steps(steps_per_stage: int, newest: int, oldest: int, step: int) -> tuple[int, ...]:
    """Steps made so far by each chunk of a window, oldest chunk first.

    `newest` and `oldest` are the stages that the newest chunk and (one past) the oldest chunk have behind them.
    """
    return tuple(progress * steps_per_stage + step for progress in reversed(range(newest, oldest)))


def kv_ranges(
    first_chunk: int, made: tuple[int, ...], steps: int, ranges: tuple[int, ...], clean_range: int = 1
) -> tuple[tuple[int, int], ...]:
    """For each chunk from `first_chunk` on, the half-open range of chunks whose keys its queries see.

    `made` are the steps behind each chunk (`steps` for a clean one). A chunk sees itself and the r - 1 before it, r by
    progress out of `ranges`; no `ranges` at all: everything since chunk 0. `clean_range` -1: the last of `ranges`.
    """

    def reach(number: int) -> int:
        if not ranges:
            return first_chunk + len(made)
        if number >= steps:
            return clean_range if clean_range > 0 else ranges[-1]
        return ranges[number * len(ranges) // steps]

    return tuple((max(0, c + 1 - reach(number)), c + 1) for c, number in enumerate(made, start=first_chunk))


def prefix_kv_ranges(chunks: int, ranges: tuple[int, ...], clean_range: int = 1) -> tuple[tuple[int, int], ...]:
    """The same for the whole clean chunks of a prefix; with nothing stated they see the last `PREFIX_RANGE`."""
    reach = clean_range if clean_range > 0 else (ranges[-1] if ranges else PREFIX_RANGE)
    return tuple((max(0, c + 1 - reach), c + 1) for c in range(chunks))


def chunk_count(frames: int, prefix: int, chunk_width: int) -> int:
    """Chunks on the timeline, prefix included, for `frames` new video frames after `prefix` latent frames."""
    return -(-(frames // 4 + prefix) // chunk_width)


@dataclass(frozen=True)
class Stage:
    """The chunks [first, last) advance by `steps_per_stage` steps.

    `newest`..`oldest`: stages already behind the newest chunk, and one past those behind the oldest. `clean`: the chunk
    that has just become clean and is run once for its keys and values before the first step, or None.
    """

    index: int
    first: int
    last: int
    newest: int
    oldest: int
    clean: int | None

    @property
    def chunks(self) -> int:
        return self.last - self.first

    def finishes(self, window: int) -> bool:
        """Whether the oldest chunk is clean when the stage ends."""
        return self.oldest == window


@dataclass(frozen=True)
class Schedule:
    """All stages of a run: `offset` whole prefix chunks, then new chunks up to number `total` (None: endless).

    Raises:
        InputError: the steps, the window or the ranges cannot be scheduled.
    """

    settings: SamplerSettings
    offset: int = 0
    total: int | None = None

    def __post_init__(self) -> None:
        s = self.settings
        if s.steps < 4 or s.steps % 4:
            published = ", ".join(map(str, PUBLISHED_STEPS))
            raise InputError(f"{s.steps} steps cannot be scheduled; use one of {published}.")
        if s.window < 1 or s.steps % s.window:
            fitting = ", ".join(str(w) for w in range(1, s.steps + 1) if s.steps % w == 0)
            raise InputError(f"A window of {s.window} does not divide {s.steps} steps; use one of {fitting}.")
        if s.shortcut not in _INTERVALS:
            raise InputError(f"The shortcut {s.shortcut!r} is not known; use '8,16,16' or '16,16,8'.")
        if min(s.noise_to_clean_ranges, default=1) < 1:
            raise InputError("A key/value range is below 1; use the published 5, 4, 3, 2.")
        if s.clean_range != 1 and not s.sees_everything:
            raise InputError(f"A clean chunk that sees {s.clean_range} chunks is not supported; use clean_range 1.")
        if self.total is not None and self.total <= self.offset:
            raise InputError(f"{self.total - self.offset} new seconds were asked for; ask for at least 1.")

    @property
    def steps_per_stage(self) -> int:
        return self.settings.steps // self.settings.window

    @property
    def stage_count(self) -> int | None:
        """Stages of the whole run; None when endless."""
        return None if self.total is None else self.total - self.offset + self.settings.window - 1

    @property
    def total_steps(self) -> int | None:
        """Denoising steps of the whole run (clean passes not counted); None when endless."""
        return None if self.stage_count is None else self.stage_count * self.steps_per_stage

    @cached_property
    def grid(self) -> tuple[float, ...]:
        return time_grid(self.settings.steps, self.settings.shortcut)

    @cached_property
    def reach(self) -> int:
        """Clean chunks before a full window that any range can still see: 4 at window 1, 1 at window 4.

        (Where every chunk sees everything, there is no such number; `slots` tells what is needed at a stage.)
        """
        assert not self.settings.sees_everything
        window, furthest = self.settings.window, 1
        for step in range(self.steps_per_stage):
            made = chunk_steps(self.steps_per_stage, 0, window, step)
            far = max(self.settings.noise_to_clean_ranges)  # so far on that no range is cut at chunk 0
            seen = kv_ranges(far, made, self.settings.steps, self.settings.noise_to_clean_ranges)
            furthest = max(furthest, far - min(first for first, _ in seen))
        return furthest

    def sees(self, stage: Stage) -> int:
        """Clean chunks right before the window that the ranges of this stage see."""
        steps = range(self.steps_per_stage)
        return stage.first - min(first for step in steps for first, _ in self.kv_ranges(stage, step))

    def slots(self, index: int) -> int:
        """Slots that a KV store needs at stage number `index`: `reach`, or more while a window fills behind a prefix,
        whose first chunks see further back than those of a full window do. Where every chunk sees everything: all
        before the window, in steps of `GROWTH`.
        """
        if self.settings.sees_everything:
            first = self.stage(index).first
            slots = -(-max(1, first) // GROWTH) * GROWTH
            return slots if self.total is None else max(1, min(slots, self.total - 1))
        filling = self.settings.window - 1 if self.offset else 0
        if index >= filling:
            return self.reach
        return max(self.reach, *(self.sees(self.stage(i)) for i in range(filling)))

    def stage(self, index: int) -> Stage:
        """The stage number `index`, counted from 0."""
        window = self.settings.window
        first = self.offset + max(0, index - window + 1)
        last = self.offset + index + 1 if self.total is None else min(self.total, self.offset + index + 1)
        entered = index + self.offset  # the chunk that enters now has made no stage; chunk c has made entered - c
        return Stage(
            index,
            first,
            last,
            newest=entered - (last - 1),
            oldest=entered - first + 1,
            clean=first - 1 if first > self.offset else None,
        )

    def stages(self, start: int = 0) -> Iterator[Stage]:
        """All stages from number `start` on; never ends when the run is endless."""
        index = start
        while self.stage_count is None or index < self.stage_count:
            yield self.stage(index)
            index += 1

    def made(self, stage: Stage, step: int) -> tuple[int, ...]:
        """Steps behind each chunk of the window at a step of a stage, oldest chunk first."""
        return chunk_steps(self.steps_per_stage, stage.newest, stage.oldest, step)

    def timesteps(self, stage: Stage, step: int) -> tuple[float, ...]:
        """t of each chunk of the window, oldest chunk first."""
        return tuple(self.grid[number] for number in self.made(stage, step))

    def kv_ranges(self, stage: Stage, step: int) -> tuple[tuple[int, int], ...]:
        """What each chunk of the window sees, as half-open ranges of absolute chunk numbers."""
        ranges = self.settings.noise_to_clean_ranges
        return kv_ranges(stage.first, self.made(stage, step), self.settings.steps, ranges, self.settings.clean_range)

    def clean_kv_range(self, chunk: int) -> tuple[int, int]:
        """What a clean chunk sees when it is run for its keys and values: itself, as a rule."""
        s = self.settings
        if chunk < self.offset:
            return prefix_kv_ranges(self.offset, s.noise_to_clean_ranges, s.clean_range)[chunk]
        return kv_ranges(chunk, (s.steps,), s.steps, s.noise_to_clean_ranges, s.clean_range)[0]

    def step_size(self, step: int) -> float | None:
        """The step-size number of a distilled model's pass; None for base models.

        As published, one number serves all chunks of a pass, taken at the step's place within the stage.
        """
        if not self.settings.distilled:
            return None
        steps = self.settings.steps
        return step_size_number(steps, step_intervals(steps, self.settings.shortcut)[step])
