"""Downloads of models in the background: one thread each, progress to be asked for, to be stopped and continued."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magi_lite.errors import InputError, MagiLiteError
from magi_lite.models import MODELS


@dataclass
class _Download:
    cancel: threading.Event
    state: str = "running"
    done: int = 0
    total: int = 0
    file: str = ""
    error: str = ""
    began: float = 0.0


class Downloads:
    """What is being fetched into one models folder.

    Args:
        folder: root of the published layout.
        fetch: `hub.download`, or another function of its arguments.
    """

    def __init__(self, folder: Path, fetch: Callable[..., Any] | None = None) -> None:
        self.folder = folder
        self._fetch = fetch
        self._lock = threading.Lock()
        self._all: dict[str, _Download] = {}

    def start(self, model: str) -> None:
        """Begin, or go on where an earlier download ended.

        Raises:
            InputError: no such model.
        """
        if model not in MODELS:
            raise InputError(f"There is no model {model!r} to download; choose one of {', '.join(MODELS)}.")
        with self._lock:
            if model in self._all and self._all[model].state == "running":
                return
            entry = self._all[model] = _Download(threading.Event(), began=time.monotonic())
        threading.Thread(target=self._run, args=(model, entry), name=f"download-{model}", daemon=True).start()

    def stop(self, model: str) -> None:
        """End a download; what has arrived is kept for the next time."""
        with self._lock:
            if model in self._all:
                self._all[model].cancel.set()

    def status(self, model: str) -> dict[str, Any] | None:
        """Progress of a download, in bytes and as a sentence; None if there was none."""
        with self._lock:
            entry = self._all.get(model)
            if entry is None:
                return None
            text = {"finished": "Complete", "stopped": "Stopped; it goes on from here", "failed": ""}.get(entry.state)
            if text is None:
                passed = time.monotonic() - entry.began
                left = (entry.total - entry.done) * passed / entry.done if entry.done else 0
                size = f"{entry.done / 1e9:.2f} of {entry.total / 1e9:.2f} GB" if entry.total else "Connecting ..."
                text = f"{size}, {left / 60:.0f} minutes left, {entry.file}" if left else size
            return {
                "state": entry.state,
                "done": entry.done,
                "total": entry.total,
                "text": text,
                "error": entry.error,
            }

    def _run(self, model: str, entry: _Download) -> None:
        from magi_lite.weights import hub
        from magi_lite.weights.transfer import DownloadCancelled

        def progress(done: int, total: int, file: str) -> None:
            entry.done, entry.total, entry.file = done, total, file

        try:
            (self._fetch or hub.download)(model, self.folder, progress=progress, cancelled=entry.cancel.is_set)
            entry.state = "finished"
        except DownloadCancelled:
            entry.state = "stopped"
        except MagiLiteError as error:
            entry.state, entry.error = "failed", str(error)
        except Exception as error:
            entry.state = "failed"
            entry.error = f"The download of {model} failed ({type(error).__name__}: {error}); try again, it goes on."
