"""Prompts to captions: encoded once, kept on disk, mixed at seams, with the special tokens in front.

The text encoder is by far the largest network of the system and is needed for a moment only: it is loaded when a prompt
is not in the cache, encodes all that are missing, and is let go at once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magi_lite.machine import devices
from magi_lite.planner.execution import Execution
from magi_lite.planner.shapes import t5_bytes
from magi_lite.request.request import SpecialTokens
from magi_lite.sampling.results import Caption
from magi_lite.sentences import shortened
from magi_lite.text.cache import EmbeddingCache
from magi_lite.text.cleaning import clean_prompt
from magi_lite.text.encoder import PromptEncoder
from magi_lite.text.special_tokens import SpecialTokenTable, wanted_tokens
from magi_lite.text.vocabulary import Vocabulary, characters_taken_out
from magi_lite.timeline import PromptMix
from magi_lite.weights.layout import ModelFiles
from magi_lite.weights.loader import load_special_tokens, load_text_encoder
from magi_lite.weights.residency import Residency
from magi_lite.weights.t5 import fingerprint, load_tokenizer

TEXT_SPARE_BYTES = 512 << 20
"""Device memory that the text encoder wants beside its weights."""
SMALL_TEXT_ENCODER_BYTES = 256 << 20
EMBEDDINGS_FOLDER: Path | None = None
"""Where prompts' embeddings are kept between runs; None: in the user's cache folder."""
_NAMED = 3
"""Prompts that lose words and are named; of more, only their number is given."""


class PromptBank:
    """Captions of chunks.

    Args:
        encode: prompts -> embeddings (L, C) each; loads the encoder and lets it go.
        fingerprint: tells the encoder's embeddings from another's in the cache.
        cache: embeddings on disk.
        table: the learned special tokens.
        max_length: tokens of a caption that the model takes.
        tokenizer: brings the encoder's tokenizer, to count the words that did not fit.
        vocabulary: the words of a model that knows few; None: it reads all.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[str]], list[Tensor]],
        fingerprint: str,
        cache: EmbeddingCache,
        table: SpecialTokenTable,
        max_length: int,
        tokenizer: Callable[[], Any],
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._encode, self._fingerprint, self._cache, self._tokenizer = encode, fingerprint, cache, tokenizer
        self._table, self._max_length = table, max_length
        self._known: dict[str, Tensor] = {}

    def missing(self, prompts: Iterable[str]) -> list[str]:
        """Prompts that neither memory nor the cache holds, each once, in order."""
        absent = []
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._known:
                cached = self._cache.get(self._fingerprint, prompt)
                if cached is None or cached.shape[1] != self._table.channels:
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

    def losses(self, prompts: Iterable[str], tokens: SpecialTokens, front: str = "") -> Iterator[str]:
        """A sentence for each prompt of which the model will see nothing, or not all; prompts not prepared are passed.

        Args:
            front: the global prompt, which stands in front of the others: whether anything behind it is seen.
        """
        known = [prompt for prompt in prompts if prompt.strip() and prompt in self._known]
        for prompt in known:
            if len(self._known[prompt]) <= 1 and not clean_prompt(prompt):  # nothing but the end token
                yield f"{shortened(prompt)} says nothing to the model: such characters and words are taken out."
            elif lost := characters_taken_out(prompt):
                yield f"Of {shortened(prompt)} the model does not see {lost}: such characters are taken out."
        unknown = self._vocabulary.notice(known) if self._vocabulary else None
        if unknown:
            yield unknown
        room = self._max_length - max(1, len(wanted_tokens(tokens)))  # the end token is pushed out first
        long = [prompt for prompt in known if len(self._known[prompt]) > min(room + 1, self._max_length - 1)]
        if not long:
            return
        tokenizer, fronts = self._tokenizer(), len(clean_prompt(front).split())
        counts = [(prompt, *_words_read(tokenizer, prompt, room)) for prompt in long]
        cut = [(prompt, read, words) for prompt, read, words in counts if read < words]
        for prompt, read, words in cut[:_NAMED]:
            if fronts and read <= fronts < words:
                yield (
                    f"The global prompt {shortened(front)} is so long that no prompt behind it is read: "
                    f"this model reads the first {read} words here; shorten it."
                )
            else:
                yield f"Of {shortened(prompt)} this model reads the first {read} of {words} words; say it in fewer."
        if len(cut) > _NAMED:
            yield f"{len(cut) - _NAMED} more prompts are longer than what this model reads; say them in fewer words."

    def caption(self, mix: PromptMix, tokens: SpecialTokens, chunks_remaining: int | None) -> Caption:
        """The caption of a chunk: the mix of its prompts behind the special tokens.

        `chunks_remaining` counts the chunk itself; None (endless) counts as the most that the tokens can say.
        """
        self.prepare(mix.prompts)
        embedding = blend([(self._known[prompt], weight) for prompt, weight in mix.parts])
        return Caption(self._table.caption(embedding, tokens, chunks_remaining, self._max_length))


