"""What a running job looks like from outside: one object that the worker writes and any number of pages read."""

from __future__ import annotations

import base64
import io
import threading
import time
from typing import Any

from magi_lite import events

PREVIEW_HEIGHT = 360
PREVIEW_EVERY = 0.4
"""Seconds between previews kept; a picture per step would cost more than it tells."""


def jpeg_url(image: Any, height: int, quality: int = 78) -> str:
    """A small JPEG as a data URL; `image` is (H, W, 3) uint8 and is only ever made smaller."""
    from PIL import Image

    picture = Image.fromarray(image)
    if picture.height > height:
        picture = picture.resize((max(1, round(picture.width * height / picture.height)), height))
    memory = io.BytesIO()
    picture.save(memory, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(memory.getvalue()).decode("ascii")


def side_by_side(pictures: Any) -> Any:
    """(T, H, W, 3) to (H, T W, 3)."""
    moments, height, width, colours = pictures.shape
    return pictures.transpose(1, 0, 2, 3).reshape(height, moments * width, colours)


class Live:
    """The visible state of one run. The worker calls `take` with every event; pages call `snapshot`.

    Args:
        window: seconds that are denoised together.
        seconds: length of the whole video; None: endless.
        done: seconds that are finished before the run.
    """

    def __init__(self, *, window: int, seconds: int | None, done: int = 0) -> None:
        self._lock = threading.Lock()
        self._window = window
        self._seconds = seconds
        self._resumed = done > 0
        self._stages = 0
        self._preview: str | None = None
        self._moving: list[dict[str, Any]] = []
        self._preview_version = 0
        self._preview_at = 0.0
        self._notices: list[dict[str, str]] = []
        self._progress: events.Progress | None = None
        self._redirected: dict[str, int] | None = None
        self._phase = "check"
        self._detail = "Getting ready"
        self._began = time.monotonic()
        self.done = done

    def take(self, event: events.Event) -> None:
        """Note one event of the run."""
        match event:
            case events.PhaseStarted(phase, detail):
                with self._lock:
                    self._phase, self._detail = phase, detail or self._detail
            case events.Progress():
                with self._lock:
                    self._stages += event.step == 1
                    self._progress = event
            case events.Notice(message, level):
                with self._lock:
                    self._notices.append({"message": message, "level": level})
            case events.Redirected(second):
                with self._lock:
                    count = self._redirected["count"] if self._redirected else 0
                    self._redirected = {"count": count + 1, "second": second}
            case events.Preview(_, image):
                self._take_preview(image)
            case events.MovingPreview(chunk, image):
                self._take_moving(chunk, image)
            case events.ChunkFinished(chunk, _, _):
                with self._lock:
                    self.done = max(self.done, chunk + 1)

    def _take_preview(self, image: Any) -> None:
        now = time.monotonic()
        if now - self._preview_at < PREVIEW_EVERY:
            return
        url = jpeg_url(image, PREVIEW_HEIGHT)
        with self._lock:
            self._preview, self._preview_at, self._moving = url, now, []
            self._preview_version += 1

    def _take_moving(self, chunk: int, seconds: Any) -> None:
        """Each second as one picture, its moments side by side."""
        now = time.monotonic()
        if now - self._preview_at < PREVIEW_EVERY:
            return
        moving = [
            {
                "second": chunk + place,
                "moments": len(moments),
                "aspect": moments.shape[2] / moments.shape[1],
                "url": jpeg_url(side_by_side(moments), PREVIEW_HEIGHT),
            }
            for place, moments in enumerate(seconds)
        ]
        with self._lock:
            self._preview, self._preview_at, self._moving = None, now, moving
            self._preview_version += 1

    @property
    def locked(self) -> int:
        """Seconds that no edit reaches any more: finished ones and those that have entered the denoising window."""
        progress = self._progress
        if progress is None:
            started = self.done + (self._window if self._resumed else 1)
        elif progress.started is not None:
            started = max(progress.started, self.done)
        elif progress.chunk == 0 and not self._resumed:
            started = max(1, self._stages)  # a second enters with every stage
        else:
            started = max(progress.chunk, self.done) + self._window
        return started if self._seconds is None else min(started, self._seconds)

    @property
    def preview_version(self) -> int:
        """Grows with every preview picture that is kept."""
        return self._preview_version

    def snapshot(self, preview_after: int = 0) -> dict[str, Any]:
        """JSON-able state; the preview picture only if newer than the version that the page has."""
        with self._lock:
            progress = self._progress
            return {
                "phase": self._phase,
                "detail": self._detail,
                "done": self.done,
                "locked": self.locked,
                "notices": list(self._notices),
                "redirected": self._redirected,
                "elapsed": time.monotonic() - self._began,
                "progress": progress
                and {
                    "chunk": progress.chunk,
                    "chunks": progress.chunks,
                    "step": progress.step,
                    "steps": progress.steps,
                    "fraction": progress.fraction,
                    "eta": progress.eta_seconds,
                    "seconds_per_chunk": progress.seconds_per_chunk,
                },
                "preview_version": self._preview_version,
                "preview": self._preview if self._preview_version > preview_after else None,
                "moving": self._moving if self._preview_version > preview_after else None,
            }
