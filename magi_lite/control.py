"""Stop, pause and redirect a running generation from another thread.

The pipeline polls between denoising steps; nothing here blocks it. A new timeline applies to every second that has not
yet entered the denoising window.
"""

from __future__ import annotations

import threading

from magi_lite.timeline import Timeline


class RunControl:
    """What has been asked of one run since it began."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._pause = threading.Event()
        self._lock = threading.Lock()
        self._timeline: Timeline | None = None

    def stop(self) -> None:
        """End the run after the current step; finished seconds are kept."""
        self._stop.set()

    def pause(self) -> None:
        """End the run at the next stage boundary with its state saved, so that it can be resumed exactly."""
        self._pause.set()

    @property
    def stop_requested(self) -> bool:
        return self._stop.is_set()

    @property
    def pause_requested(self) -> bool:
        return self._pause.is_set()

    def redirect(self, timeline: Timeline) -> None:
        """Replace the timeline for all seconds not yet started."""
        with self._lock:
            self._timeline = timeline

    def take_timeline(self) -> Timeline | None:
        """The timeline given since the last call, or None."""
        with self._lock:
            timeline, self._timeline = self._timeline, None
            return timeline