def _words_read(tokenizer: Any, prompt: str, room: int) -> tuple[int, int]:
    """How many words of a prompt fit into `room` tokens, and how many it has, cleaned as the encoder sees it."""
    words = clean_prompt(prompt).split()
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        tokens = tokenizer(" ".join(words[:middle]), truncation=True, max_length=room + 2)["input_ids"]
        low, high = (middle, high) if len(tokens) - 1 <= room else (low, middle - 1)
    return low, len(words)


def blend(parts: Sequence[tuple[Tensor, float]]) -> Tensor:
    """Weighted sum of embeddings (L_i, C); rows that a shorter one lacks count as zero. One part stays as it is."""
    if len(parts) == 1:
        return parts[0][0]
    longest = max(len(embedding) for embedding, _ in parts)
    mixed = torch.zeros(longest, parts[0][0].shape[1], dtype=parts[0][0].dtype)
    for embedding, weight in parts:
        mixed[: len(embedding)] += weight * embedding
    return mixed


# --- the text encoder, loaded for a moment ---------------------------------------------------------------------------


def prompt_bank(files: ModelFiles, execution: Execution, cancelled: Callable[[], bool] = lambda: False) -> PromptBank:
    """Captions for a run; `cancelled` is asked while the text encoder is loaded."""

    def encode(prompts: Sequence[str]) -> list[Tensor]:
        where = text_execution(files, execution)

        def load() -> PromptEncoder:
            return load_text_encoder(files, where, cancelled=cancelled)

        with Residency(where) as home, home.text_encoder(load) as encoder, torch.inference_mode():
            return [embedding.cpu() for embedding in encoder.encode(prompts)]

    return PromptBank(
        encode,
        fingerprint(files.text_encoder, execution.t5),
        EmbeddingCache(EMBEDDINGS_FOLDER or _cache_folder() / "embeddings"),
        load_special_tokens(files),
        files.spec.dit.caption_max_length,
        lambda: load_tokenizer(files.text_encoder),
        Vocabulary.beside(files.text_encoder),
    )


def text_encoder_is_small(files: ModelFiles) -> bool:
    """Whether loading it and encoding with it is a matter of a moment."""
    return t5_bytes(files.spec.t5, "bf16") <= SMALL_TEXT_ENCODER_BYTES


def text_execution(files: ModelFiles, execution: Execution) -> Execution:
    """The execution, with the text encoder on the CPU where the card has no room for it now.

    The plan gives the encoder the whole card, but a redirect brings prompts while the transformer is loaded.
    """
    if execution.t5_device != "cuda":
        return execution
    devices.free_memory()
    memory = devices.memory_info()
    needed = t5_bytes(files.spec.t5, execution.t5) + TEXT_SPARE_BYTES
    if memory is None or memory[0] >= needed:
        return execution
    return replace(execution, t5_device="cpu")


def _cache_folder() -> Path:
    """The user's cache folder for this program, or a temporary one where there is no home."""
    try:
        return Path.home() / ".cache" / "magi_lite"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "magi_lite"
