"""Changes to a timeline, as an editor makes them: pure functions from timeline to timeline.

Segments are named by their index in `timeline.segments`. Whatever cannot be is refused by a `TimelineError` that names
the segment; the timeline given stays as it was.
"""

from __future__ import annotations

from dataclasses import replace

from magi_lite.errors import TimelineError
from magi_lite.timeline.timeline import Segment, Timeline


def split(timeline: Timeline, index: int, second: int) -> Timeline:
    """Cut a segment in two at `second`, which must lie inside it; both keep the prompt."""
    segment = _segment(timeline, index)
    if not segment.start < second < segment.end:
        raise TimelineError(f"Segment {segment} cannot be split at {second}s; choose a second inside it.")
    return _put(timeline, index, 1, replace(segment, end=second), replace(segment, start=second))


def merge(timeline: Timeline, index: int) -> Timeline:
    """Join a segment with the next one, gap included; different prompts are joined by a space."""
    segment = _segment(timeline, index)
    if index + 1 >= len(timeline.segments):
        raise TimelineError(f"Segment {segment} is the last and cannot be merged with a next one.")
    following = timeline.segments[index + 1]
    prompts = [segment.prompt.strip(), following.prompt.strip()]
    joined = segment.prompt if prompts[0] == prompts[1] else " ".join(filter(None, prompts))
    return _put(timeline, index, 2, Segment(segment.start, following.end, joined))


def move(timeline: Timeline, index: int, start: int) -> Timeline:
    """Let a segment start at `start`, its length kept; it may jump over others into a gap."""
    segment = _segment(timeline, index)
    return _put(timeline, index, 1, Segment(start, start + segment.end - segment.start, segment.prompt))


def resize(timeline: Timeline, index: int, start: int, end: int) -> Timeline:
    """Give a segment new edges."""
    return _put(timeline, index, 1, Segment(start, end, _segment(timeline, index).prompt))


def set_prompt(timeline: Timeline, index: int, prompt: str) -> Timeline:
    """Give a segment another prompt."""
    return _put(timeline, index, 1, replace(_segment(timeline, index), prompt=prompt))


def insert(timeline: Timeline, segment: Segment) -> Timeline:
    """Add a segment in a gap."""
    return replace(timeline, segments=(*timeline.segments, segment))


def remove(timeline: Timeline, index: int) -> Timeline:
    """Take a segment out; its seconds become a gap."""
    _segment(timeline, index)
    return _put(timeline, index, 1)


def clip(timeline: Timeline, seconds: int) -> Timeline:
    """Drop or shorten whatever lies after the first `seconds`."""
    kept = (replace(s, end=min(s.end, seconds)) for s in timeline.segments if s.start < seconds)
    return replace(timeline, segments=tuple(kept))


def splice(timeline: Timeline, second: int, newer: Timeline) -> Timeline:
    """The prompts of `timeline` before `second`, and those of `newer` from there on.

    The blend and gaps of `newer` hold for all. Where the global prompts differ, both are written into their segments
    and none is left over, so that the record of earlier seconds keeps their prompts. A segment of `newer` that began
    earlier begins at `second`. If the text before `second` goes on in `newer` unchanged, the halves are one segment.
    """
    if second <= 0:
        return newer
    before, after = list(clip(timeline, second).segments), _from(newer, second)
    last = before[-1].prompt if before else ""
    foreign = timeline.global_prompt != newer.global_prompt
    if foreign or (newer.gaps == "refuse" and timeline.gaps == "hold"):
        before = _without_gaps(before, second)
    if (foreign or last != _prompt_at(newer, second)) and (not after or after[0].start > second):
        after.insert(0, Segment(second, after[0].start if after else second + 1, _prompt_at(newer, second)))
    if foreign:
        before = [replace(s, prompt=timeline.full_prompt(s)) for s in before]
        after = [replace(s, prompt=newer.full_prompt(s)) for s in after]
        newer = replace(newer, global_prompt="")
    if before and after and before[-1].end == second == after[0].start and before[-1].prompt == after[0].prompt:
        after[0] = replace(after[0], start=before.pop().start)
    return replace(newer, segments=(*before, *after))


def _from(timeline: Timeline, second: int) -> list[Segment]:
    """The segments from `second` on; one that began earlier begins there."""
    return [replace(s, start=max(s.start, second)) for s in timeline.segments if s.end > second]


def _prompt_at(timeline: Timeline, second: int) -> str:
    """The segment's prompt that holds in `second`, without the global one; empty before the first segment."""
    begun = [s.prompt for s in timeline.segments if s.start <= second]
    return begun[-1] if begun else ""


def _without_gaps(segments: list[Segment], end: int) -> list[Segment]:
    """The same prompts in segments that cover [0, end) whole."""
    starts = [segment.start for segment in segments[1:]] + [end]
    filled = [replace(segment, end=stop) for segment, stop in zip(segments, starts, strict=False)]
    first = filled[0].start if filled else end
    return [Segment(0, first, ""), *filled] if first else filled


def _segment(timeline: Timeline, index: int) -> Segment:
    if not 0 <= index < len(timeline.segments):
        raise TimelineError(f"There is no segment number {index + 1}; the timeline has {len(timeline.segments)}.")
    return timeline.segments[index]


def _put(timeline: Timeline, index: int, count: int, *new: Segment) -> Timeline:
    kept = timeline.segments
    return replace(timeline, segments=(*kept[:index], *new, *kept[index + count :]))
