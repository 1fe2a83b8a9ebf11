"""After memory ran out: less of the memory that did, and no more of the other than there is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from magi_lite import planner
from magi_lite.machine import cards
from magi_lite.machine.cards import GIB, PINNED_SHARE
from magi_lite.planner.plan import vram_limit
from magi_lite.request.request import GenerationRequest
from magi_lite.timeline import Timeline


def plan(device: cards.Device, size: int = 480, window: int = 1) -> planner.Plan:
    asked = GenerationRequest(Timeline(), width=size, height=size, window=window, model="4.5B-distill")
    return planner.plan(asked, "auto", device)


@pytest.mark.parametrize("phase", ["denoise", "decode", None])
def test_where_ram_ran_out_beside_a_card_the_next_plan_takes_less_ram(phase: planner.Phase | None) -> None:
    device = replace(cards.known_card("RTX 4050 Laptop"), ram_bytes=32 * GIB)
    current = plan(device)
    assert current.pinned_bytes > 0
    smaller = planner.next_smaller(current, phase, "ram")
    assert smaller is not None
    for busy in ("denoise", "decode"):
        assert smaller.phase_bytes(busy, "ram", "pinned") <= 0.9 * current.phase_bytes(busy, "ram", "pinned")
    assert smaller.needed_vram_bytes <= vram_limit(device)


def test_where_the_card_ran_out_no_more_is_pinned_than_may_be() -> None:
    """Streaming would need less of the card, and more RAM than the machine has: that is no way out."""
    for gigabytes in (6, 8, 12, 24):
        device = replace(cards.known_card("RTX 4070"), ram_bytes=gigabytes * GIB)
        current = plan(device, 720, 4)
        while (smaller := planner.next_smaller(current, "denoise")) is not None:
            assert smaller.pinned_bytes <= max(current.pinned_bytes, PINNED_SHARE * device.ram_bytes)
            assert smaller.peak_ram_bytes <= max(current.peak_ram_bytes, 0.95 * device.ram_bytes)
            current = smaller


def test_ram_that_ran_out_while_reading_words_leaves_a_smaller_text_encoder() -> None:
    device = replace(cards.known_card("RTX 4050 Laptop"), ram_bytes=32 * GIB)
    current = plan(device)
    current = replace(current, execution=replace(current.execution, t5="bf16", t5_device="cpu"))
    smaller = planner.next_smaller(current, "text", "ram")
    assert smaller is not None and (smaller.execution.t5_device, smaller.execution.t5) == ("cpu", "nf4")
