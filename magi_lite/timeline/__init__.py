"""Timelines: which prompt applies to which second; `edit` changes them, `text` reads and prints them."""

from magi_lite.timeline.markers import Marker
from magi_lite.timeline.timeline import MAX_BLEND, MAX_SECONDS, PromptMix, Segment, Shot, Timeline

__all__ = ["MAX_BLEND", "MAX_SECONDS", "Marker", "PromptMix", "Segment", "Shot", "Timeline"]
