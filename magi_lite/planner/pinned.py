"""How much memory is really pinned: torch rounds every pinned allocation up to a power of two.

So buffers are cut from blocks of powers of two (`streaming.PinnedMemory`). The same arithmetic tells the planner what
will be pinned, and the program what to pin.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

ALIGNMENT = 256
"""Bytes; every tensor of a packed module starts at a multiple, as kernels and CUDA's own allocator like it."""
LARGEST_BLOCK = 1 << 30
"""Bytes pinned at a time, at most: while layers move into a block, they are in memory twice."""


def aligned(size: int) -> int:
    """Bytes from the start of a tensor of `size` bytes to where the next one may start."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Blocks:
    """Cuts buffers from blocks: each block as large as what is still expected, and at least as large as its buffer."""

    def __init__(self) -> None:
        self._expected = 0
        self._rest = 0

    def expect(self, sizes: Sequence[int], room: int | None = None) -> None:
        """Buffers of these sizes will be cut next; no more than `room` bytes of them."""
        total = sum(map(aligned, sizes))
        self._expected = total if room is None else min(total, room)

    def cut(self, size: int) -> int:
        """Bytes of the block that must be pinned before a buffer can be cut; 0: the one at hand has room."""
        block = 0
        if self._rest < size or not self._rest:
            most = min(max(self._expected, 1), LARGEST_BLOCK)
            block = self._rest = max(1 << (most.bit_length() - 1), 1 << max(size - 1, 0).bit_length())
        self._rest = max(0, self._rest - aligned(size))
        self._expected = max(0, self._expected - aligned(size))
        return block

    def drop(self) -> None:
        """Nothing of the block at hand will be cut any more."""
        self._rest = 0


def pinned_bytes(groups: Iterable[Sequence[int]]) -> int:
    """Bytes of all blocks when groups of buffers are cut, each group expected before its first buffer."""
    return _pinned_bytes(tuple(map(tuple, groups)))


@lru_cache(maxsize=4096)
def _pinned_bytes(groups: tuple[tuple[int, ...], ...]) -> int:
    """A plan compares hundreds of executions, which pin the same few sizes."""
    blocks, total = Blocks(), 0
    for sizes in groups:
        blocks.expect(sizes)
        total += sum(blocks.cut(size) for size in sizes)
    return total
