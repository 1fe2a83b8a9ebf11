"""The timeline: which prompt speaks in which second."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """A prompt for the whole seconds [start, end)."""

    start: int
    end: int
    prompt: str


@dataclass(frozen=True)
class Timeline:
    """Segments in order, with a global prompt in front of each; `blend` chunks are mixed at a seam."""

    segments: tuple[Segment, ...] = ()
    global_prompt: str = ""
    blend: int = 0
