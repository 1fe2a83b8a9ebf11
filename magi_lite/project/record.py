"""`project.json`: what is known of a run besides its seconds, read once and replaced whole."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

from magi_lite.errors import InputError, MagiLiteError
from magi_lite.files import write_atomic
from magi_lite.project.tensors import short_digest
from magi_lite.request.checks import check_values
from magi_lite.request.json import request_from_json, request_to_json
from magi_lite.request.request import OPTIONS, GenerationRequest
from magi_lite.timeline import Segment
from magi_lite.timeline.edit import with_pictures
from quant.storage.files import parse_json, read_small

VERSION = 1
_CHECKED = ("request", "parent", "history", "autoencoder")
"""What has a checksum: all that decides how a run goes on, where one figure for another would go unseen."""
_LATER = _ORIGIN, _ASKED, _MADE = "origin", "asked", "made"
"""Have one, too, where they are there: earlier versions wrote none."""
PREFIX_NAME = "prefix.safetensors"
"""In `inputs`: latents that the video starts from, kept by whoever encoded them; a branch takes them along."""
PICTURE_NAME = "picture-{}.safetensors"
"""The same of a block's picture, by the beginning of its checksum."""
_OWN_NAMES = re.compile(r"\..*|prefix\.safetensors|picture-.*\.safetensors|[0-9a-f]{12}-.*", re.IGNORECASE | re.DOTALL)
"""In `inputs`: hidden files, latents, and copies of blocks' pictures; some disks know no upper case."""
_DECIDE = ("timeline", "seconds", "scheme", "kv_dtype", "t5")
"""Options that may change in a run that is there and decide the bits of its later seconds; the rest is rounding."""
Status = Literal["running", "paused", "stopped", "finished", "failed", "interrupted"]


@dataclass(frozen=True)
class Record:
    """Content of a `project.json`."""

    request: GenerationRequest
    """As it stands now, its timeline as edited; its picture or clip is the run's own copy."""
    status: Status
    """As last set; "running" says nothing about whether its process still lives."""
    message: str
    """Why it failed, in one sentence; empty otherwise."""
    created: str
    """UTC, ISO 8601."""
    parent: dict[str, Any] | None
    """Of a version: `project` (name of the run it was made from) and `from` (its first second of its own)."""
    history: tuple[dict[str, Any], ...]
    """What was done: `at` (UTC), `from` (second), `what` (created, branched, timeline, extended, moved, ...).

    "extended" has `started`, how many seconds had started by then, and `seconds`, the length until then; `from` is the
    old end.
    """
    autoencoder: str | None = None
    """What tells the autoencoder that made its latents from others; None: not recorded, as in 0.1.0."""
    origin: str = ""
    """What second 0 was made of, see `origin_of`; a version that keeps it keeps this. Empty: an earlier version's."""
    asked: tuple[tuple[int, str], ...] = ()
    """What was asked for: a second, and a digest of what holds from it on and of what held before; in order.

    Runs that share their first seconds share the first entries. Seconds before the first entry were made by an earlier
    version of this program, which wrote none.
    """

    made: tuple[str, ...] = ()
    """For each second what tells its latents and its frames from those of any other run, see `seconds.Seconds`.

    Empty for seconds of an earlier version of this program, which kept no list.
    """

    def listed(self, second: int) -> str | None:
        """What `made` has of a second; empty: not known; None: the run made none, for all that it made are listed."""
        if second < len(self.made):
            return self.made[second]
        keeps_list = bool(self.made) or (bool(self.asked) and not self.asked[0][0])
        return None if keeps_list else ""

    def making(self, second: int, made: str) -> Record:
        """The record with an entry of `made`."""
        before = (*self.made, *([""] * (second - len(self.made))))
        return replace(self, made=(*before[:second], made, *before[second + 1 :]))

    def asked_for(self, second: int) -> str:
        """The digest that holds for a second; empty: not known."""
        return next((digest for start, digest in reversed(self.asked) if start <= second), "")

    def asking(self, second: int, old: GenerationRequest | None) -> Record:
        """The record with what its request asks for from a second on, where none is made, put into `asked`.

        Args:
            old: the request before, which `asked` tells; None: there was none.
        """
        before = tuple(entry for entry in self.asked if entry[0] < second)
        content = _content_of(self.request)
        if before == self.asked and old is not None and content == _content_of(old):
            return self
        told = [before[-1][1] if before else "", second, content]
        entry = (second, short_digest(json.dumps(told, sort_keys=True).encode()))
        return replace(self, asked=(*before, entry))

    def then(self, what: str, second: int, more: dict[str, Any] | None = None, **changes: Any) -> Record:
        """The record with `changes` and an entry in its history, which holds `more` besides."""
        entry = {"at": now(), "what": what, "from": second, **(more or {})}
        return replace(self, history=(*self.history, entry), **changes)


