"""Frames: what goes in comes out, and what is no frame is refused."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from magi_lite import errors, events
from magi_lite.workers import wire

SENT: list[events.Event] = [
    events.Opened(Path("/a/b c"), Path("/a/ü.mp4")),
    events.PhaseStarted("load", "Loading “demo”"),
    events.Progress(3, None, 1, 8, None, 1.5, None),
    events.Progress(0, 9, 8, 8, 1.0, 0.0, 2.25, 4),
    events.ChunkFinished(4, None, 0.125),
    events.Notice("a\nb", "warning"),
    events.Redirected(7),
    events.Finished(Path("v.mp4"), None, 4, 9.5),
    events.Stopped(None, Path("p"), 0, "paused"),
]


def through(event: events.Event) -> events.Event:
    pipe = io.BytesIO()
    packed = wire.pack(event)
    assert packed is not None
    wire.Sender(pipe).send(*packed)  # type: ignore[arg-type]
    pipe.seek(0)
    frame = wire.read_frame(pipe)
    assert frame is not None and wire.read_frame(pipe) is None
    return wire.unpack(*frame)


@pytest.mark.parametrize("event", SENT, ids=lambda event: type(event).__name__)
def test_events_come_out_as_they_went_in(event: events.Event) -> None:
    assert through(event) == event


def test_every_kind_of_event_is_known() -> None:
    here = {type(event) for event in SENT} | {events.Preview, events.MovingPreview, events.PlanReady}
    assert here == set(get_args(events.Event))
    assert wire.pack(events.PlanReady(object())) is None


def test_a_preview_keeps_its_pixels_and_a_second_leaves_its_frames() -> None:
    image = np.random.default_rng().integers(0, 256, (13, 29, 3)).astype(np.uint8)
    assert np.array_equal(through(events.Preview(1, image[:, ::-1])).image, image[:, ::-1])  # type: ignore[union-attr]
    packed = wire.pack(events.ChunkFinished(0, np.zeros((24, 64, 64, 3), np.uint8), 1.0))
    assert packed is not None and packed[1] == b"" and packed[0]["frames"] is None


@pytest.mark.parametrize(
    "error", [errors.OutOfMemory("full"), errors.PlanError("no", ("a", "b")), errors.InputError("x")]
)
def test_our_errors_come_out_as_themselves(error: errors.MagiLiteError) -> None:
    out = wire.unpack_error(wire.pack_error(error))
    assert type(out) is type(error) and str(out) == str(error)
    assert getattr(out, "choices", ()) == getattr(error, "choices", ())


def test_other_errors_say_what_they_were() -> None:
    out = wire.unpack_error(wire.pack_error(ZeroDivisionError("oops")))
    assert isinstance(out, RuntimeError) and str(out) == "ZeroDivisionError: oops"
    forged = wire.unpack_error({"error": "annotations", "message": "m", "ours": True})
    assert type(forged) is errors.MagiLiteError


def test_noise_is_no_frame() -> None:
    for _ in range(500):
        noise = random.randbytes(random.randrange(60))
        try:
            frame = wire.read_frame(io.BytesIO(noise))
        except wire.BrokenFrame:
            continue
        assert frame is None or isinstance(frame[0], dict)
    for head in ((1 << 31, 0), (0, 1 << 31)):
        with pytest.raises(wire.BrokenFrame):
            wire.read_frame(io.BytesIO(struct.pack("<II", *head) + b"x"))
    for message in (
        {},
        {"event": "os.system"},
        {"event": "Opened"},
        {"event": "Preview", "chunk": 0, "image": [9, 9, 3]},
    ):
        with pytest.raises(wire.BrokenFrame):
            wire.unpack(message, b"")


def test_a_sender_whose_other_side_has_gone_is_deaf() -> None:
    class Gone(io.BytesIO):
        def write(self, _: object) -> int:
            raise BrokenPipeError

    sender = wire.Sender(Gone())
    sender.send({"a": 1})
    sender.send({"a": 2})
    assert sender.broken
