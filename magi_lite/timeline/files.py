"""Timelines as files of other programs: subtitles (SRT) and OpenTimelineIO; besides JSON and the shorthand of `text`.

Seconds are whole here, so times of other programs are rounded to the nearest second; what falls into a second that a
prompt has already goes into that prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from magi_lite.errors import TimelineError
from magi_lite.models import FPS
from magi_lite.timeline import text
from magi_lite.timeline.markers import NAME_LENGTH, Marker
from magi_lite.timeline.timeline import Segment, Timeline
from quant.errors import brief
from quant.storage.files import parse_json

_STAMP = r"(?:(\d{1,3}):)?([0-5]\d):([0-5]\d)[,.](\d{1,3})"
"""Hours may be left out, as in WebVTT."""
_CUE = re.compile(rf"[ \t]*{_STAMP}[ \t]*-->[ \t]*{_STAMP}([^\n]*)", re.ASCII)
_TIMES = re.compile(r"\s*(?=[:.,]*\d)[\d:.,]+\s*-->[^\[\]]*")
"""A line that stands where a cue's times do, readable or not. It matches in one way only: lines can be long."""
_MARKUP = re.compile(r"</?[a-zA-Z][^<>]*>|\{\\[^{}]*\}")
_OURS = "magi_lite"
"""Key of what OpenTimelineIO has no place for, in its metadata."""
_SHOT = ("cut", "image", "image_sha256")
"""What a clip's metadata says of the shot that begins with it."""
NO_LIBRARY = "OpenTimelineIO is not installed; install it with: pip install opentimelineio"


def read(content: str) -> Timeline:
    """A timeline in whatever form the text has: SRT or WebVTT, OpenTimelineIO, JSON, shorthand, or a line per second.

    Raises:
        TimelineError: it is none of them, contradicts itself, or has a prompt longer than any.
    """
    content = content.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if any(_TIMES.fullmatch(line) for line in content.split("\n")):
        return text.checked(read_srt(content))
    if '"OTIO_SCHEMA"' in content[:4000]:
        return text.checked(read_otio(content))
    return text.parse(content)


def write(timeline: Timeline, kind: str) -> str:
    """A timeline as the content of a file; `kind` is one of KINDS.

    Raises:
        TimelineError: no such kind, or its library is missing.
    """
    if kind not in KINDS:
        raise TimelineError(f"There is no kind of timeline file called {kind!r}; choose one of {', '.join(KINDS)}.")
    return KINDS[kind](timeline)


# --- subtitles -------------------------------------------------------------------------------------------------------


def read_srt(content: str) -> Timeline:
    """Subtitles as segments; one with "cut" behind its times begins a new shot.

    Raises:
        TimelineError: a cue ends before it starts or has times that cannot be read, or there is none.
    """
    cues, cuts, lines = [], set(), content.split("\n")
    unread = next((line for line in lines if _TIMES.fullmatch(line) and not _CUE.fullmatch(line)), None)
    if unread is not None:  # else its text would become part of the subtitle before
        raise TimelineError(f"The times {unread.strip()[:40]!r} cannot be read; write 00:00:01,000 --> 00:00:03,000.")
    places = [number for number, line in enumerate(lines) if _CUE.fullmatch(line)]
    for place, following in zip(places, [*places[1:], len(lines) + 1], strict=True):
        found = _CUE.fullmatch(lines[place])
        assert found
        *times, behind = found.groups()
        start, end = _seconds(times[:4]), _seconds(times[4:])
        if "cut" in behind.split():
            cuts.add(round(start))
        words = lines[place + 1 : following]
        if following <= len(lines):  # the number of the next cue, and the empty lines before it
            words = words[:-1] if words and words[-1].strip().isdigit() else words
        prompt = " ".join(" ".join(_MARKUP.sub("", line) for line in words).split())
        if end < start:
            raise TimelineError(f"The subtitle {prompt[:40]!r} ends before it starts; correct its times.")
        cues.append((start, end, prompt))
    if not cues:
        raise TimelineError("This file has no subtitles; each has a line such as 00:00:01,000 --> 00:00:03,000.")
    return Timeline(tuple(replace(s, cut=s.start in cuts) for s in _whole_seconds(cues)))


def print_srt(timeline: Timeline) -> str:
    """Segments as subtitles, each with its own prompt; "cut", which players skip, stands behind the times of a shot."""
    cues = (
        f"{number}\n{_stamp(s.start)} --> {_stamp(s.end)}{' cut' * (s.cut or s.image is not None)}\n"
        f"{' '.join(s.prompt.split())}\n"
        for number, s in enumerate(timeline.segments, 1)
    )
    return "\n".join(cues)


def _seconds(parts: Iterable[str | None]) -> float:
    hours, minutes, seconds, rest = (part or "0" for part in parts)
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(rest.ljust(3, "0")) / 1000


def _stamp(second: int) -> str:
    return f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02},000"


