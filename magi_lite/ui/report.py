"""What a bug report needs: versions, this computer, and what the console shows, without what is the user's own.

The console's text is kept while it is printed (`Console`). Paths, the user's and the computer's name are taken out of
a report unless they are asked for; names of the program's own source files stay.
"""

from __future__ import annotations

import getpass
import re
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

LINES = 3000
"""Of the console that are kept."""
PACKAGES = ("gradio", "torch", "numpy", "av", "safetensors", "sentencepiece")
_PATH = re.compile(
    r"""(?<![\w/\\.:])                     # not in the middle of an address or a word
    (?:~|[A-Za-z]:|file://)?               # a home folder, a drive
    (?:[/\\][^\s/\\:*?"'<>|()\[\]{},;]+){2,}  # at least two parts; spaces end it
    [/\\]?""",
    re.VERBOSE,
)


class Console:
    """Keeps what is printed, and passes it on. One for standard output and error together."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LINES)
        self._part = ""
        self._lock = threading.Lock()

    def listen(self) -> None:
        """Keep what this process prints from now on."""
        sys.stdout, sys.stderr = _Ear(sys.stdout, self), _Ear(sys.stderr, self)

    def heard(self, text: str) -> None:
        """Keep a piece of text; of a line that is drawn anew the last state counts."""
        with self._lock:
            *whole, self._part = (self._part + text).split("\n")
            self._lines.extend(line.rsplit("\r", 1)[-1] for line in whole)
            self._part = self._part[-2000:]

    def text(self) -> str:
        """The last lines."""
        with self._lock:
            return "\n".join([*self._lines, self._part]).strip("\n")


class _Ear:
    """A stream that also tells a console what is written to it; everything else is the stream's own."""

    def __init__(self, stream: TextIO, console: Console) -> None:
        self._stream, self._console = stream, console

    def write(self, text: str) -> int:
        self._console.heard(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def report(console: str, machine: Iterable[tuple[str, str]], own: Iterable[Path], with_paths: bool = False) -> str:
    """A report as text.

    Args:
        console: what was printed.
        machine: rows about this computer.
        own: folders of the user's, whatever they are called.
        with_paths: whether paths and names stay.
    """
    rows = [("MAGI Lite", _version("magi-lite")), *((name, _version(name)) for name in PACKAGES), *machine]
    head = "\n".join(f"{name}: {value}" for name, value in rows if value)
    text = f"{head}\n\n--- console ---\n{console or '(nothing was printed)'}\n"
    return text if with_paths else without_paths(text, own)


def without_paths(text: str, own: Iterable[Path] = ()) -> str:
    """The text without paths and without the names of user and computer."""
    for folder in sorted({str(path) for path in (*own, Path.home())}, key=len, reverse=True):
        if len(folder) > 1:
            text = re.sub(re.escape(folder) + r"[^\s\"'<>|,;:()]*", _short, text)
    text = _PATH.sub(_short, text)
    for name in {_user(), socket.gethostname()}:
        if len(name) > 2:
            text = re.sub(rf"\b{re.escape(name)}\b", "<name>", text, flags=re.IGNORECASE)
    return text


def _short(match: re.Match[str]) -> str:
    name = re.split(r"[/\\]", match[0].rstrip("/\\"))[-1]
    return name if name.endswith(".py") else "<path>"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
