"""How far a run is and how long the rest will take, from the steps done so far."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Measures the pace of denoising steps.

    The first step of a run is slower (kernels compile, caches warm), so it is left out of the pace as soon as there are
    others. Times are seconds.

    Args:
        steps_before: steps that an earlier run of the same video has done.
        now: the time source.
    """

    def __init__(self, steps_before: int = 0, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._began = self._chunk_began = now()
        self._steps_before = steps_before
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] = (steps_before, self._began)

    def step(self, steps_done: int) -> None:
        """A step is done; `steps_done` counts all of the video's, earlier runs' too."""
        self._last = (steps_done, self._now())
        self._first = self._first or self._last

    def lap(self) -> float:
        """Seconds since the previous finished second of video (or the start)."""
        now = self._now()
        taken, self._chunk_began = now - self._chunk_began, now
        return taken

    @property
    def elapsed(self) -> float:
        return self._now() - self._began

    @property
    def steps_measured(self) -> int:
        """Steps that the pace is made of, the first one left out."""
        return 0 if self._first is None else self._last[0] - self._first[0]

    @property
    def seconds_per_step(self) -> float | None:
        """The pace; None before the first step."""
        if self._first is None:
            return None
        steps, seconds = (new - old for new, old in zip(self._last, self._first, strict=True))
        if steps > 0:
            return seconds / steps
        return (self._last[1] - self._began) / max(1, self._last[0] - self._steps_before)

    def left(self, steps: int) -> float | None:
        """Seconds that `steps` more steps will take."""
        pace = self.seconds_per_step
        return None if pace is None else pace * steps
