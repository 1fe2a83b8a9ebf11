"""Clocks of media files that may jump, made steady: packets of pictures, and of the sound beside them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import av

_LARGEST_STEP = 10.0
"""Seconds that a clock may go on at once, of files whose clock may jump; FFmpeg's programs use the same."""
_LARGEST_STEP_BACK = 0.1
_MAY_JUMP = 0x0200
"""FFmpeg's AVFMT_TS_DISCONT: MPEG-TS, MPEG-PS and Ogg."""


def jumps(container: av.container.InputContainer) -> bool:
    """Whether the clock of a file of this kind may jump: two recordings in one, or a break in the reception."""
    return bool(container.format.flags & _MAY_JUMP)


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


def steady_packets(container: av.container.InputContainer, stream: Any) -> Iterator[Any]:
    """A stream's packets in turn, on a clock that does not jump."""
    packets = container.demux(stream)
    yield from map(_Steady(stream).moved, packets) if jumps(container) else packets


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
