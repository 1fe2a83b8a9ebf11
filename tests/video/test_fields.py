"""H.264 whose fields are pictures of their own (PAFF), as television and camcorders write it.

No encoder at hand writes such streams, so this one does: macroblocks without compression (I_PCM), headers by ITU-T
H.264, section 7.3.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from magi_lite.video.clips import read_tail, read_whole

SIDE, FRAMES, RATE = 64, 50, 25


class Bits:
    """A bit string that is written."""

    def __init__(self) -> None:
        self.text = ""

    def put(self, *fields: tuple[int, int]) -> Bits:
        """Values, each with its number of bits; 0: an Exp-Golomb code."""
        for value, bits in fields:
            code = f"{value + 1:b}"
            self.text += f"{value:0{bits}b}" if bits else "0" * (len(code) - 1) + code
        return self

    def end(self) -> bytes:
        """Filled to a whole byte."""
        self.text += "0" * (-len(self.text) % 8)
        return int(self.text, 2).to_bytes(len(self.text) // 8, "big")


def unit(head: int, payload: bytes) -> bytes:
    """A NAL unit with its start code."""
    out, zeros = bytearray(), 0
    for byte in payload:
        if zeros >= 2 and byte <= 3:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = 0 if byte else zeros + 1
    return b"\0\0\0\1" + bytes([head]) + bytes(out)


def headers() -> bytes:
    """Parameter sets: Main profile, fields allowed, no deblocking between them."""
    sequence = Bits().put((77, 8), (0, 8), (30, 8), (0, 0), (0, 0), (0, 0), (4, 0), (2, 0), (0, 1))
    sequence.put((SIDE // 16 - 1, 0), (SIDE // 32 - 1, 0), (0, 1), (0, 1), (1, 1), (0, 1))
    sequence.put((1, 1), (0, 4), (1, 1), (1, 32), (2 * RATE, 32), (1, 1), (0, 4), (1, 1))
    picture = Bits().put((0, 0), (0, 0), (0, 2), (0, 0), (0, 0), (0, 0), (0, 3), (0, 0), (0, 0), (0, 0), (1, 1), (0, 2))
    return unit(0x67, sequence.end()) + unit(0x68, picture.put((1, 1)).end())


def field(number: int) -> bytes:
    """One field: even lines of a frame, then odd ones; a bar that moves with every field."""
    luma = np.full((SIDE // 2, SIDE), 40, np.uint8)
    luma[:, number % 48 : number % 48 + 12] = 220
    frame, bottom = divmod(number, 2)
    head = Bits().put((0, 0), (7, 0), (0, 0), (frame % 16, 4), (1, 1), (bottom, 1))
    head.put(*([(0, 0)] if number == 0 else []), (number % 256, 8))
    head.put(*([(0, 2)] if number == 0 else [(0, 1)]), (0, 0), (1, 0))
    data = b""
    for top in range(0, SIDE // 2, 16):
        for left in range(0, SIDE, 16):
            data += head.put((25, 0)).end() + luma[top : top + 16, left : left + 16].tobytes() + bytes([128]) * 128
            head = Bits()
    return unit(0x65 if number == 0 else 0x41, data + b"\x80")


def written(path: Path, container: str, together: bool) -> Path:
    """Two seconds in a container, a packet for each frame or for each field."""
    raw = path.with_suffix(".h264")
    raw.write_bytes(headers() + b"".join(field(number) for number in range(2 * FRAMES)))
    if container == "h264":
        return raw
    with av.open(str(raw)) as source, av.open(str(path), "w", format=container) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for number in range(FRAMES if together else 2 * FRAMES):
            data = field(2 * number) + field(2 * number + 1) if together else field(number)
            packet = av.Packet((headers() if number == 0 or container == "mpegts" else b"") + data)
            packet.duration = 90000 // RATE // (1 if together else 2)
            packet.pts = packet.dts = number * packet.duration
            packet.time_base, packet.is_keyframe, packet.stream = Fraction(1, 90000), number == 0, stream
            output.mux(packet)
    return path


KINDS = [("h264", False), ("avi", False), *((name, both) for name in ("mpegts", "mp4", "matroska") for both in (0, 1))]


@pytest.mark.parametrize(("container", "together"), KINDS)
def test_fields_become_frames(tmp_path: Path, container: str, together: bool) -> None:
    path = written(tmp_path / "a.clip", container, together)
    tail, facts = read_tail(path, (SIDE, SIDE), "stretch", 24)
    assert abs(facts.seconds - FRAMES / RATE) < 0.05 and tail.shape == (24, SIDE, SIDE, 3)
    assert np.abs(tail[:, ::2].astype(int) - tail[:, 1::2]).max(-1).mean() < 2, "lines of two moments stand in a frame"
    whole = [*read_whole(path, (SIDE, SIDE), "stretch").frames]
    assert len(whole) == 48 and (np.stack(whole[-24:]) == tail).all()
    left = [int((frame[20, :, 0] > 130).argmax()) for frame in whole]
    moved = np.diff(left)[np.diff(left) > -20]  # the bar begins anew at the left
    assert moved.min() >= 1 and moved.max() <= 5, "frames follow each other evenly"
