"""One task at a time beside the run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from magi_lite.errors import MagiLiteError
from magi_lite.machine import devices


class Background:
    """A thread for one task at a time; a context manager that waits for it at the end."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._task: Future[Any] | None = None

    @property
    def idle(self) -> bool:
        """Whether a task can be started: there was none, or it is done."""
        return self._task is None or self._task.done()

    def start(self, task: Callable[[], Any]) -> None:
        """Run `task` beside the caller; only while `idle`."""
        assert self.idle, "one task at a time"
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="magi-background")
        self._task = self._pool.submit(task)

    def result(self) -> None:
        """Forget the task that is done; nothing happens where there was none.

        Raises:
            MagiLiteError: it failed; running out of memory becomes a sentence.
        """
        task, self._task = self._task, None
        try:
            if task is not None:
                task.result()
        except Exception as error:
            if not devices.is_out_of_memory(error):
                raise
            devices.free_memory()
            raise MagiLiteError("there is not enough memory beside the running video") from error

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._task = None
