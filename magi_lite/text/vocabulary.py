"""What a small model knows of language and pictures: its words, from a file beside its text encoder.

The published encoder reads anything. A model that was trained on a few words reads the others as one unknown token, and
a user should learn that before waiting for a video. `vocabulary.json` in the text encoder's folder lists the words, the
words that count as others ("circle" as "ball"), and the words by kind, for a sentence that says what is known.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from magi_lite.config_files import read_json
from magi_lite.errors import CheckpointError
from magi_lite.sentences import shortened
from magi_lite.text.cleaning import clean_prompt

FILE = "vocabulary.json"
_NAMED = 6
"""Unknown words that are named; of more, only their number is given."""
_SILENT = """
    a about also an and are as at be by for from has have her his i in into is it its me my of on one or our please some
    that the their them then there these they this to very was we while with you
"""
"""Words that say nothing by themselves: not knowing them loses nothing."""


@dataclass(frozen=True)
class Vocabulary:
    """The words of a small model.

    Attributes:
        words: that its tokenizer has. same: other words and what each is read as, in the order in which
            they are replaced.
        kinds: what is known, by kind ("colours"), as it is listed for users.
        picture_decibels: PSNR below which the autoencoder does not hold a picture; None: no picture is too much for it.
    """

    words: frozenset[str]
    same: dict[str, str]
    kinds: dict[str, tuple[str, ...]]
    picture_decibels: float | None = None

    @classmethod
    def beside(cls, text_encoder: Path) -> Vocabulary | None:
        """The vocabulary in a text encoder's folder; None where there is none, which means that all words are read.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = text_encoder / FILE
        if not path.is_file():
            return None
        content = read_json(path, "a vocabulary")
        try:
            limit = content.get("picture_decibels")
            return cls(
                frozenset(content["words"]),
                {str(word): str(ours) for word, ours in content["same"].items()},
                {str(kind): tuple(map(str, words)) for kind, words in content["kinds"].items()},
                None if limit is None else float(limit),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CheckpointError(f"{path} is not a vocabulary; put the model's folder there again.") from None

    def unknown(self, prompts: Iterable[str]) -> list[str]:
        """Words of the prompts that the model does not know, each once, in order; words that say nothing are passed."""
        found: dict[str, None] = {}
        silent = set(_SILENT.split())
        for prompt in prompts:
            text = clean_prompt(prompt)
            for phrase, ours in self.same.items():
                text = re.sub(rf"\b{re.escape(phrase)}\b", ours, text)
            for word in re.findall(r"[^\W_]+(?:'[^\W_]+)?", text):
                if word not in self.words and word not in silent:
                    found[word] = None
        return list(found)

    def notice(self, prompts: Iterable[str]) -> str | None:
        """One sentence that names the unknown words of the prompts and says what is known; None: all are known."""
        unknown = self.unknown(prompts)
        if not unknown:
            return None
        named = _list([shortened(word) for word in unknown[:_NAMED]], len(unknown) - _NAMED)
        return f"This model does not know {named}. {self.summary()}"

    def summary(self) -> str:
        """What is known, in one sentence."""
        kinds = "; ".join(f"{kind}: {', '.join(words)}" for kind, words in self.kinds.items())
        return f"It knows {kinds}."


def characters_taken_out(prompt: str) -> str:
    """The parts of a prompt in other scripts that cleaning takes out although something is left, or ""."""
    cleaned = clean_prompt(prompt)
    if not cleaned:
        return ""
    runs = re.findall(r"[^\W\d_]+", prompt)
    lost = [run for run in runs if not _latin(run) and run.lower() not in cleaned]
    return " ".join(dict.fromkeys(lost))


def _latin(word: str) -> bool:
    """Whether every letter of a word is a Latin one."""
    return all("LATIN" in unicodedata.name(letter, "") for letter in word)


def _list(items: list[str], more: int) -> str:
    """Items joined for a sentence, with the number of those that are not named."""
    if more > 0:
        items = [*items, f"{more} more words"]
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
