"""Where nothing fits: true numbers, and choices each of which fits when it is asked for."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest

from magi_lite import planner
from magi_lite.errors import InputError, PlanError
from magi_lite.machine import cards
from magi_lite.machine.cards import GIB, Device
from magi_lite.request.request import GenerationRequest, Overrides
from magi_lite.timeline import Timeline

FREE = 0.95
POOL: dict[str, tuple[object, ...]] = {
    "scheme": ("bf16", "fp8", "int8", "nf4"),
    "layers": ("resident", "streamed"),
    "kv_dtype": ("bf16", "fp8"),
    "kv_place": ("device", "pinned"),
    "vae": ("resident", "decoder", "swapped", "cpu"),
    "t5": ("bf16", "int8", "nf4"),
    "t5_device": ("cuda", "cpu"),
    "mlp_slice": (1024, 8192),
}


def request(width: int, height: int, window: int, model: str = "4.5B-distill", **fixed: object) -> GenerationRequest:
    return replace(
        GenerationRequest(Timeline()), width=width, height=height, window=window, model=model,
        overrides=Overrides(**fixed),
    )  # fmt: skip


def refusal(asked: GenerationRequest, device: Device) -> PlanError | None:
    try:
        planner.plan(asked, "auto", device)
    except PlanError as error:
        return error
    return None


def taken(asked: GenerationRequest, choice: str) -> GenerationRequest:
    """The request that a choice's words ask for."""
    words = choice.split()
    if "instead" in words:
        value = int(words[1]) if words[1].isdigit() else words[1]
        if words[0] == "model":
            return replace(asked, model=value)
        return replace(asked, overrides=replace(asked.overrides, **{words[0]: value}))
    found = re.fullmatch(r"(?:(\d+)x(\d+))?(?:(?: with )?window (\d))?( and everything else automatic)?", choice)
    assert found is not None, choice
    if found[1]:
        asked = replace(asked, width=int(found[1]), height=int(found[2]))
    if found[3]:
        asked = replace(asked, window=int(found[3]))
    return replace(asked, overrides=Overrides()) if found[4] else asked


def test_every_choice_of_a_refusal_fits_when_it_is_taken() -> None:
    generator = random.Random(random.randrange(10**9))
    refused = named = 0
    while refused < 12:
        device = cards.with_memory(generator.choice(cards.known_cards()), generator.choice([1, 2, 3, 4, 6, 8, 12]))
        if generator.random() < 0.3:
            device = replace(device, ram_bytes=generator.choice([4, 8, 16, 32]) * GIB)
        fixed = {name: generator.choice(values) for name, values in POOL.items() if generator.random() < 0.3}
        model = generator.choice(["4.5B-distill", "4.5B-base", "24B-distill"])
        sides = [16 * generator.randint(2, 100) for _ in range(2)]
        asked = request(*sides, generator.choice([1, 2, 4]), model, **fixed)
        error = refusal(asked, device)
        if error is None:
            continue
        refused += 1
        named += len(error.choices)
        for choice in error.choices:
            assert planner.plan(taken(asked, choice), "auto", device).fits, (choice, device, asked)
        assert error.choices or "No size of it fits" in str(error)
    assert named


@pytest.mark.parametrize("fixed", [{}, {"t5": "bf16", "t5_device": "cuda"}, {"layers": "resident", "scheme": "bf16"}])
def test_the_memory_that_is_said_to_be_needed_is_enough(fixed: dict[str, str]) -> None:
    asked = request(720, 720, 4, **fixed)
    error = refusal(asked, cards.generic_card(2))
    assert error is not None
    needed = float(re.search(r"at least ([\d.]+) GB of graphics memory", str(error))[1])
    assert refusal(asked, cards.generic_card((needed - 0.06) / FREE)) is not None
    assert refusal(asked, cards.generic_card((needed + 0.06) / FREE)) is None


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_ram_that_is_said_to_be_needed_is_enough(kind: str) -> None:
    """Counted with the text encoder that takes least, not with one that nobody would choose there."""
    device = cards.cpu_device() if kind == "cpu" else cards.generic_card(3)
    asked = request(256, 256, 1)
    error = refusal(asked, replace(device, ram_bytes=2 * GIB))
    assert error is not None and error.choices == ()
    needed = float(re.search(r"at least ([\d.]+) GB of RAM", str(error))[1])
    assert refusal(asked, replace(device, ram_bytes=int((needed - 0.06) / FREE * GIB))) is not None
    found = planner.plan(asked, "auto", replace(device, ram_bytes=int((needed + 2.5) / FREE * GIB)))
    assert found.fits


def test_a_card_too_small_for_any_size_is_told_of_the_processor_and_of_a_smaller_model() -> None:
    assert refusal(request(720, 720, 1), cards.generic_card(1)).choices == ("device cpu instead of cuda",)
    error = refusal(request(480, 480, 4, "24B-distill"), cards.generic_card(2.5))
    assert error.choices[0].startswith("model 4.5B-distill")


def test_what_is_free_now_is_said_where_it_is_the_limit() -> None:
    card = replace(cards.known_card("RTX 4090"), free_bytes=GIB)
    assert "1.0 GB of it free now" in str(refusal(request(720, 720, 4), card))


def test_the_processor_beside_a_card_is_planned_at_its_own_pace() -> None:
    card = replace(cards.known_card("RTX 4090"), ram_bytes=64 * GIB)
    found = planner.plan(request(256, 256, 1, device="cpu"), "auto", card)
    alone = planner.plan(request(256, 256, 1), "auto", cards.cpu_device(64 * GIB))
    assert found.execution.device == found.device.kind == "cpu"
    assert found.seconds_per_chunk == alone.seconds_per_chunk


def test_a_contradiction_stays_one() -> None:
    with pytest.raises(InputError, match="already FP8"):
        planner.plan(request(720, 720, 4, "4.5B-distill-fp8", scheme="nf4"), "auto", cards.generic_card(1))
