"""The queue: jobs that wait, run one at a time, and survive the process."""

from magi_lite.jobs.queue import JobQueue

__all__ = ["JobQueue"]
