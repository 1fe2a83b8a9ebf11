"""How the app and a worker talk: frames of JSON with raw bytes behind it, over a pipe.

Nothing is pickled: a frame is 4 bytes with the length of its JSON, 4 with the length of its bytes, then both. A worker
sends {"event": name, its fields}, {"error": name, "message"}, {"memory": ...} or {"done"}; the app sends {"do": verb}.
"""

from __future__ import annotations

import contextlib
import json
import queue
import struct
import threading
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, get_args

import numpy as np

from magi_lite import errors, events
from quant.storage.files import parse_json

LARGEST = 1 << 26
"""Bytes of one part of a frame: a preview has a thousandth, an hour's timeline a hundredth of it."""
_LENGTHS = struct.Struct("<II")
_EVENTS = {kind.__name__: kind for kind in get_args(events.Event)}
_PATHS = {"project", "video"}
Message = dict[str, Any]


class BrokenFrame(Exception):
    """What came through the pipe is no frame; the other side is not to be trusted any more."""


class Sender:
    """Writes frames; any thread may. After the first failure it is deaf: the other side has gone."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe, self._lock = pipe, threading.Lock()
        self.broken = False

    def send(self, message: Mapping[str, Any], data: bytes = b"") -> None:
        """One frame; nothing happens where the other side has gone."""
        text = json.dumps(message).encode()
        with self._lock:
            if self.broken:
                return
            try:
                self._pipe.write(_LENGTHS.pack(len(text), len(data)) + text + data)
                self._pipe.flush()
            except (OSError, ValueError):
                self.broken = True


class Outbox:
    """A sender that never waits: a thread of its own writes, so that one who does not read holds up nobody."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe, self._sender = pipe, Sender(pipe)
        self._waiting: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        threading.Thread(target=self._write, daemon=True).start()

    @property
    def broken(self) -> bool:
        """Whether the other side has gone."""
        return self._sender.broken

    def send(self, message: Message) -> None:
        """One frame, some time."""
        self._waiting.put(message)

    def close(self) -> None:
        """End the pipe behind what was sent."""
        self._waiting.put(None)

    def _write(self) -> None:
        while (message := self._waiting.get()) is not None:
            self._sender.send(message)
        with contextlib.suppress(OSError):
            self._pipe.close()


def read_frame(pipe: BinaryIO) -> tuple[Message, bytes] | None:
    """The next frame; None where the pipe has ended.

    Raises:
        BrokenFrame: it makes no sense.
    """
    try:
        head = pipe.read(_LENGTHS.size)
        if len(head) < _LENGTHS.size:
            return None
        sizes = _LENGTHS.unpack(head)
        if max(sizes) > LARGEST:
            raise BrokenFrame
        parts = [pipe.read(size) for size in sizes]
    except (OSError, ValueError):
        return None
    if [len(part) for part in parts] != list(sizes):
        return None
    try:
        message = parse_json(parts[0])
    except ValueError:
        raise BrokenFrame from None
    if not isinstance(message, dict):
        raise BrokenFrame
    return message, parts[1]


def pack(event: events.Event) -> tuple[Message, bytes] | None:
    """An event as a frame's parts; None for what stays with the worker.

    A plan is made by the app itself where it shows one, and the frames of a finished second lie in its fragment on the
    disk: neither is sent.
    """
    if isinstance(event, events.PlanReady):
        return None
    message = {"event": type(event).__name__} | {field.name: getattr(event, field.name) for field in fields(event)}
    data = b""
    if isinstance(event, events.Preview | events.MovingPreview):
        image = np.ascontiguousarray(event.image, np.uint8)
        message["image"], data = list(image.shape), image.tobytes()
    elif isinstance(event, events.ChunkFinished):
        message["frames"] = None
    for name in _PATHS & message.keys():
        message[name] = message[name] and str(message[name])
    return message, data


def unpack(message: Message, data: bytes) -> events.Event:
    """The event of a frame that `pack` made.

    Raises:
        BrokenFrame: it is of no known kind, or its fields are others.
    """
    values = dict(message)
    try:
        kind = _EVENTS[values.pop("event")]
        for name in _PATHS & values.keys():
            values[name] = values[name] and Path(values[name])
        if kind in (events.Preview, events.MovingPreview):
            values["image"] = np.frombuffer(data, np.uint8).reshape(values["image"])
        return kind(**values)
    except (KeyError, TypeError, ValueError):
        raise BrokenFrame from None


def pack_error(error: Exception) -> Message:
    """An exception by its name, with what it says."""
    return {
        "error": type(error).__name__,
        "message": str(error),
        "ours": isinstance(error, errors.MagiLiteError),
        "choices": list(getattr(error, "choices", ())),
    }


def unpack_error(message: Message) -> Exception:
    """Our own error of that name; any other as a RuntimeError that says what it was."""
    kind = getattr(errors, str(message.get("error")), None)
    text = str(message.get("message", ""))
    if message.get("ours") and isinstance(kind, type) and issubclass(kind, errors.MagiLiteError):
        return kind(text, tuple(message.get("choices", ()))) if kind is errors.PlanError else kind(text)
    if message.get("ours"):
        return errors.MagiLiteError(text)
    return RuntimeError(f"{message.get('error')}: {text}")
