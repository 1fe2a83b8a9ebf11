"""Standard output and error as they may be: of a code page without our characters, closed, or on a full disk.

What is printed to stderr tells how the work goes and must never end it: where it cannot be written, it is dropped. What
is printed to stdout is the answer: where it cannot be written, an error says so after the work is done.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

from magi_lite.errors import OutputError

_PLAIN = str.maketrans(
    {"×": "x", "…": "...", "–": "-", "—": "-", "“": '"', "”": '"', "‘": "'", "’": "'", "▏": "|", "▕": "|", "→": "->"}
    | dict.fromkeys("█▉▊▋▌", "#")
    | dict.fromkeys("▍▎░", "-")
)
"""What stands in for our own characters where an encoding lacks them."""


def printable(text: str, encoding: str) -> str:
    """The text as an encoding can write it: characters that look alike, else escapes such as \\u732b."""
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        return text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)


class Stream:
    """A standard stream that prints what it can.

    Args:
        forgiving: drop what cannot be written; else raise `OutputError`.
    """

    def __init__(self, stream: Any, *, forgiving: bool) -> None:
        self._stream, self._forgiving = stream, forgiving

    def write(self, text: str) -> int:
        with self._refusals():
            self._stream.write(printable(text, self._stream.encoding or "utf-8"))
        return len(text)

    def flush(self) -> None:
        with self._refusals():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: it was closed
            if isinstance(error, BrokenPipeError) and not self._forgiving:
                raise
            self.drop()
            if not self._forgiving:
                reason = getattr(error, "strerror", None) or error
                raise OutputError(f"What was to be printed cannot be written ({reason}).") from None

    def drop(self) -> None:
        """From now on nothing is written: what waits in the buffer would fail again when the program ends."""
        with contextlib.suppress(OSError, ValueError, AttributeError, io.UnsupportedOperation):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Standard output and error that print what they can, for the block.

    Raises:
        OutputError: what was printed to stdout could not be written.
    """
    _occupy()
    before = sys.stdout, sys.stderr
    out = Stream(sys.stdout or open(os.devnull, "w", encoding="utf-8"), forgiving=False)  # noqa: PTH123, SIM115
    err = Stream(sys.stderr or open(os.devnull, "w", encoding="utf-8"), forgiving=True)  # noqa: PTH123, SIM115
    sys.stdout, sys.stderr = out, err
    try:
        yield
        out.flush()
    finally:
        err.flush()
        sys.stdout, sys.stderr = before


def _occupy() -> None:
    """Give closed standard descriptors to the null device: else the next file opened, a video even, would get one."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
