"""A table of progress on stderr: drawn anew in its place on a terminal, a line for every change elsewhere."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from magi_lite.sentences import count

LEAST_HEIGHT = 6
"""Lines of a table on however small a terminal."""
_ORDER = ("running", "failed", "waiting", "finished")
"""Which rows are shown first where there is no room for all."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        name: what it is about.
        state: "running", "failed", "waiting", ...
        detail: how it stands, shown on a terminal.
        milestone: printed when it changes, where nothing can be drawn anew.
    """

    name: str
    state: str
    detail: str
    milestone: str


class Table:
    """Progress of many things with names."""

    def __init__(self) -> None:
        self._drawn = 0
        self._text = ""
        self._milestones: dict[str, str] = {}
        self._in_place = _can_move_up()

    def show(self, rows: Sequence[Row]) -> None:
        """Bring the terminal up to date."""
        if not self._in_place:
            for row in rows:
                if row.state != "waiting" and self._milestones.get(row.name) != row.milestone:
                    self._milestones[row.name] = row.milestone
                    print(f"{row.name}: {row.milestone}", file=sys.stderr, flush=True)
            return
        text = "\n".join(lines(rows, *shutil.get_terminal_size()))
        if text == self._text:
            return
        self.clear()
        print(text, file=sys.stderr, flush=True)
        self._text, self._drawn = text, text.count("\n") + 1

    def say(self, sentence: str) -> None:
        """Print a line above the table."""
        self.clear()
        print(sentence, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the table off the terminal."""
        if self._drawn:
            print(f"\x1b[{self._drawn}A\r\x1b[J", end="", file=sys.stderr, flush=True)
        self._drawn, self._text = 0, ""


def lines(rows: Sequence[Row], width: int, height: int) -> list[str]:
    """The table as text that fits a terminal."""
    room = max(LEAST_HEIGHT, height - 3)
    shown = list(rows)
    if len(rows) > room:
        rank = {state: place for place, state in enumerate(_ORDER)}
        first = sorted(range(len(rows)), key=lambda n: (rank.get(rows[n].state, len(_ORDER)), n))[:room]
        shown = [rows[n] for n in sorted(first)]
    longest = min(max((len(row.name) for row in shown), default=0), max(12, width // 3))
    drawn = [f"{_cut(row.name, longest):<{longest}}  {row.detail}" for row in shown]
    states = [row.state for row in rows]
    summary = ", ".join(f"{states.count(state)} {state}" for state in _ORDER if state in states)
    drawn.append(f"{count(len(rows), 'video')}: {summary}" if rows else "no videos")
    return [_cut(line, max(20, width - 1)) for line in drawn]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _can_move_up() -> bool:
    """Whether stderr is a terminal that understands how to go back a line."""
    if not sys.stderr.isatty():
        return False
    if sys.platform == "win32":
        import ctypes

        console = ctypes.windll.kernel32
        handle, mode = console.GetStdHandle(-12), ctypes.c_ulong()
        has_mode = bool(console.GetConsoleMode(handle, ctypes.byref(mode)))
        return has_mode and bool(console.SetConsoleMode(handle, mode.value | 4))  # 4: understand such codes
    import curses

    try:
        curses.setupterm(fd=sys.stderr.fileno())
        return curses.tigetstr("cuu") is not None
    except (curses.error, OSError, ValueError):
        return False
