"""Planned seconds against those of a card: every pass that was measured there, in every scheme and at every size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from magi_lite.machine.cards import known_card
from magi_lite.models import MODELS
from magi_lite.planner import speed
from magi_lite.planner.execution import Execution
from magi_lite.planner.passes import Work

MEASURED = json.loads((Path(__file__).parents[2] / "benchmarks/results/gpu_h100.json").read_text(encoding="utf-8"))
PASSES = MEASURED["passes"] + MEASURED["more_passes"]
MODEL = MODELS["4.5B-distill"]


@pytest.mark.parametrize("row", PASSES, ids=lambda row: f"{row['scheme']} {row['size'][0]} {row['window']}")
def test_a_planned_pass_takes_what_was_measured(row: dict[str, Any]) -> None:
    """Within a fifth; a window of four looks back 5, 4, 3 and 2 chunks, one alone 5, as the benchmark has them."""
    execution = Execution(
        device="cuda", dtype="bfloat16", kv_dtype="bf16", scheme=row["scheme"], attention=row["attention"]
    )
    work = Work(row["window"], 14 / 4 if row["window"] == 4 else 5, 1)
    tokens = speed.tokens_per_chunk(MODEL, *row["size"])
    planned = speed._forward_seconds(MODEL, tokens, work, execution, known_card("H100 80GB"))
    assert planned == pytest.approx(row["seconds"], rel=0.2)


def test_other_cards_attention_keeps_its_share() -> None:
    hopper, ada = known_card("H100 80GB"), known_card("RTX 4090")
    assert speed.attention_efficiency("sdpa", ada) == speed.ATTENTION_EFFICIENCY["sdpa"]
    assert speed.attention_efficiency("sdpa", hopper) * 989 == pytest.approx(563, rel=0.01)
