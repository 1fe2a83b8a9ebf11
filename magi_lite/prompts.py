"""Words to captions: encoded once, kept on disk, mixed at seams, with the special tokens in front.

The text encoder is by far the largest network of the system and is needed for a moment only: it is loaded when a prompt
is not in the cache, encodes all that are missing, and is let go at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from magi_lite.config import SpecialTokens
from magi_lite.sampling.results import Caption
from magi_lite.text.cache import EmbeddingCache
from magi_lite.text.special_tokens import SpecialTokenTable
from magi_lite.timeline import PromptMix


class PromptBank:
    """Captions of chunks.

    Args:
        encode: prompts -> embeddings (L, C) each; loads the encoder and lets it go.
        fingerprint: tells the encoder's embeddings from another's in the cache.
        cache: embeddings on disk.
        table: the learned special tokens.
        max_length: rows of a caption that the model takes.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[str]], list[Tensor]],
        fingerprint: str,
        cache: EmbeddingCache,
        table: SpecialTokenTable,
        max_length: int,
    ) -> None:
        self._encode, self._fingerprint, self._cache = encode, fingerprint, cache
        self._table, self._max_length = table, max_length
        self._known: dict[str, Tensor] = {}

    def missing(self, prompts: Iterable[str]) -> list[str]:
        """Prompts that neither memory nor the cache holds, each once, in order."""
        absent = []
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._known:
                cached = self._cache.get(self._fingerprint, prompt)
                if cached is None:
                    absent.append(prompt)
                else:
                    self._known[prompt] = cached
        return absent

    def prepare(self, prompts: Iterable[str]) -> int:
        """Encode what is missing, all at once; returns how many prompts that were."""
        absent = self.missing(prompts)
        if absent:
            for prompt, embedding in zip(absent, self._encode(absent), strict=True):
                self._known[prompt] = embedding.detach().cpu()
                self._cache.put(self._fingerprint, prompt, self._known[prompt])
        return len(absent)

    def caption(self, mix: PromptMix, tokens: SpecialTokens, chunks_remaining: int | None) -> Caption:
        """The caption of a chunk: the mix of its prompts behind the special tokens.

        `chunks_remaining` counts the chunk itself; None (endless) counts as the most that the tokens can say.
        """
        self.prepare(mix.prompts)
        embedding = blend([(self._known[prompt], weight) for prompt, weight in mix.parts])
        return Caption(self._table.caption(embedding, tokens, chunks_remaining, self._max_length))


def blend(parts: Sequence[tuple[Tensor, float]]) -> Tensor:
    """Weighted sum of embeddings (L_i, C); rows that a shorter one lacks count as zero. One part stays as it is."""
    if len(parts) == 1:
        return parts[0][0]
    longest = max(len(embedding) for embedding, _ in parts)
    mixed = torch.zeros(longest, parts[0][0].shape[1], dtype=parts[0][0].dtype)
    for embedding, weight in parts:
        mixed[: len(embedding)] += weight * embedding
    return mixed
