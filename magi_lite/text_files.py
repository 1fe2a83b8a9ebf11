"""Text files as people's editors and shells write them: UTF-8 with or without a mark in front, and UTF-16.

Windows PowerShell 5 writes UTF-16 when output is redirected (`info VIDEO > settings.json`), Notepad puts a byte order
mark in front.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from quant.storage.files import open_plain, read_now


def decode(data: bytes) -> str:
    """The text of a file's bytes, without its mark.

    Raises:
        UnicodeDecodeError: neither UTF-8 nor UTF-16 (a `ValueError`).
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not data.startswith(codecs.BOM_UTF32_LE):
        return data.decode("utf-16")
    even, odd = data[0:64:2].count(0), data[1:64:2].count(0)
    if len(data) % 2 == 0 and max(even, odd) > min(len(data), 64) // 4:  # UTF-16 without a mark: every other byte is 0
        return data.decode("utf-16-le" if odd > even else "utf-16-be")
    return data.decode("utf-8-sig")


def read_text(path: Path, limit: int | None = None) -> str:
    """The text of a file, line ends made to \\n.

    Args:
        limit: bytes it may have.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no text, or larger than `limit`.
    """
    with open_plain(path) as file:
        data = read_now(file, -1 if limit is None else limit + 1)
    if limit is not None and len(data) > limit:
        raise ValueError(f"{path.name} has more than {limit} bytes")
    text = decode(data)
    if "\0" in text:
        raise ValueError(f"{path.name} holds zero bytes, which no text has")
    return text.replace("\r\n", "\n").replace("\r", "\n")
