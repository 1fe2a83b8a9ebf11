"""Clocks of media files, steady where they jump or begin below 0: packets of pictures, and of the sound beside them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magi_lite.video.containers import open_media

if TYPE_CHECKING:
    import av

_LARGEST_STEP = 10.0
"""Seconds that a clock may go on at once, of files whose clock may jump; FFmpeg's programs use the same."""
_LARGEST_STEP_BACK = 0.1
_HALF_CLOCK = 1 << 30
"""Milliseconds: half of what the clock of an FLV counts, as programs write it. The upper half is below 0."""
_LOWEST = 33.0
"""Seconds below 0 that a block of a Matroska file reaches at most, in the milliseconds that are usual."""
_STEP_BACK = 0.25
"""Seconds by which times go back where those that FFmpeg made up end; reordered pictures go back by less."""
_MAY_JUMP = 0x0200
"""FFmpeg's AVFMT_TS_DISCONT: MPEG-TS, MPEG-PS and Ogg."""


def jumps(container: av.container.InputContainer) -> bool:
    """Whether the clock of a file of this kind may jump: two recordings in one, or a break in the reception."""
    return bool(container.format.flags & _MAY_JUMP)


def read_in_turn(container: av.container.InputContainer) -> bool:
    """Whether a file is read from its beginning and not sought: its clock may jump, or is another one than FFmpeg's."""
    return jumps(container) or container.format.name == "flv"


def repeats(packet: Any) -> bool:
    """Whether a packet is empty and means what came before again, as in Theora and AVI; the last one is the end."""
    return not packet.size and packet.pts is not None


class _Steady:
    """A clock that may jump, made one that does not, by the packets of a stream in their order."""

    def __init__(self, stream: Any) -> None:
        self._forwards = int(_LARGEST_STEP / stream.time_base)
        self._backwards = int(_LARGEST_STEP_BACK / stream.time_base)
        self.added = 0
        """To the times of the file, in units of the stream's clock."""
        self._delay, self._expected = 0, None

    def moved(self, packet: Any) -> Any:
        """A packet with its times on this clock."""
        if packet.dts is None:
            return packet
        if packet.pts is not None and abs(packet.pts - packet.dts) <= self._forwards:
            self._delay = packet.pts - packet.dts
        elif packet.pts is not None:  # the picture's time is behind the jump already
            packet.pts = packet.dts + self._delay
        ahead = 0 if self._expected is None else packet.dts + self.added - self._expected
        if not -self._backwards <= ahead <= self._forwards:
            self.added -= ahead
        packet.dts += self.added
        packet.pts = None if packet.pts is None else packet.pts + self.added
        self._expected = packet.dts + (packet.duration or 0)
        return packet


def steady_packets(container: av.container.InputContainer, stream: Any, *, sought: bool = False) -> Iterator[Any]:
    """A stream's packets in turn, on a clock that does not jump.

    Args:
        sought: whether the file was sought, so that they are not those of its beginning.
    """
    packets = container.demux(stream)
    if jumps(container):
        yield from map(_Steady(stream).moved, packets)
    elif sought:
        yield from packets
    else:
        yield from own_times(container, stream, packets)


def own_times(container: av.container.InputContainer, stream: Any, packets: Iterator[Any]) -> Iterator[Any]:
    """A stream's packets from its beginning, with times below 0 where the file has them.

    FFmpeg's programs write those of an FLV as if its clock had 31 bits, which FFmpeg itself reads as weeks; those of a
    Matroska file it leaves out, and counts from 0 instead until it comes to 0 once more.
    """
    if container.format.name == "flv":
        yield from map(_signed, packets)
        return
    early = _made_up(container, stream) if "matroska" in container.format.name else []
    for number, packet in enumerate(packets):
        if number < len(early):
            packet.pts = packet.dts = early[number]
        yield packet


def _signed(packet: Any) -> Any:
    """A packet of an FLV with its times, in milliseconds, around 0."""
    for name in ("dts", "pts"):
        time = getattr(packet, name)
        if time is not None:
            setattr(packet, name, (time + _HALF_CLOCK) % (2 * _HALF_CLOCK) - _HALF_CLOCK)
    return packet


def _made_up(container: av.container.InputContainer, stream: Any) -> list[int]:
    """The times, in units of the stream's clock, of packets at its beginning whose times FFmpeg made up.

    The file is opened once more, for as many seconds as there can be.
    """
    path = Path(container.name)
    if not path.is_file():
        return []
    durations: list[float] = []
    expected, below, latest = 0.0, False, -math.inf
    with open_media(path) as again:
        same = again.streams[stream.index]
        usual = _usual_length(same)
        for packet in again.demux(same):
            if not packet.size or packet.pts is None or packet.pts != packet.dts:
                break
            if not durations and packet.pts < 0:
                expected, below = float(packet.pts), True
            back = packet.pts <= latest and packet.pts < latest + usual - _STEP_BACK / packet.time_base
            if back or (below and packet.pts >= 0):
                return [round(packet.pts - before) for before in itertools.accumulate(reversed(durations))][::-1]
            latest = packet.pts
            durations.append(usual or packet.duration or 0)
            expected += durations[-1]
            if expected * packet.time_base > _LOWEST:
                break
    return []


def _usual_length(stream: Any) -> float:
    """How long each packet of a stream lasts, in units of its clock, which rounds it; 0: not known."""
    if stream.type == "audio":
        context = stream.codec_context
        seconds = (context.frame_size or 0) / context.sample_rate if context and context.sample_rate else 0.0
    else:
        seconds = 1 / float(stream.average_rate) if stream.average_rate else 0.0
    return seconds / float(stream.time_base)


def sound_packets(container: av.container.InputContainer, pictures: Any, sound: Any) -> Iterator[Any]:
    """A sound's packets in turn, on the clock of the pictures beside it, see `steady_packets`: both jump together.

    What a jump of the clock adds is known with the first picture behind it, for which the sound waits.
    """
    steady = _Steady(pictures)
    offsets = [Fraction(0)]
    """Seconds that are added to the file's clock, behind the latest jump and before it."""
    expected: Fraction | None = None
    waiting: list[Any] = []

    def offset_of(packet: Any, back: float) -> Fraction | None:
        """What makes the packet follow those before it; None: nothing that is known."""
        time = packet.dts * packet.time_base
        return next((o for o in offsets if expected is None or -back <= time + o - expected <= _LARGEST_STEP), None)

    def placed(packet: Any, offset: Fraction) -> Any:
        nonlocal expected
        shift = round(offset / packet.time_base)
        packet.dts += shift
        packet.pts = None if packet.pts is None else packet.pts + shift
        expected = (packet.dts + (packet.duration or 0)) * packet.time_base
        return packet

    def late_ones() -> Iterator[Any]:
        for late in waiting:
            offset = offset_of(late, _LARGEST_STEP)
            if offset is None:  # the sound's clock has jumped alone
                assert expected is not None
                offset = expected - late.dts * late.time_base
                offsets.append(offset)
            yield placed(late, offset)
        waiting.clear()

    for packet in container.demux(pictures, sound):
        is_sound = packet.stream.index == sound.index
        if not packet.size or packet.dts is None:
            if is_sound:
                yield from late_ones()
                yield packet
        elif is_sound:
            offset = None if waiting else offset_of(packet, _LARGEST_STEP_BACK)
            if offset is None:
                waiting.append(packet)
            else:
                yield placed(packet, offset)
        else:
            steady.moved(packet)
            added = steady.added * packet.time_base
            if added != offsets[0]:
                offsets[:] = [added, offsets[0]]
            yield from late_ones()
