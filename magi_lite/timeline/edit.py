"""Changes to a timeline of a video that is being made: pure functions from timeline to timeline.

What the editor in the page does to single blocks is its script's affair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from magi_lite.timeline.timeline import Segment, Timeline


def clip(timeline: Timeline, seconds: int) -> Timeline:
    """Drop or shorten whatever lies after the first `seconds`."""
    kept = (replace(s, end=min(s.end, seconds)) for s in timeline.segments if s.start < seconds)
    return replace(timeline, segments=tuple(kept))


def splice(timeline: Timeline, second: int, newer: Timeline) -> Timeline:
    """The prompts of `timeline` before `second`, and those of `newer` from there on.

    Earlier seconds keep their mix of prompts exactly, blend included. The gaps of `newer` hold for all; earlier ones
    are filled. Where the global prompts differ, both are written into their segments and none is left over. A segment
    of `newer` that began earlier begins at `second`, without the cut or picture that it began with. If the prompt
    before `second` goes on in `newer` unchanged, the halves are one segment.
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
    joined = bool(before and after) and before[-1].end == second == after[0].start and not after[0].begins_shot
    if joined and before[-1].prompt == after[0].prompt:
        before.append(replace(before.pop(), end=after.pop(0).end))
    blends, markers = _blends(timeline, second, newer), newer.markers or timeline.markers
    return replace(newer, segments=(*before, *after), earlier_blends=blends, markers=markers)


def _blends(timeline: Timeline, second: int, newer: Timeline) -> tuple[tuple[int, int], ...]:
    """The earlier blends that give `timeline`'s before `second`, and those of `newer` from there on."""
    pairs = [pair for pair in timeline.earlier_blends if pair[0] < second]
    pairs += [(second, timeline.blend_at(second - 1))]
    pairs += [pair for pair in newer.earlier_blends if pair[0] > second]
    following = [blend for _, blend in pairs[1:]] + [newer.blend]
    return tuple(pair for pair, next_blend in zip(pairs, following, strict=True) if pair[1] != next_blend)


def with_pictures(timeline: Timeline, changed: Callable[[Segment], Segment]) -> Timeline:
    """The timeline with `changed` applied to every segment that carries a picture."""
    return replace(timeline, segments=tuple(changed(s) if s.image else s for s in timeline.segments))


def _from(timeline: Timeline, second: int) -> list[Segment]:
    """The segments from `second` on; one that began earlier begins there, as no new shot."""
    later = [s for s in timeline.segments if s.end > second]
    return [s if s.start >= second else Segment(second, s.end, s.prompt) for s in later]


def _prompt_at(timeline: Timeline, second: int) -> str:
    """The segment's prompt that holds in `second`, without the global prompt; empty before the first segment."""
    begun = [s.prompt for s in timeline.segments if s.start <= second]
    return begun[-1] if begun else ""


def _without_gaps(segments: list[Segment], end: int) -> list[Segment]:
    """The same prompts in segments that cover [0, end) whole."""
    starts = [segment.start for segment in segments[1:]] + [end]
    filled = [replace(segment, end=stop) for segment, stop in zip(segments, starts, strict=False)]
    first = filled[0].start if filled else end
    return [Segment(0, first, ""), *filled] if first else filled
