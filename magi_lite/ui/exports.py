"""Exports that a page asked for, one after the other: a copy of the plain MP4 at once, others in their own process.

Decoding needs torch, which the app's server does without, and foreign sound is better read elsewhere. The child writes
a line of JSON for everything that happens; the newest is what the page shows.
"""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magi_lite.errors import InputError, MagiLiteError, OutputError
from magi_lite.ui.library import Library, file_url
from magi_lite.video.formats import FORMATS
from quant.storage.files import parse_json

FOLDER = "exports"
"""In a run's folder."""
KEPT = 40
"""Ended exports that are remembered."""
_ROOT = Path(__file__).resolve().parents[2]
_BEGIN = "import sys; sys.path.insert(0, sys.argv.pop(1)); from magi_lite.ui.exports import main; sys.exit(main())"


def order_of(
    format: str, from_second: float | None, to_second: float | None, audio: Path | None,
    credentials: dict[str, str] | None, *, metadata: bool, clip: bool,
) -> dict[str, Any]:  # fmt: skip
    """What `Exports.start` takes; `from_second` alone is a moment, and `credentials` names files or nothing.

    Raises:
        InputError: the part ends before it begins.
    """
    seconds: Any = from_second
    if to_second is not None:
        seconds = [from_second or 0.0, to_second]
        if not seconds[0] < to_second:
            raise InputError(
                f"The part to export begins at second {seconds[0]:g} and ends at {to_second:g}; let it end later."
            )
    own = None
    if credentials is not None:
        named = {name: path.strip() for name, path in credentials.items()}
        own = {name: str(Path(path).expanduser()) if path else None for name, path in named.items()}
    sound = None if audio is None else str(audio)
    order = {"format": format, "seconds": seconds, "audio": sound, "metadata": metadata, "credentials": own}
    return order | {"clip": True if clip else None}


@dataclass
class Export:
    """One file in the making. `state`: waiting, running, finished, failed, cancelled."""

    id: str
    video: str
    title: str
    order: dict[str, Any]
    state: str = "waiting"
    text: str = "Waiting for its turn"
    fraction: float = 0.0
    target: Path | None = None
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def shown(self) -> dict[str, Any]:
        """JSON-able state."""
        found = {"id": self.id, "video": self.video, "title": self.title, "format": self.order["format"]}
        found |= {"state": self.state, "text": self.text, "fraction": self.fraction}
        done = self.state == "finished" and self.target is not None and self.target.exists()
        if done and self.target is not None:
            found |= {"url": file_url(self.target), "file": self.target.name, "bytes": self.target.stat().st_size}
            found["place"] = str(self.target)
        return found


