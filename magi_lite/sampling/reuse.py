"""Velocities that serve a second step: an approximation for schedules of many small steps, asked for and never default.

How fast a chunk's velocity changes with its time is measured between the last two steps at which it was computed. As
long as it would have changed by less than a given share since then, were it to go on so, it is taken again. Every chunk
of the window is judged by itself (as in FlowCache), for each is at another place of its way. Younger chunks read the
keys of older ones in the same pass, so those that are left out of a pass are always the youngest.

Nothing is remembered across stages: a resumed run computes the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Reuse:
    """Which chunks of a window have to be computed, and the velocities of those that need not.

    Args:
        threshold: the relative change of a velocity up to which it serves again.
        width: latent frames of a chunk.
    """

    def __init__(self, threshold: float, width: int) -> None:
        self.threshold, self._width = threshold, width
        self.forget()

    def forget(self) -> None:
        """Compute everything from here on until changes are known."""
        self._velocity: Tensor | None = None
        self._times: list[float] = []
        self._rates: list[float | None] = []
        self._situation: object = None

    def needed(self, times: Sequence[float], situation: object) -> int:
        """How many chunks, the oldest ones, have to be computed at a step.

        Args:
            times: t of each chunk of the window, oldest first.
            situation: what a velocity depends on besides latents and times; where it is another, nothing serves again.
        """
        if self._velocity is None or situation != self._situation:
            return len(times)
        needed = 0
        for place, (now, then, rate) in enumerate(zip(times, self._times, self._rates, strict=True)):
            if rate is None or rate * (now - then) > self.threshold:
                needed = place + 1
        return needed

    def complete(self, computed: Tensor | None, times: Sequence[float], situation: object) -> Tensor:
        """The velocity of the whole window: what was computed of it, the oldest chunks, and what serves again.

        Args:
            computed: (1, C, chunks * width, H, W) of as many chunks as were `needed`; None: of none.
        """
        before = self._velocity if situation == self._situation else None
        if computed is None:
            assert before is not None
            return before.clone()
        chunks = computed.shape[2] // self._width
        if before is None:
            self._velocity, self._times, self._rates = computed.clone(), list(times), [None] * chunks
            self._situation = situation
            return computed
        old, new = (x[:, :, : chunks * self._width].unflatten(2, (chunks, -1)) for x in (before, computed))
        changes = (new - old).square().sum((0, 1, 3, 4, 5)).sqrt()
        sizes = new.square().sum((0, 1, 3, 4, 5)).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        for place, change in enumerate((changes / sizes).tolist()):
            self._rates[place] = change / max(times[place] - self._times[place], 1e-9)
            self._times[place] = times[place]
        self._velocity = torch.cat([computed, before[:, :, chunks * self._width :]], dim=2)
        return self._velocity.clone()
