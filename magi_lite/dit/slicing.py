"""How a pass is cut into slices, and how many rotary tables are kept: what memory plans share with the forward.

No torch: the planner counts the slices that the forward will work on.
"""

from __future__ import annotations

CACHED_TABLES = 4
"""Rotary tables kept: the window's, the clean chunk's and the nearly clean copy's, and one of the stage before."""


class Piece(tuple[slice, slice, slice]):
    """An index into (N, chunks, tokens, ...): whole chunks, or a part of one."""

    @property
    def chunks(self) -> slice:
        return self[1]


def pieces(chunks: int, tokens: int, most: int | None) -> list[Piece]:
    """The pass in one piece, or in pieces of at most `most` tokens that do not cross a chunk's end."""
    everything = slice(None)
    if most is None or most >= chunks * tokens:
        return [Piece((everything, slice(0, chunks), slice(0, tokens)))]
    return [
        Piece((everything, slice(chunk, chunk + 1), slice(start, min(start + most, tokens))))
        for chunk in range(chunks)
        for start in range(0, tokens, most)
    ]


def largest_piece(chunks: int, tokens: int, most: int | None) -> int:
    """Tokens of the largest piece."""
    return max(
        (part[1].stop - part[1].start) * (part[2].stop - part[2].start) for part in pieces(chunks, tokens, most)
    )
