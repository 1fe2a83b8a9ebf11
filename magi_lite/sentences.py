"""The small parts of sentences about what was asked for: lists of choices, values as they were given, near misses."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from quant.errors import one_line


def either(choices: Iterable[Any]) -> str:
    """ "a, b or c"; None is left out."""
    named = [str(choice) for choice in choices if choice is not None]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} or {named[-1]}"


def shown(value: Any, length: int = 60) -> str:
    """A value as Python writes it, cut where it is long; characters that cannot be printed are escaped."""
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python prints, or lists nested too deep
        text = "a value too long to print"
    return text if len(text) <= length else text[: length - 1] + "…"


def shortened(prompt: str, length: int = 40) -> str:
    """A prompt in quotes, cut where it is long; what would turn the direction of the sentence is written out."""
    text = one_line(" ".join(prompt.split()))
    return f'"{text if len(text) <= length else text[: length - 1] + "…"}"'


def has_half_character(text: str) -> bool:
    """Whether a text holds a lone surrogate, which no file and no page can be sent."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def whole_characters(text: str) -> str:
    """A text that can be printed and sent: half characters are written out, as in backslashes and numbers."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """ " (did you mean anime?)", or nothing where no choice is near."""
    near = difflib.get_close_matches(str(name)[:100], list(choices), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def count(number: float, noun: str) -> str:
    """ "1 frame", "2 frames", "2.5 seconds"."""
    shown = f"{number:.4g}" if isinstance(number, float) else f"{number}"
    return f"{shown} {noun}" if shown == "1" else f"{shown} {noun}s"


def size(number: int) -> str:
    """Bytes of a file or a disk as people read them, decimal as systems show them: "1.5 GB", "96 MB", "110 kB"."""
    return _with_unit(number, 1000)


def memory_size(number: int) -> str:
    """Bytes of memory as people read them: a card of 24 GB has 24 GB, as everywhere in plans and on the page."""
    return _with_unit(number, 1024)


def _with_unit(number: int, step: int) -> str:
    if number >= step**3:
        return f"{number / step**3:.1f} GB"
    return f"{number / step**2:.0f} MB" if number >= step**2 else f"{number / step:.0f} kB"
