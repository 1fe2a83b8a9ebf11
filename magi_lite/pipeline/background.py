"""Tasks beside the run: one at a time, or several in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
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


class InOrder:
    """A thread for tasks that must be done one after the other; after one that failed, none is begun.

    A context manager that waits at the end for what was begun.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._tasks: deque[Future[Any]] = deque()
        self._failed = False

    def put(self, task: Callable[[], Any], *, beside: bool) -> None:
        """Run `task` after all before it: beside the caller, or before this returns."""
        if beside:
            self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="magi-in-order")
            self._tasks.append(self._pool.submit(self._run, task))
            return
        done: Future[Any] = Future()
        done.set_result(task())
        self._tasks.append(done)

    def _run(self, task: Callable[[], Any]) -> Any:
        if self._failed:
            return None
        try:
            return task()
        except BaseException:
            self._failed = True
            raise

    @property
    def idle(self) -> bool:
        """Whether every task is done."""
        return all(task.done() for task in self._tasks)

    def results(self, *, wait: bool = False) -> Iterator[Any]:
        """What the tasks that are done gave, in order and once; wait: all tasks.

        Raises:
            Exception: that of a task that failed.
        """
        while self._tasks and (wait or self._tasks[0].done()):
            yield self._tasks.popleft().result()

    def __enter__(self) -> InOrder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        self._pool, self._failed = None, False
        self._tasks.clear()
