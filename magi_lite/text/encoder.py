"""Prompts to embeddings, without computing the padding.

The published program pads every prompt to 800 tokens and masks the padding. The encoder's positions are relative and
masked keys weigh nothing, so leaving the padding out gives the same rows; a prompt of 60 tokens then costs a tenth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from magi_lite.finite import check_finite
from magi_lite.text.cleaning import clean_prompt


class PromptEncoder:
    """A T5 encoder with its tokenizer.

    Args:
        model: a transformers T5EncoderModel (its linears may be quantized), in eval mode on `device`.
        tokenizer: callable as transformers' tokenizers are.
        max_length: tokens after which a prompt is cut (the end token included), as in training.
        device: where token ids go.
        batch_tokens: 0 encodes each prompt by itself, so that its embedding never depends on its company: rounding
            differs with the batch, and a second made again must be the same bits. Positive: prompts of similar length
            share a forward of at most this many tokens, padding included.
        fingerprint: what tells this model's embeddings from another's in a cache.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        max_length: int,
        device: torch.device | str = "cpu",
        batch_tokens: int = 0,
        fingerprint: str = "",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.device = torch.device(device)
        self.batch_tokens = batch_tokens
        self.fingerprint = fingerprint

    def tokenize(self, prompt: str) -> list[int]:
        """Token ids of a prompt, cleaned, ending with the end token, at most `max_length`."""
        ids: list[int] = self.tokenizer(clean_prompt(prompt), truncation=True, max_length=self.max_length)["input_ids"]
        return ids

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Embeddings of prompts in the order given: (L, C) float32 each, valid tokens only, on the encoder's device."""
        tokens = [self.tokenize(prompt) for prompt in prompts]
        embeddings: dict[int, Tensor] = {}
        for batch in batches([len(ids) for ids in tokens], self.batch_tokens):
            for number, rows in zip(batch, self._forward([tokens[number] for number in batch]), strict=True):
                embeddings[number] = rows
        return [embeddings[number] for number in range(len(prompts))]

    def _forward(self, batch: list[list[int]]) -> list[Tensor]:
        lengths = [len(ids) for ids in batch]
        longest = max(lengths)
        ids = torch.tensor([one + [0] * (longest - len(one)) for one in batch], device=self.device)
        mask = None
        if min(lengths) < longest:
            mask = (torch.arange(longest)[None] < torch.tensor(lengths)[:, None]).long().to(self.device)
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        check_finite(hidden, "The text encoder")
        return [rows[:length] for rows, length in zip(hidden, lengths, strict=True)]


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices grouped by length: each group padded to its longest holds at most `batch_tokens` tokens, or is single."""
    group: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: (lengths[n], n)):
        # sorted by length: the newcomer is the longest, and sets the padding
        if group and (len(group) + 1) * lengths[number] > batch_tokens:
            yield group
            group = []
        group.append(number)
    if group:
        yield group
