"""What the transformer asks of a KV store: clean chunks' keys and values, by layer and absolute chunk number."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class KVStore(Protocol):
    """Keys (rotated) and values of chunks that no pass has to compute again.

    The order in which `read` returns a range's tokens is free: attention does not see it.
    """

    def write(self, layer: int, first_chunk: int, key: Tensor, value: Tensor) -> None:
        """Take whole chunks from `first_chunk` on: (N, chunks * tokens, groups, head_dim) each."""

    def read(self, layer: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Keys and values of chunks [first, last), each (N, chunks * tokens, groups, head_dim)."""

    def prefetch(self, layer: int) -> None:
        """A hint that `layer` is read next."""