def _whole_seconds(cues: list[tuple[float, float, str]]) -> list[Segment]:
    """Cues rounded to whole seconds, at least one each; one without a second of its own joins the cue before it."""
    found: list[Segment] = []
    for start, end, prompt in sorted(cues, key=lambda cue: cue[0]):
        first, last = round(start), max(round(end), round(start) + 1)
        if found and first < found[-1].end:
            before = found[-1]
            if first > before.start:
                found[-1] = replace(before, end=first)
            elif last > before.end:
                first = before.end
            else:
                both = ", ".join(part for part in (before.prompt, prompt) if part)
                found[-1] = replace(before, prompt=both)
                continue
        found.append(Segment(first, last, prompt))
    return found


# --- OpenTimelineIO --------------------------------------------------------------------------------------------------


def read_otio(content: str) -> Timeline:
    """The first video track of an OpenTimelineIO timeline, its clips as segments.

    Raises:
        TimelineError: it cannot be read, has no track, or the library is missing.
    """
    otio = _library()
    try:
        _check_objects(parse_json(content))
        read = otio.adapters.read_from_string(content, "otio_json")
        if not isinstance(read, otio.schema.Timeline):
            raise TimelineError("This OpenTimelineIO file holds no timeline; export one.")
        tracks = read.video_tracks() or list(read.tracks)
        if not tracks:
            raise TimelineError("This OpenTimelineIO timeline has no track; export one with clips.")
        track = tracks[0]
        cues, shots = [], []
        for clip in track.find_clips():
            span = clip.trimmed_range_in_parent()
            if span is None:
                continue
            ours = clip.metadata.get(_OURS, {})
            ours = ours if hasattr(ours, "get") else {}
            start, prompt = span.start_time.to_seconds(), ours.get("prompt")
            cues.append((start, start + span.duration.to_seconds(), str(clip.name if prompt is None else prompt)))
            shots.append((round(start), {name: ours[name] for name in _SHOT if name in ours}))
        marks = [
            Marker(round(max(0.0, mark.marked_range.start_time.to_seconds()), 3), str(mark.name)[:NAME_LENGTH])
            for mark in [*track.markers, *read.tracks.markers]
        ]
        ours = read.metadata.get(_OURS, {})
        kept = {name: ours[name] for name in ("global_prompt", "blend", "gaps") if name in ours}
        begins = dict(shots)
        found = [
            {"start": s.start, "end": s.end, "prompt": s.prompt} | begins.get(s.start, {}) for s in _whole_seconds(cues)
        ]
        whole = Timeline.from_json({"segments": found} | kept)
        return replace(whole, markers=tuple(sorted(marks, key=lambda mark: mark.at)))
    except TimelineError:
        raise
    except Exception as error:  # whatever a damaged file makes the library stumble over
        raise TimelineError(f"This OpenTimelineIO file cannot be read ({brief(error, 120)}); export it anew.") from None


def _check_objects(value: Any, key: str = "") -> None:
    """Raise ValueError where an object that others hold is none: the library ends the program then."""
    if key in ("tracks", "children", "markers") and not isinstance(value, dict | list):
        raise ValueError(f"{key} holds no objects")
    if isinstance(value, dict):
        if key == "tracks" and "OTIO_SCHEMA" not in value:
            raise ValueError(f"{key} is no object of a kind")
        for name, inner in value.items():
            _check_objects(inner, name)
    elif isinstance(value, list):
        for inner in value:
            if key in ("children", "markers") and not (isinstance(inner, dict) and "OTIO_SCHEMA" in inner):
                raise ValueError(f"{key} holds something else than objects")
            _check_objects(inner)


def print_otio(timeline: Timeline) -> str:
    """A timeline for cutting programs: a video track with a clip for each segment, and gaps between.

    Raises:
        TimelineError: the library is missing.
    """
    otio = _library()

    def span(start: float, end: float) -> Any:
        times = (otio.opentime.RationalTime(round(second * FPS), FPS) for second in (start, end - start))
        return otio.opentime.TimeRange(*times)

    track = otio.schema.Track("Prompts", kind=otio.schema.TrackKind.Video)
    covered = 0
    for segment, data in zip(timeline.segments, timeline.to_json()["segments"], strict=True):
        if segment.start > covered:
            track.append(otio.schema.Gap(source_range=span(0, segment.start - covered)))
        clip = otio.schema.Clip(
            " ".join(segment.prompt.split())[:80], source_range=span(0, segment.end - segment.start)
        )
        clip.metadata[_OURS] = {name: value for name, value in data.items() if name not in ("start", "end")}
        track.append(clip)
        covered = segment.end
    for mark in timeline.markers:
        track.markers.append(otio.schema.Marker(mark.name, span(mark.at, mark.at)))
    whole = otio.schema.Timeline("MAGI Lite", tracks=[track])
    whole.metadata[_OURS] = {
        "global_prompt": timeline.global_prompt, "blend": timeline.blend, "gaps": timeline.gaps,
    }  # fmt: skip
    return str(otio.adapters.write_to_string(whole, "otio_json"))


def _library() -> Any:
    try:
        import opentimelineio
    except ImportError:
        raise TimelineError(NO_LIBRARY) from None
    return opentimelineio


KINDS: dict[str, Callable[[Timeline], str]] = {
    "json": lambda timeline: json.dumps(timeline.to_json(), indent=2),
    "srt": print_srt,
    "txt": text.print_shorthand,
    "otio": print_otio,
}
"""What a timeline can be written as, by the file's ending."""
