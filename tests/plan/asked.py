"""Requests and plans as tests ask for them: the distilled 4.5B model, by name or gigabytes of a card."""

from __future__ import annotations

from dataclasses import replace

from magi_lite import planner
from magi_lite.machine import cards
from magi_lite.models import MODELS
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline import Timeline

MODEL = "4.5B-distill"
SPEC = MODELS[MODEL]


def request(width: int = 720, height: int = 720, window: int = 4, **changes: object) -> GenerationRequest:
    return replace(
        GenerationRequest(Timeline(), width=width, height=height, window=window, model=MODEL), **changes
    )


def plan(card: str | float, *args: int, **changes: object) -> planner.Plan:
    device = cards.known_card(card) if isinstance(card, str) else cards.generic_card(card)
    return planner.plan(request(*args, **changes), "auto", device)
