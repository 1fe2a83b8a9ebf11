r"""Timelines as text: the `[0s-2s: a cat walks] [2s-5s: it jumps]` shorthand, and one line per second.

Shorthand: text in front of the first bracket is the global prompt; `[blend: 2]` and `[gaps: refuse]` set those options;
`[blend: 2 until 4s, 0]` gives the first four seconds another blend than the rest.
Lines: line n is the prompt of second n-1, equal neighbours are one segment, an empty line is a gap; `[global: ...]`,
`[blend: 2]` and `[gaps: refuse]` on lines of their own count no second.

A cut or a picture that a block begins with stands behind its times: `[4s-8s cut: ...]`, `[4s-8s image="a b.png": ...]`.
Quotes are needed where the path holds spaces or a colon; `sha256=` behind it holds it to one content.

In both, spaces around a prompt do not count, and `\[ \] \\ \n \t \r`, `\u{1f600}` and `\e` (nothing, for an empty
prompt) write what could not be written otherwise. Printing shorthand and parsing it again gives an equal timeline.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from magi_lite.errors import TimelineError
from magi_lite.sentences import shown
from magi_lite.timeline.timeline import MAX_PROMPT, Segment, Timeline
from quant.storage.files import parse_json

_SIMPLE = {"\\": "\\", "[": "[", "]": "]", "n": "\n", "t": "\t", "r": "\r", "e": ""}
_ESCAPE = re.compile(r"\\(u\{([0-9a-fA-F]{1,6})\}|.|$)", re.DOTALL)
_TIMES = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*(?:s\s*)?[-–—]\s*(-?\d+(?:\.\d+)?)\s*s?(?=[\s:]|$)", re.ASCII)
_MARK = re.compile(r"""\s+([^\s:="]+)(?:=("(?:[^"\\]|\\.)*"|[^\s:"]+))?(?=[\s:]|$)""")
_OPTIONS = ("global", "blend", "gaps")
_OPTION_LINE = re.compile(r"\s*\[\s*(?:global|blend|gaps)\s*:(?:[^\[\]\\]|\\.)*\]\s*", re.IGNORECASE)
_EARLIER_BLEND = re.compile(r"(?P<blend>\d{1,9})\s+until\s+(?P<second>\d{1,9})\s*s?", re.ASCII)
_BRACKET = re.compile(r"(?<!\\)(?:\\\\)*[\[\]]")
_FORM = "write [0s-2s: a cat walks] [2s-5s: it jumps]"
_MARKS = 'behind its times can stand cut or image="a picture.png", as in [4s-8s cut: a dog]'


def parse(text: str) -> Timeline:
    """Read a timeline in any of its forms: JSON, shorthand, or one line per second.

    Raises:
        TimelineError: the text is none of them, contradicts itself, or has a prompt longer than any.
    """
    if text.lstrip().startswith("{"):
        return checked(Timeline.from_json(_timeline_in(text)))
    words = (line for line in text.split("\n") if not _OPTION_LINE.fullmatch(line))
    return checked(parse_shorthand(text) if any(_BRACKET.search(line) for line in words) else parse_lines(text))


def checked(timeline: Timeline) -> Timeline:
    """A timeline that was read, with no prompt in it that would be refused for its length when a video is made.

    Raises:
        TimelineError: one is too long; says which.
    """
    named = [("The global prompt", timeline.global_prompt)]
    named += [(f"The prompt at {segment.start} s", segment.prompt) for segment in timeline.segments]
    for name, prompt in named:
        if len(prompt) > MAX_PROMPT:
            raise TimelineError(
                f"{name} has {len(prompt)} characters; {MAX_PROMPT} is the most that can be given: shorten it, or "
                "write one line or block for each second."
            )
    return timeline


def _timeline_in(text: str) -> dict[str, Any] | str:
    """The timeline itself, where the JSON is an example or the settings of a video that hold one."""
    try:
        data = parse_json(text)
    except (ValueError, RecursionError):
        return text
    inner = data.get("timeline") if "segments" not in data else None
    return inner if isinstance(inner, dict) else text


def parse_shorthand(text: str) -> Timeline:
    """Read `global prompt [0s-2s: ...] [2s-5s: ...]`.

    Raises:
        TimelineError: a bracket is open, a time is not a whole second, segments overlap, ...
    """
    pieces = list(_blocks(text))
    options: dict[str, str] = {}
    front = _unescape(pieces.pop(0))
    if front:
        options["global"] = front
    segments = []
    for outside, inside in zip(pieces[1::2], pieces[0::2], strict=True):
        if outside.strip():
            raise TimelineError(f"The text {_short(outside)} stands between segments; put it in a bracket or in front.")
        if not _take_option(inside, options):
            segments.append(_segment(inside))
    return _timeline(segments, options)


def print_shorthand(timeline: Timeline) -> str:
    """The shorthand of a timeline; `parse_shorthand` reads it back to an equal one."""
    front = _escape(timeline.global_prompt)
    if front.startswith("{"):  # which would be read as JSON
        front = f"\\u{{{ord('{'):x}}}{front[1:]}"
    parts = [front] if front else []
    parts += _print_options(timeline)
    for s in timeline.segments:
        parts.append(f"[{s.start}s-{s.end}s{_print_marks(s)}: {_escape(s.prompt) or chr(92) + 'e'}]")
    return " ".join(parts)


def parse_lines(text: str) -> Timeline:
    """Read one prompt per line, line n for second n-1; see the module's text for gaps and options.

    Raises:
        TimelineError: an option is not legal.
    """
    options: dict[str, str] = {}
    prompts: list[str | None] = []
    for line in text.split("\n"):
        if _OPTION_LINE.fullmatch(line):
            _take_option(line.strip()[1:-1], options)
        else:
            prompts.append(_unescape(line) if line.strip() else None)
    segments: list[Segment] = []
    for second, prompt in enumerate(prompts):
        last = segments[-1] if segments else None
        if prompt is None:
            continue
        if last and last.end == second and last.prompt == prompt:
            segments[-1] = Segment(last.start, second + 1, prompt)
        else:
            segments.append(Segment(second, second + 1, prompt))
    return _timeline(segments, options)


# --- brackets ------------------------------------------------------------------------------------------------------


def _blocks(text: str) -> list[str]:
    """Cut into [outside, inside, outside, inside, ..., outside], escapes kept."""
    pieces, piece, depth, skip = [], "", 0, False
    for character in text:
        if skip or character not in "[]":
            piece += character
            skip = character == "\\" and not skip
            continue
        if character == "[" and depth:
            raise TimelineError(f"A bracket opens inside [{_short(piece)}; write \\[ and \\] for brackets in a prompt.")
        if character == "]" and not depth:
            raise TimelineError(f"A bracket closes after {_short(piece)} that was not opened; {_FORM}.")
        pieces.append(piece)
        piece, depth = "", 1 - depth
    if depth:
        raise TimelineError(f"The bracket of [{_short(piece)} is not closed; {_FORM}.")
    return [*pieces, piece]


def _segment(inside: str) -> Segment:
    named, times = f"Segment [{_short(inside)}]", _TIMES.match(inside)
    if times is None:
        raise TimelineError(f"{named} does not begin with its times; {_FORM}.")
    marks: dict[str, str] = {}
    at = times.end()
    while mark := _MARK.match(inside, at):
        name, at = mark[1].lower(), mark.end()
        if name not in ("cut", "image", "sha256") or (name == "cut") != (mark[2] is None):
            raise TimelineError(f"{named} has the mark {_short(mark[0])}; {_MARKS}.")
        if name in marks:
            raise TimelineError(f"{named} has the mark {name} twice; keep one.")
        marks[name] = _unescape(mark[2][1:-1] if mark[2].startswith('"') else mark[2]) if mark[2] else ""
    rest = inside[at:].lstrip()
    if not rest.startswith(":"):
        unknown, colon, _ = rest.partition(":")
        raise TimelineError(
            f"{named} has the mark {_short(unknown)}; {_MARKS}." if colon else f"{named} has no colon; {_FORM}."
        )
    for time in times.groups():
        if "." in time:
            raise TimelineError(f"{named} uses the time {time}; times are whole seconds, such as 2s.")
        if len(time) > 9:
            raise TimelineError(f"{named} uses the time {time}, which no video reaches.")
    if marks.get("image") == "":
        raise TimelineError(f"{named} names no picture; {_MARKS}.")
    image = Path(marks["image"]) if "image" in marks else None
    prompt = _unescape(rest[1:])
    return Segment(int(times[1]), int(times[2]), prompt, "cut" in marks, image, marks.get("sha256"))


def _take_option(inside: str, options: dict[str, str]) -> bool:
    """Read `global: ...`, `blend: 2` or `gaps: refuse` into `options`; False if the block is none of them."""
    name, colon, value = inside.partition(":")
    name = name.strip().lower()
    if not colon or name not in _OPTIONS:
        return False
    if name in options:
        raise TimelineError(f"The timeline gives {name!r} twice; keep one.")
    options[name] = _unescape(value)
    return True


def _timeline(segments: list[Segment], options: dict[str, str]) -> Timeline:
    *earlier, blend = (part.strip() for part in options.get("blend", "0").split(","))
    pairs = [_EARLIER_BLEND.fullmatch(part) for part in earlier]
    if not re.fullmatch(r"\d{1,9}", blend, re.ASCII) or None in pairs:
        found = shown(options.get("blend", "0"))
        raise TimelineError(f"A blend of {found} is not possible; give whole seconds, 0 for no fade.")
    before = tuple((int(pair["second"]), int(pair["blend"])) for pair in pairs if pair)
    gaps = options.get("gaps", "hold")
    return Timeline(tuple(segments), options.get("global", ""), int(blend), gaps, before)  # type: ignore[arg-type]


def _print_options(timeline: Timeline) -> list[str]:
    blends = [*(f"{blend} until {second}s" for second, blend in timeline.earlier_blends), str(timeline.blend)]
    blend = [f"[blend: {', '.join(blends)}]"] if timeline.blend or timeline.earlier_blends else []
    return blend + ([f"[gaps: {timeline.gaps}]"] if timeline.gaps != "hold" else [])


def _print_marks(segment: Segment) -> str:
    quoted = '"' + _escape(str(segment.image)).replace('"', "\\u{22}") + '"'
    marks = " cut" * segment.cut + f" image={quoted}" * (segment.image is not None)
    return marks + (f" sha256={segment.image_sha256}" if segment.image_sha256 else "")


# --- escapes -------------------------------------------------------------------------------------------------------


def _escape(prompt: str) -> str:
    """Write a prompt so that neither brackets, line ends, nor stripping can change it."""
    inner = prompt.strip()
    start = len(prompt) - len(prompt.lstrip()) if inner else len(prompt)
    end = start + len(inner)

    def written(position: int, character: str) -> str:
        if character in "\\[]":
            return "\\" + character
        if character == "\n":
            return "\\n"
        if not start <= position < end or len(f"a{character}a".splitlines()) > 1:
            return f"\\u{{{ord(character):x}}}"
        return character

    return "".join(written(position, character) for position, character in enumerate(prompt))


def _unescape(text: str) -> str:
    """Undo `_escape`; spaces around the text do not count."""

    def read(match: re.Match[str]) -> str:
        code = match[2]
        if code and int(code, 16) <= 0x10FFFF:
            return chr(int(code, 16))
        if match[1] not in _SIMPLE:
            raise TimelineError(f"The escape {match[0]!r} is unknown; write \\\\ for a backslash.")
        return _SIMPLE[match[1]]

    return _ESCAPE.sub(read, text.strip())


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 40 else text[:39] + "…"