def new_record(request: GenerationRequest, parent: dict[str, Any] | None) -> Record:
    """The record of a run that begins, or of a version of `parent`."""
    empty = Record(request, "running", "", now(), parent, ())
    return empty.then("branched", parent["from"]) if parent else empty.then("created", 0)


def read_record(folder: Path) -> Record:
    """The checked content of a folder's project.json.

    Raises:
        InputError: the folder is no run, or the file is damaged or of a newer version.
    """
    path = folder / "project.json"
    try:
        data = parse_json(read_small(path))
        version = data["version"]
        if version != VERSION:
            raise InputError(f"it was made by another version of the program (format {version!r}).")
        kinds: dict[str, Any] = {
            "created": str,
            "status": str,
            "message": str,
            "history": list,
            "parent": (dict, type(None)),
        }
        if not all(isinstance(data[key], kind) for key, kind in kinds.items()):
            raise ValueError("a value of the wrong kind")
        _check_history(data["history"], data["parent"])
        autoencoder = data.get("autoencoder")
        if not isinstance(autoencoder, (str, type(None))):
            raise ValueError("a value of the wrong kind")
        origin = data.get(_ORIGIN, "")
        if not isinstance(origin, str):
            raise ValueError("a value of the wrong kind")
        values = {key: data[key] for key in kinds} | {"history": tuple(data["history"])}
        values |= {"autoencoder": autoencoder, "origin": origin, "asked": _read_asked(data.get(_ASKED, []))}
        values["made"] = tuple(data.get(_MADE, ()))
        if not all(isinstance(made, str) for made in values["made"]):
            raise ValueError("a value of the wrong kind")
        record = Record(request=_with_own_inputs(request_from_json(data["request"]), folder), **values)
        if record.status not in get_args(Status):
            record = replace(record, status="interrupted")
        if "checksum" not in data:  # as earlier versions wrote it
            check_values(record.request)
        elif data["checksum"] != _checksum(data):
            raise ValueError("a value that nobody wrote")
    except OSError as error:
        if error.errno == errno.EACCES:
            raise InputError(f"There is no permission to read {path}.") from None
        raise InputError(f"{folder} is not a project; it holds no project.json.") from None
    except MagiLiteError as error:
        raise InputError(f"{folder.name} cannot be opened: {error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        video = folder / "video.mp4"
        cure = f"; its settings are also in {video}, and --settings makes it again" if video.is_file() else ""
        raise InputError(f"{folder.name} cannot be opened: its project.json is damaged{cure}.") from None
    return record


def _read_asked(data: Any) -> tuple[tuple[int, str], ...]:
    """Raises ValueError or TypeError where it is not what `write_record` wrote."""
    asked = tuple((second, digest) for second, digest in data)
    if not all(type(second) is int and second >= 0 and isinstance(digest, str) for second, digest in asked):
        raise ValueError("a value of the wrong kind")
    return asked


def _check_history(history: list[Any], parent: dict[str, Any] | None) -> None:
    """Raises ValueError, KeyError or TypeError where what is read of them later is missing or of the wrong kind."""
    whole = [entry["from"] for entry in history] + ([parent["from"]] if parent else [])
    texts = [entry["what"] for entry in history] + ([parent["project"]] if parent else [])
    for entry in history:
        if entry["what"] == "extended" and "started" in entry:
            whole += [entry["started"]] + ([] if entry["seconds"] is None else [entry["seconds"]])
    if not all(type(second) is int for second in whole) or not all(isinstance(text, str) for text in texts):
        raise ValueError("a value of the wrong kind")


def write_record(folder: Path, record: Record) -> None:
    """Replace project.json.

    Raises:
        OutputError: the disk refuses.
    """
    data = {"version": VERSION, "created": record.created, "status": record.status, "message": record.message}
    data |= {"parent": record.parent, "request": request_to_json(record.request), "history": list(record.history)}
    if record.autoencoder:
        data["autoencoder"] = record.autoencoder
    if record.origin:
        data[_ORIGIN] = record.origin
    if record.asked:
        data[_ASKED] = [list(entry) for entry in record.asked]
    if record.made:
        data[_MADE] = list(record.made)
    data["checksum"] = _checksum(data)
    write_atomic(folder / "project.json", json.dumps(data, indent=1).encode())


def _checksum(data: dict[str, Any]) -> str:
    """SHA-256 over what is `_CHECKED`, as JSON with sorted keys."""
    checked = {name: data.get(name) for name in _CHECKED}
    checked |= {name: data[name] for name in _LATER if name in data}
    return hashlib.sha256(json.dumps(checked, sort_keys=True).encode()).hexdigest()


def origin_of(request: GenerationRequest) -> str:
    """A short digest of what decides what second 0 becomes: settings, prompts and picture.

    Equal requests have the same, so that they make equal files.
    """
    data = request_to_json(request, paths=False)
    for option in OPTIONS.values():  # where things lie, and what a run may change where it goes on
        if option.field and (option.kind == "path" or option.changes == "resume"):
            del (data[option.part] if option.part else data)[option.field]
    shot = request.timeline.shots(request.seconds)[0]
    begins = [request.timeline.prompt_for(0).parts, shot.image_sha256]
    return short_digest(json.dumps([data, begins], sort_keys=True).encode())


def _content_of(request: GenerationRequest) -> dict[str, Any]:
    """All of a request that decides what seconds become, as JSON; where things lie does not."""
    timeline = with_pictures(
        request.timeline, lambda s: replace(s, image=Path(s.image_sha256 or (s.image or Path()).name))
    )
    data = request_to_json(replace(request, timeline=replace(timeline, markers=())), paths=False)
    for option in OPTIONS.values():
        free = option.changes == "resume" and option.name not in _DECIDE
        if option.field and (option.kind == "path" or free):
            del (data[option.part] if option.part else data)[option.field]
    return data


def now() -> str:
    """UTC, ISO 8601, whole seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def name_of_copy(path: Path) -> str:
    """What a run calls its copy of the picture or clip that it starts from: its name, if that is not one of ours."""
    return f"start-{path.name[-60:]}" if _OWN_NAMES.fullmatch(path.name) else path.name


def _with_own_inputs(request: GenerationRequest, folder: Path) -> GenerationRequest:
    """The request with its picture or clip where the run keeps its copy, if it does."""
    own: dict[str, Any] = {}
    for name in ("image", "video"):
        path = getattr(request, name)
        for called in (name_of_copy(path), path.name) if path else ():  # earlier versions took every name
            if name not in own and (folder / "inputs" / called).is_file():
                own[name] = folder / "inputs" / called

    def moved(segment: Segment) -> Segment:
        copy = folder / "inputs" / (segment.image or folder).name
        return replace(segment, image=copy) if copy.is_file() else segment

    return replace(request, **own, timeline=with_pictures(request.timeline, moved))
