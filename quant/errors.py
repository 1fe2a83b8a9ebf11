"""What can go wrong in this package: one class per cause, each message one sentence that says what would work."""

from __future__ import annotations

import re

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line ends, what turns the direction of the text around it, and halves of characters."""


def one_line(text: str) -> str:
    """A text with what names may hold written out: line ends, codes for a terminal, changes of direction."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def brief(error: BaseException, length: int = 200) -> str:
    """What a library says of an error, in one line, cut where it is long."""
    text = one_line(str(error))
    return text if len(text) <= length else text[: length - 1] + "…"


class QuantError(Exception):
    """Something asked for cannot be quantized or loaded."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class WeightsError(QuantError):
    """Weight files are missing, damaged or of another model; the message names tensor and file."""


class DiskError(QuantError):
    """A file cannot be written: folder, permission or space."""


class LockedError(DiskError):
    """Another process is writing there."""


class Cancelled(QuantError):
    """The caller's `cancelled` answered True; what was being made is dropped."""
