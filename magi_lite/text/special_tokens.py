"""Learned tokens in front of a caption, and the caption that says nothing.

The published model was trained with a few learned vectors pushed in front of the text: that the clip is of high
quality, how many seconds remain, what style it has. They are choices of the request (`config.SpecialTokens`), by name.
Source: docs/architecture.md, section 7 of the model.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from magi_lite.errors import CheckpointError, InputError
from magi_lite.finite import is_finite
from magi_lite.models import NULL_CAPTION_TOKENS
from magi_lite.request.request import STYLES, SpecialTokens
from magi_lite.weights.token_files import PARTS, check_token_file
from quant.errors import WeightsError
from quant.storage.headers import read_header
from quant.storage.tensors import read

MAX_DURATION = 8
"""The duration token counts the seconds that remain up to this many."""

_ROWS = {"transition": 0, "quality": 1, "static": 2, "dynamic": 3, "borders": 4, "3d": 15, "anime": 16}
_FIRST_DURATION_ROW = 7
_PUSH_ORDER = ("caption", "logo", "transition", "static", "dynamic", "borders", "quality", "3d", "anime")
"""The order in which tokens are pushed in front; duration comes last and so stands first."""
NEGATIVE_TOKENS = ("caption", "logo", "transition", "borders")
"""What the published negative prompt pushes in front of the null caption: things not wanted in the picture."""


@dataclass(frozen=True)
class SpecialTokenTable:
    """The learned vectors, float16 as the published program uses them: (1, C), (1, C) and (rows, C)."""

    caption_token: torch.Tensor
    logo_token: torch.Tensor
    other_tokens: torch.Tensor

    @classmethod
    def load(cls, path: Path) -> SpecialTokenTable:
        """Read `special_tokens.npz` (float64, no pickle is executed) or the same three tensors as safetensors.

        Raises:
            CheckpointError: no such file, damaged, tensors missing or misshapen, or a file of the published width that
                is not the published one.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"There is no special-token file {path}; download it or point at a local copy.")
        check_token_file(path)
        parts = _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
        table = cls(*(_half(parts[name]) for name in PARTS))
        if not all(is_finite(getattr(table, name)) for name in PARTS):
            raise CheckpointError(f"The special-token file {path} holds NaN or infinite numbers; download it again.")
        return table

    @property
    def channels(self) -> int:
        """Width of the vectors: the caption channels of the model they belong to."""
        return self.other_tokens.shape[-1]

    def token(self, name: str, chunks_remaining: int = MAX_DURATION) -> torch.Tensor:
        """One token by name (a style, "quality" or "duration"), shape (1, C), float16."""
        if name == "duration":
            if chunks_remaining < 1:
                raise InputError(f"The duration token counts the remaining seconds from 1, not {chunks_remaining}.")
            row = _FIRST_DURATION_ROW + min(chunks_remaining, MAX_DURATION) - 1
            return self.other_tokens[row : row + 1]
        if name in ("caption", "logo"):
            return self.caption_token[:1] if name == "caption" else self.logo_token[:1]
        if name not in _ROWS:
            raise InputError(f"There is no special token '{name}'; choose from {', '.join(STYLES)}.")
        return self.other_tokens[_ROWS[name] : _ROWS[name] + 1]

    def push(
        self,
        embedding: torch.Tensor,
        names: tuple[str, ...],
        chunks_remaining: int = MAX_DURATION,
        max_length: int | None = None,
    ) -> torch.Tensor:
        """Push tokens in front one after the other: the last name comes to stand first.

        Args:
            embedding: (L, C); pushed right, and cut at `max_length`.
            names: styles, "quality", "duration".
            chunks_remaining: for "duration": chunks still to be made, the current one included.
            max_length: tokens that fit; None does not cut.

        Returns:
            (min(L + len(names), max_length), C) in the embedding's dtype and device.
        """
        if embedding.ndim != 2 or embedding.shape[1] != self.channels:
            raise CheckpointError(
                f"The special tokens have {self.channels} channels and the caption {tuple(embedding.shape)[-1]}; "
                "use the special-token file of this model."
            )
        tokens = [self.token(name, chunks_remaining).to(embedding) for name in reversed(names)]
        return torch.cat([*tokens, embedding])[:max_length]

    def caption(
        self, embedding: torch.Tensor, tokens: SpecialTokens, chunks_remaining: int | None, max_length: int
    ) -> torch.Tensor:
        """A prompt's embedding with the tokens that a request asks for.

        Args:
            embedding: (L, C), valid tokens only.
            tokens: which ones; the order is the published one whatever the order of `styles`.
            chunks_remaining: chunks still to be made, the current one included; None (endless) counts as many.
            max_length: the caption length the model was trained for.

        Returns:
            (L', C) with L' <= max_length.
        """
        remaining = MAX_DURATION if chunks_remaining is None else chunks_remaining
        return self.push(embedding, wanted_tokens(tokens), remaining, max_length)


def wanted_tokens(tokens: SpecialTokens) -> tuple[str, ...]:
    """Names in the order in which they are pushed.

    Raises:
        InputError: a style that does not exist.
    """
    unknown = [name for name in tokens.styles if name not in STYLES]
    if unknown:
        raise InputError(f"There is no style '{unknown[0]}'; choose from {', '.join(STYLES)}.")
    chosen = {*tokens.styles, *(("quality",) if tokens.quality else ())}
    return tuple(name for name in _PUSH_ORDER if name in chosen) + (("duration",) if tokens.duration else ())


def null_caption(null_caption_embedding: torch.Tensor, table: SpecialTokenTable | None = None) -> torch.Tensor:
    """The caption of clean chunks and of dropped text: the first tokens of the model's learned null caption.

    Args:
        null_caption_embedding: (caption_max_length, C), the DiT's own parameter.
        table: given, the published negative tokens are pushed in front (what should not be in the picture).

    Returns:
        (min(50, caption_max_length), C), valid tokens only. The negative tokens push learned ones out at the right, so
        the length stays.
    """
    length = min(NULL_CAPTION_TOKENS, null_caption_embedding.shape[0])
    whole = null_caption_embedding if table is None else table.push(null_caption_embedding, NEGATIVE_TOKENS)
    return whole[:length].detach()


def _half(vectors: torch.Tensor) -> torch.Tensor:
    """float16 whatever the embeddings' dtype: the model was trained with the rounded vectors.

    Rounded by numpy, in one step: torch goes from float64 to float16 over float32, and rounding twice changes some.
    """
    numbers = vectors.float() if vectors.dtype == torch.bfloat16 else vectors  # which numpy does not know
    with np.errstate(over="ignore"):  # infinite ones are refused
        return torch.from_numpy(numbers.numpy().astype("float16"))


def _read_npz(path: Path) -> dict[str, torch.Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in PARTS}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"The special-token file {path} cannot be read; download it again.") from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return {tensor.name: read(tensor) for tensor in read_header(path).tensors if tensor.name in PARTS}
    except (OSError, WeightsError) as error:
        raise CheckpointError(f"The special-token file {path} cannot be read; download it again.") from error
