r"""Prompts as the text encoder knows them: the cleaning that its training captions went through, quirks included.

The idea: a short ordered table of rewrites between two decoding steps. The order is part of the behaviour (a rule sees
what the earlier ones left), so the rules are data in one list and not code in branches. Some rules are surprising
("4k" stays, "1920x1080" goes, a file name swallows the words glued to it); they are kept, because the encoder must see
what it saw in training. Source: docs/architecture.md, section 7 of the model; behaviour pinned by goldens.
"""

from __future__ import annotations

import functools
import html
import re
import urllib.parse
import warnings

from magi_lite.errors import InputError

CLEANING_VERSION = 1
"""Part of every embedding cache key: raise it when any rule changes what it returns."""

_SITE = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_IMAGE_SUFFIX = r"(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_DASHES = (
    "\\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
    "\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)
_NOISE = re.escape("#®•©™&@·º½¾¿¡§~)(][}{|\\/*")
_MANY_JOINTS = 3
"""More dashes and underscores than this and a prompt reads as one joined file name: they become spaces."""

_LONGEST_WORD = 3000

_ADDRESSES = (
    ("<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_SITE})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_SITE})", ""),
)
_SYMBOLS = (
    (r"@\w+\b", ""),
    # ideographs and their symbols, but neither kana nor hangul
    (r"[\u31c0-\u9fff]+", ""),
    (rf"[{_DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.{_IMAGE_SUFFIX}", ""),
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (f"[{_NOISE}]+", " "),
    (r"\s+\.\s+", " "),
)
_SHOP_TALK = (
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_IMAGE_SUFFIX}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    # sizes: Latin x, Cyrillic х, multiplication sign
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    # The ends. Not stripped before: a quote behind a space at the start is therefore kept.
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


@functools.cache
def _compiled(rules: tuple[tuple[str, str], ...]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


def _rewrite(text: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in _compiled(rules):
        text = pattern.sub(replacement, text)
    return text


def _without_tags(text: str) -> str:
    """The text of an HTML fragment; scripts and styles are dropped, entities decoded."""
    from bs4 import BeautifulSoup

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when a prompt looks like a file name or an address
        return BeautifulSoup(text, features="html.parser").text


def clean_once(text: str) -> str:
    """One pass of the published cleaning; the encoder's prompts get two, see `clean_prompt`."""
    import ftfy

    text = urllib.parse.unquote_plus(text).strip().lower()
    text = _without_tags(_rewrite(text, _ADDRESSES))
    text = _rewrite(text, _SYMBOLS)
    if len(re.findall("[-_]", text)) > _MANY_JOINTS:
        text = re.sub("[-_]", " ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _rewrite(text, _SHOP_TALK).strip()


def clean_prompt(text: str) -> str:
    """What the text encoder is given for a prompt: the published cleaning, applied twice as the official program does.

    Cleaning twice matters: the second pass sees the spaces that the first one put behind full stops, and takes off a
    second pair of quotes.

    Raises:
        InputError: see `check_prompt`.
    """
    check_prompt(text)
    return clean_once(clean_once(text))


def check_prompt(text: str) -> None:
    """Refuse a word too long to be one; some rules take the square of a word's length.

    Raises:
        InputError: there is one.
    """
    longest = max(map(len, text.split()), default=0)
    if longest > _LONGEST_WORD:
        raise InputError(f"The prompt holds a word of {longest} characters; {_LONGEST_WORD} is the most, take it out.")