class Exports:
    """The exports of the videos of a library. The thread that makes them starts with the first."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._known: dict[str, Export] = {}
        self._waiting: queue.SimpleQueue[Export] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, video: str, title: str, order: dict[str, Any]) -> str:
        """Put an export into the line; its id.

        Args:
            video: a run's name.
            order: `format`, `seconds` (from, to) or a moment or None, `audio` (path or None), `clip`, `metadata`, and
                `credentials` (None, or `certificate` and `key`: paths or None).

        Raises:
            InputError: there is no such video or format.
        """
        if order["format"] not in FORMATS:
            raise InputError(f"There is no export format {order['format']!r}; choose one of {', '.join(FORMATS)}.")
        self._library.path(video)
        export = Export(uuid.uuid4().hex[:12], video, title, order)
        with self._lock:
            self._known[export.id] = export
            ended = [one.id for one in self._known.values() if one.state not in ("waiting", "running")]
            for old in ended[:-KEPT]:
                del self._known[old]
            self._waiting.put(export)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="exports", daemon=True)
                self._thread.start()
        return export.id

    def all(self) -> list[dict[str, Any]]:
        """Every export, in the order in which they were asked for."""
        with self._lock:
            return [one.shown() for one in self._known.values()]

    def cancel(self, identity: str) -> None:
        """Stop an export; nothing is left of its file.

        Raises:
            InputError: there is none of that id.
        """
        with self._lock:
            export = self._known.get(identity)
            if export is None:
                raise InputError("This export is not on the list any more.")
            if export.state in ("waiting", "running"):
                export.state, export.text = "cancelled", "Cancelled"
                if export.process:
                    export.process.terminate()

    def _work(self) -> None:
        while True:
            export = self._waiting.get()
            with self._lock:
                if export.state != "waiting":
                    continue
                export.state, export.text = "running", "Starting"
            try:
                self._make(export)
            except Exception as error:
                self._set(export, state="failed", text=str(error) or type(error).__name__)

    def _make(self, export: Export) -> None:
        project = self._library.open(export.video)
        folder = project.folder / FOLDER
        folder.mkdir(exist_ok=True)
        chosen = FORMATS[export.order["format"]]
        stem = _free_name(folder, f"{project.name}-{export.order['format']}", chosen.suffix)
        order = export.order | {
            "title": export.title,
            "run": str(project.folder),
            "to": str(folder / f"{stem}{chosen.suffix}"),
        }
        copied = _is_plain(order)
        for news in _events(order) if copied else self._ordered(export, order):
            self._set(export, **news)
        self._set(export, state="finished", text="Finished", fraction=1.0)
        if copied and export.state == "cancelled":
            Path(order["to"]).unlink(missing_ok=True)

    def _ordered(self, export: Export, order: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """What happens in a process that makes the export.

        Raises:
            MagiLiteError: it ended without a result.
        """
        process = subprocess.Popen(
            [sys.executable, "-c", _BEGIN, str(_ROOT), json.dumps(order)],
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, encoding="utf-8",
        )  # fmt: skip
        with self._lock:
            export.process = process
            if export.state == "cancelled":
                process.terminate()
        error, target = "", None
        with process:
            for line in process.stdout or ():
                news = parse_json(line)
                error = news.pop("error", "") or error
                target = news.get("target", target)
                yield news
        with self._lock:
            export.process = None
            cancelled = export.state == "cancelled"
        if not cancelled and (process.returncode or target is None):
            raise OutputError(
                error or f"The export ended without a result (exit status {process.returncode}); try it again."
            )

    def _set(self, export: Export, **news: Any) -> None:
        if "target" in news:
            news["target"] = Path(news["target"])
        with self._lock:
            if export.state != "cancelled":
                for name, value in news.items():
                    setattr(export, name, value)


def _is_plain(order: dict[str, Any]) -> bool:
    """Whether the video's own fragments are copied, and nothing else is read."""
    own = ("seconds", "audio", "clip", "credentials")
    return order["format"] == "h264" and all(order.get(name) is None for name in own)


def _free_name(folder: Path, stem: str, suffix: str) -> str:
    """A name that neither a file nor the archive of a folder of pictures has."""
    names = (stem, *(f"{stem}-{number}" for number in range(2, 10_000)))
    return next(name for name in names if not any((folder / (name + end)).exists() for end in {suffix, ".zip"}))


def main() -> int:
    """The child: write one file as the order (JSON) in the last argument says, a line of JSON for each event."""
    order = parse_json(sys.argv[-1])
    sent = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints is none of ours
    try:
        for news in _events(order):
            print(json.dumps(news), file=sent, flush=True)
        return 0
    except MagiLiteError as error:
        print(json.dumps({"error": str(error)}), file=sent, flush=True)
        return 1


def _events(order: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from magi_lite.events import Finished, PhaseStarted, Progress
    from magi_lite.pipeline.export import exporting
    from magi_lite.video.credentials import check_credentials, sign

    seconds, credentials = order.get("seconds"), order.get("credentials")
    certificate, key = (
        credentials and credentials[name] and Path(credentials[name]) for name in ("certificate", "key")
    )
    if credentials is not None:
        check_credentials(Path(order["to"]), certificate, key)
    target = None
    running = exporting(
        order["run"], order["to"], tuple(seconds) if isinstance(seconds, list) else seconds, format=order["format"],
        audio=order.get("audio"), clip=bool(order.get("clip")), metadata=order.get("metadata"),
    )  # fmt: skip
    for event in running:
        match event:
            case PhaseStarted(_, detail):
                yield {"text": detail}
            case Progress():
                yield {"fraction": event.fraction or 0.0}
            case Finished(video, _, _, _):
                target = Path(video)
    if target is None:
        return
    if credentials is not None:
        yield {"text": "Signing"}
        sign(target, order["title"], certificate, key)
    if target.is_dir():
        yield {"text": "Packing the pictures"}
        packed = Path(shutil.make_archive(str(target), "zip", target))
        shutil.rmtree(target)
        target = packed
    yield {"target": str(target)}
