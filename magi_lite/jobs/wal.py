"""Whether the log beside a sqlite file would be read to its end.

After a kill the last changes are in the log alone. sqlite reads it up to the first damage and says nothing of the rest,
which may be all jobs. Format: https://www.sqlite.org/fileformat2.html#walformat
"""

from __future__ import annotations

import struct
from pathlib import Path

from quant.storage.files import read_small

_HEADER, _FRAME = 32, 24
_BYTE_ORDER = {0x377F0682: "<", 0x377F0683: ">"}
"""Of the words that are summed, by the number that a log begins with."""
_LARGEST = 16 << 20
"""Bytes that are summed up, in half a second; sqlite lets a log grow to a quarter of it."""


def is_whole(path: Path) -> bool:
    """Whether every part of a log is as it was written; one that is too large to look through counts as whole.

    What an earlier round left behind the present one's end is no part of it. Raises OSError.
    """
    try:
        data = memoryview(read_small(path, _LARGEST))
    except ValueError:
        return True
    if len(data) < _HEADER:
        return False
    magic, _, page = struct.unpack(">3I", data[:12])
    order = _BYTE_ORDER.get(magic)
    if order is None or not 512 <= page <= 65536 or page & (page - 1):
        return False
    sums = _summed(data[:24], order, (0, 0))
    if sums != struct.unpack(">2I", data[24:_HEADER]):
        return False
    salt, place = data[16:24], _HEADER
    while place + _FRAME <= len(data) and data[place + 8 : place + 16] == salt:
        frame = data[place : place + _FRAME + page]
        sums = _summed(frame[:8], order, sums)
        sums = _summed(frame[_FRAME:], order, sums) if len(frame) == _FRAME + page else (-1, -1)
        if sums != struct.unpack(">2I", frame[16:_FRAME]):
            return False
        place += _FRAME + page
    behind = (data[at + 8 : at + 16] for at in range(place, len(data) - _FRAME + 1, _FRAME + page))
    return place > _HEADER and not any(found == salt for found in behind)


def _summed(data: memoryview, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    """The format's running checksum over more bytes, a multiple of eight."""
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
