"""The plan's allowance against what a card's allocator held beyond the tensors: every peak that was measured there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from magi_lite.planner.plan import CONTEXT_BYTES, fragment_bytes

MEASURED = json.loads((Path(__file__).parents[2] / "benchmarks/results/gpu_h100.json").read_text(encoding="utf-8"))
IDLE = 0.6e9
"""The most that an allowance may be beyond what was needed: of a card of 6 GB it would be a tenth."""
TOTAL = 85.02e9
"""Bytes of the card that was measured, as its driver tells."""
CONTEXT = TOTAL - MEASURED["versions"]["free_bytes"]
"""What must be left of the allowance for the CUDA context: what was gone of an idle card."""


def rows(found: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every result that has a peak and what the allocator held then, by its place."""
    if isinstance(found, dict) and {"peak_gb", "reserved_gb"} <= found.keys():
        yield name, found
    inner = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, value in inner:
        yield from rows(value, f"{name} {key}".strip())


ROWS = dict(rows(MEASURED))


def allowed(name: str) -> float:
    """Bytes of fragments that a plan allows for at this peak."""
    row = ROWS[name]
    streams = 2 if row.get("decoding") == "beside" else 1
    return fragment_bytes(int(row["peak_gb"] * 1e9), streams, fixed=name == "windows as_windows")


def test_the_results_hold_what_is_compared() -> None:
    assert len(ROWS) > 40 and {"windows as_windows", "windows as_here", "generation 1", "planned"} <= ROWS.keys()
    assert ROWS["generation 1"]["decoding"] == "beside"
    assert MEASURED["versions"]["segments_grow"] is True
    assert 0.5e9 < CONTEXT < 0.7e9


@pytest.mark.parametrize("name", ROWS)
def test_fragments_are_allowed_for(name: str) -> None:
    row = ROWS[name]
    held = (row["reserved_gb"] - row["peak_gb"]) * 1e9
    assert held <= allowed(name) <= held + IDLE


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if "planned_gb" in row])
def test_what_is_planned_covers_what_was_held(name: str) -> None:
    """A peak that came out higher than planned (workspaces of matrix products) is in the allowance, too."""
    row = ROWS[name]
    assert row["planned_gb"] * 1e9 + allowed(name) + CONTEXT_BYTES >= row["reserved_gb"] * 1e9 + CONTEXT
