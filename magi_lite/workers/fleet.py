"""All workers of the app: one for each card, or one for the processor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from magi_lite import events
from magi_lite.control import RunControl
from magi_lite.jobs.job import Job
from magi_lite.workers.worker import Settings, Worker

ONLY = ""
"""The name of a worker that uses whatever there is."""


class Fleet:
    """Workers by the names of their cards.

    Args:
        settings: of all of them.
        cards: numbers of the CUDA cards to use, a worker each; none: one worker for whatever there is.
    """

    def __init__(self, settings: Settings, cards: Sequence[int] = ()) -> None:
        self.workers = {str(card): Worker(settings, card) for card in cards} or {ONLY: Worker(settings)}

    @property
    def runners(self) -> dict[str, Callable[[Job, RunControl], Iterator[events.Event]]]:
        """What makes a job's events, by card."""
        return {name: worker.run for name, worker in self.workers.items()}

    def free(self) -> int:
        """End the workers that have nothing to do, which frees what they hold; how many there were."""
        return sum(worker.free() for worker in self.workers.values())

    def close(self, patience: float = 10.0) -> None:
        """Let all end; one in the middle of a step ends after it by itself, waited for so many seconds."""
        until = time.monotonic() + patience
        for worker in self.workers.values():
            worker.close(max(0.0, until - time.monotonic()))

    def report(self) -> list[dict[str, Any]]:
        """Each worker's card, process and memory in bytes, for the page."""
        return [
            {
                "card": name,
                "pid": worker.pid,
                "memory": worker.memory.used if worker.pid else 0,
                "card_free": worker.card_memory[0] if worker.card_memory else 0,
                "card_total": worker.card_memory[1] if worker.card_memory else 0,
            }
            for name, worker in self.workers.items()
        ]
