"""The context of cross attention: keys and values of captions in every layer, computed once per caption.

A context is a list of rows, one per (batch row, chunk) of a pass. Rows point into the encodings they came from, so
choosing and joining rows copies nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from magi_lite.errors import InputError


class KeyValue(NamedTuple):
    """Keys (normed) and values, (rows, tokens, groups, head_dim) each."""

    key: Tensor
    value: Tensor


@dataclass(frozen=True, eq=False)
class CaptionEncoding:
    """What one call of `DiT.encode_captions` computed."""

    layers: tuple[KeyValue, ...]
    lengths: tuple[int, ...]
    modulation: Tensor
    """(rows, condition) float32: the learned vector of dropped or not."""


@dataclass(frozen=True, eq=False)
class CaptionContext:
    """What cross attention reads, a row per caption; make it with `DiT.encode_captions`, then `select` and `cat`."""

    rows: tuple[tuple[CaptionEncoding, int], ...]
    _joined: dict[int | str, Tensor | KeyValue] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, encoding: CaptionEncoding) -> CaptionContext:
        return cls(tuple((encoding, row) for row in range(len(encoding.lengths))))

    @classmethod
    def cat(cls, contexts: Iterable[CaptionContext]) -> CaptionContext:
        """All rows of several contexts, in order."""
        return cls(tuple(row for context in contexts for row in context.rows))

    def select(self, indices: Sequence[int]) -> CaptionContext:
        """These rows, in this order; a row may come more than once."""
        return CaptionContext(tuple(self.rows[index] for index in indices))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Caption tokens of each row."""
        return tuple(encoding.lengths[row] for encoding, row in self.rows)

    @property
    def modulation(self) -> Tensor:
        """(rows, condition) float32."""
        if "modulation" not in self._joined:
            whole = self._whole()
            rows = [encoding.modulation[row] for encoding, row in self.rows]
            self._joined["modulation"] = whole.modulation if whole else torch.stack(rows)
        return self._joined["modulation"]  # type: ignore[return-value]

    def row(self, layer: int, index: int) -> KeyValue:
        """One row's valid tokens, as views: (1, length, groups, head_dim) each."""
        encoding, row = self.rows[index]
        length = encoding.lengths[row]
        key, value = encoding.layers[layer]
        return KeyValue(key[row : row + 1, :length], value[row : row + 1, :length])

    def batch(self, layer: int) -> KeyValue:
        """All rows, padded with zeros or leftovers to the longest: (rows, longest, groups, head_dim) each."""
        whole = self._whole()
        if whole:
            return whole.layers[layer]
        if layer not in self._joined:
            pairs = [self.row(layer, index) for index in range(len(self))]
            pad = torch.nn.utils.rnn.pad_sequence
            keys, values = ([pair[part][0] for pair in pairs] for part in (0, 1))
            self._joined[layer] = KeyValue(pad(keys, batch_first=True), pad(values, batch_first=True))
        return self._joined[layer]  # type: ignore[return-value]

    def mask(self, device: torch.device) -> Tensor:
        """(rows, longest) bool: where `batch` holds a caption token."""
        if "mask" not in self._joined:
            lengths = torch.tensor(self.lengths, device=device)
            self._joined["mask"] = torch.arange(self.batch(0).key.shape[1], device=device) < lengths[:, None]
        return self._joined["mask"]  # type: ignore[return-value]

    def _whole(self) -> CaptionEncoding | None:
        """The encoding whose rows these are, all and in order; None otherwise."""
        encoding = self.rows[0][0]
        same = all(source is encoding and row == index for index, (source, row) in enumerate(self.rows))
        return encoding if same and len(self.rows) == len(encoding.lengths) else None


def caption_lengths(embeddings: Tensor, mask: Tensor | Sequence[int] | None) -> tuple[int, ...]:
    """Valid tokens of each row, known to the host.

    Args:
        embeddings: (B, L, channels).
        mask: (B, L) of 0/1 whose valid tokens are a prefix, or the B lengths themselves, or None: all valid.

    Raises:
        InputError: shapes disagree, a row has no token, or its tokens are not a prefix.
    """
    rows, longest = embeddings.shape[:2]
    if mask is None:
        return (longest,) * rows
    if isinstance(mask, Tensor):
        if mask.shape != (rows, longest):
            wanted = f"{(rows, longest)} like the embeddings"
            raise InputError(f"The caption mask is {tuple(mask.shape)}; it must be {wanted}.")
        valid = mask.bool().cpu()
        lengths = tuple(int(n) for n in valid.sum(-1))
        if any(not valid[row, :length].all() for row, length in enumerate(lengths)):
            raise InputError("The caption mask has gaps; valid tokens must come first.")
    else:
        lengths = tuple(int(n) for n in mask)
    if len(lengths) != rows or not all(1 <= length <= longest for length in lengths):
        raise InputError(f"Caption lengths are {lengths}; there must be {rows}, each from 1 to {longest}.")
    return lengths
