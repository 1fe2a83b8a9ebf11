"""A project folder as it lies on disk: names, reading, and the small steps that writing is made of.

The layout, and why it survives crashes, stands in `project`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from magi_lite.errors import InputError, MagiLiteError
from magi_lite.files import output_errors, write_atomic
from magi_lite.request.json import request_from_json, request_to_json
from magi_lite.request.request import GenerationRequest
from quant.storage.lock import is_locked

if TYPE_CHECKING:
    from torch import Tensor

LOCK_NAME = ".lock"
VERSION = 1
Status = Literal["running", "paused", "stopped", "finished", "failed", "interrupted"]
_AGAIN = 4
"""Finished seconds that are rather computed again than left to a prefix: the same bits for a moment's work."""
_STALE_SECONDS = 3600
"""Hidden folders older than this are left from a crash, not in the making."""


@dataclass(frozen=True, eq=False)
class SavedState:
    """A sampler's state after stage `stage`; `stage + 1` seconds had entered the window by then."""

    stage: int
    position: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def seconds(self) -> int | None:
        """New seconds of the video that it was made for; None: endless."""
        total = self.position["total"]
        return None if total is None else total - self.position["offset"] + self.position.get("kept", 0)


class ProjectFiles:
    """What can be read of a project, without a lock and while another process writes it.

    Args:
        folder: of the project.
        data: content of its project.json.
    """

    def __init__(self, folder: Path, data: dict[str, Any]) -> None:
        self.folder, self._data = folder, data

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def created(self) -> str:
        """UTC, ISO 8601."""
        return self._data["created"]

    @property
    def request(self) -> GenerationRequest:
        """The request as it stands now; its image or clip is the project's own copy."""
        request = request_from_json(self._data["request"])
        own = {}
        for name in ("image", "video"):
            path = getattr(request, name)
            if path and (self.folder / "inputs" / path.name).is_file():
                own[name] = self.folder / "inputs" / path.name
        return replace(request, **own)

    @property
    def status(self) -> Status:
        """As last set; "interrupted" where a run was going on and its process is gone."""
        status = self._data["status"]
        return "interrupted" if status == "running" and not is_locked(self.folder / LOCK_NAME) else status

    @property
    def message(self) -> str:
        """Why it failed, in one sentence; empty otherwise."""
        return self._data["message"]

    @property
    def history(self) -> tuple[dict[str, Any], ...]:
        """What was done: `at` (UTC), `from` (second), `what` (created, branched, timeline, extended, moved, ...)."""
        return tuple(self._data["history"])

    @property
    def parent(self) -> dict[str, Any] | None:
        """`project` (its name) and `from` (second) of a branch."""
        return self._data["parent"]

    @property
    def video(self) -> Path:
        """The growing video: a fragmented MP4 with every finished second."""
        return self.folder / "video.mp4"

    @property
    def chunks(self) -> int:
        """Finished seconds on disk."""
        names = {path.name for path in (self.folder / "chunks").iterdir()}
        count = 0
        while {f"{count:05}.safetensors", f"{count:05}.m4s"} <= names:
            count += 1
        return count

    @property
    def mime(self) -> str:
        """The video's type for a MediaSource player."""
        from magi_lite.video import fragments

        return fragments.mime(fragments.scan(self.video).init)

    def thumbnail(self, chunk: int) -> Path:
        """The strip of thumbnails of a finished second (JPEG)."""
        return self._chunk(chunk, "jpg")

    def read_latents(self, index: int) -> Tensor:
        """Latents (1, C, t, H, W) of a finished second.

        Raises:
            InputError: it does not exist or is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        if not 0 <= index < self.chunks:
            raise InputError(f"{self.name} has no finished second {index}; it has {self.chunks}.")
        try:
            return load(self._chunk(index, "safetensors").read_bytes())["latents"]
        except (SafetensorError, KeyError):
            raise InputError(f"The latents of second {index} in {self.name} are damaged; redo from there.") from None

    def latent_shape(self, index: int) -> tuple[int, ...]:
        """The shape of a finished second's latents, from the file's header.

        Raises:
            InputError: they are damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._chunk(index, "safetensors"), "pt") as file:
                return tuple(file.get_slice("latents").get_shape())
        except (SafetensorError, OSError):
            raise InputError(f"The latents of second {index} in {self.name} are damaged; redo from there.") from None

    def read_fragment(self, index: int) -> bytes:
        """The encoded frames of a finished second, as they stand in the video."""
        return self._chunk(index, "m4s").read_bytes()

    def latest_state(self) -> SavedState | None:
        """The newest state from which the finished seconds are found again bit for bit, or None.

        Their number is on disk, few of them come again, and those that do are asked for as they were then.
        """
        request, chunks = self.request, self.chunks

        def fits(stage: int) -> bool:
            clean = max(0, stage + 2 - request.window)
            clean = clean if request.seconds is None else min(clean, request.seconds)
            return clean <= chunks <= clean + self._few and stage + 1 >= min(chunks, self._changed_at)

        for stage in filter(fits, reversed(self._stages())):
            state = self._read_state(stage)
            if state:
                return state
        return None

    @property
    def restarts(self) -> bool:
        """Whether, with no state, the run begins anew and finds its finished seconds again bit for bit."""
        return not self.chunks or (not self._changed_at and self.chunks <= self._few)

    @property
    def _few(self) -> int:
        """Finished seconds that may be computed again; a crash costs one, a window that fills anew its length."""
        return max(_AGAIN, self.request.window)

    @property
    def _changed_at(self) -> int:
        """Seconds before this one were, or may have been, asked for otherwise than the request asks now."""
        return max((e["from"] for e in self.history if e["what"] in ("branched", "redone", "extended")), default=0)

    def state_before(self, chunk: int) -> SavedState | None:
        """The state from which second `chunk` is the next to enter the window; None if not there, or chunk is 0."""
        return self._read_state(chunk - 1) if chunk - 1 in self._stages() else None

    def size(self) -> dict[str, int]:
        """Bytes by kind (`latents`, `states`, `video`, `other`), and `shared`: of these, shared with a branch."""
        sizes = dict.fromkeys(("latents", "states", "video", "other", "shared"), 0)
        for path in self.folder.rglob("*"):
            if not path.is_file():
                continue
            found = path.stat()
            kind = {"states": "states", "chunks": "latents"}.get(path.parent.name, "other")
            if path.suffix in (".m4s", ".mp4") and path.parent.name != "inputs":
                kind = "video"
            sizes["other" if path.suffix == ".jpg" else kind] += found.st_size
            sizes["shared"] += found.st_size if found.st_nlink > 1 else 0
        return sizes

    def _chunk(self, index: int, kind: str) -> Path:
        return self.folder / "chunks" / f"{index:05}.{kind}"

    def _state(self, stage: int) -> Path:
        return self.folder / "states" / f"{stage:05}.safetensors"

    def _stages(self) -> list[int]:
        files = (self.folder / "states").glob("*.safetensors")
        return sorted(int(path.stem) for path in files if path.stem.isdigit())

    def _read_state(self, stage: int) -> SavedState | None:
        """The state after `stage`; None if the file is damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._state(stage), "pt") as file:
                position = json.loads((file.metadata() or {})["position"])
                return SavedState(stage, position, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError, OSError):
            return None


# --- steps of writing ------------------------------------------------------------------------------------------------


def read_json(folder: Path) -> dict[str, Any]:
    """The checked content of a project.json.

    Raises:
        InputError: the folder is no project, or the file is damaged or of a newer version.
    """
    path = folder / "project.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["version"]
        if version != VERSION:
            raise InputError(f"it was made by another version of the program (format {version!r}).")
        kinds = {"created": str, "status": str, "message": str, "history": list, "parent": (dict, type(None))}
        if not all(isinstance(data[key], kind) for key, kind in kinds.items()):
            raise ValueError("a value of the wrong kind")
        request_from_json(data["request"])
    except OSError as error:
        if error.errno == errno.EACCES:
            raise InputError(f"There is no permission to read {path}.") from None
        raise InputError(f"{folder} is not a project; it holds no project.json.") from None
    except MagiLiteError as error:
        raise InputError(f"{folder.name} cannot be opened: {error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{folder.name} cannot be opened: its project.json is damaged.") from None
    if not (folder / "chunks").is_dir() or not (folder / "states").is_dir():
        raise InputError(f"{folder.name} cannot be opened: its chunks or states folder is missing.")
    return data


def write_json(folder: Path, data: dict[str, Any]) -> None:
    """Replace project.json."""
    write_atomic(folder / "project.json", json.dumps(data, indent=1).encode())


def make_folder(
    root: Path, request: GenerationRequest, parent: dict[str, Any] | None, fill: Callable[[Path], None]
) -> Path:
    """Build a project's folder under a hidden name, let `fill` put files in, and rename it when it is whole."""
    name = _new_name(request)
    hidden, folder = root / f".new-{name}", root / name
    entry = {"at": now(), "what": "branched" if parent else "created", "from": parent["from"] if parent else 0}
    data = {"version": VERSION, "created": now(), "status": "running", "message": "", "parent": parent}
    try:
        with output_errors(folder):
            root.mkdir(parents=True, exist_ok=True)
            remove_leftovers(root)
            for part in ("chunks", "states", "inputs"):
                (hidden / part).mkdir(parents=True)
            for path in (request.image, request.video):
                if path and path.is_file():
                    shutil.copyfile(path, hidden / "inputs" / path.name)
            fill(hidden)
        write_json(hidden, data | {"request": request_to_json(request), "history": [entry]})
        with output_errors(folder):
            hidden.rename(folder)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    return folder


def link(source: Path, target: Path) -> None:
    """Share a file that is never changed in place, or copy it where the disk cannot share."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def remove_leftovers(root: Path) -> None:
    """Delete what crashed processes left hidden under `root`."""
    for folder in [*root.glob(".new-*"), *root.glob(".trash-*")]:
        with contextlib.suppress(OSError):  # its maker may just have given it its name
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def now() -> str:
    """UTC, ISO 8601, whole seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _new_name(request: GenerationRequest) -> str:
    """Time, first words, and four random digits: sorts by time and never meets another."""
    words = request.timeline.global_prompt or next((s.prompt for s in request.timeline.segments), "")
    slug = "-".join(re.findall(r"[a-z0-9]+", words.lower())[:4])[:32] or "video"
    return f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{slug}-{secrets.token_hex(2)}"
