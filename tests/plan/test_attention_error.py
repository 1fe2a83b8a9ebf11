"""What attention in 8 bits costs: its arithmetic, and the measured errors that let `auto` take it in every quality."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import attention_error
from benchmarks.attention_error import CASES, KEY_BLOCK, by_heads, exact, in_8_bits, off
from benchmarks.figures import RESULTS
from magi_lite import attention_trial
from magi_lite.attention_shared import Reach

STORED = json.loads((RESULTS / "attention_error.json").read_text(encoding="utf-8"))


def test_a_range_by_itself_and_the_beginning_of_a_longer_one_are_as_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_error, "KEYS", 10 * KEY_BLOCK + 7)
    errors = attention_error.measure(CASES["all"], 3)
    assert errors["bf16"] < errors["8 bits"] < attention_trial.LIMITS["sage"]
    assert errors["8 bits, of a longer range"] == pytest.approx(errors["8 bits"], rel=0.15)


def test_heads_read_their_group_and_what_the_range_sees() -> None:
    query, key, value = (torch.randn(1, rows, heads, 16) for rows, heads in ((20, 6), (90, 2), (90, 2)))
    reach = Reach(key, value, 70)
    found = by_heads(lambda q, k, v, seen: exact(q, k[:seen], v[:seen]), query, reach)
    assert off(found, attention_trial.plain(query, *reach.seen)) < 1e-5
    quantized = by_heads(lambda q, k, v, seen: in_8_bits(q, k, v, seen=seen), query, reach)
    assert 0.002 < off(quantized, attention_trial.plain(query, *reach.seen)) < 0.1


def test_in_a_video_it_costs_less_than_the_linears_that_every_quality_takes() -> None:
    """By what is stored: the reason why no quality refuses it."""
    videos = STORED["videos"]
    for way in ("attention in 8 bits", "attention in 8 bits, of a longer range"):
        assert videos[way]["latents"] < 0.5 * videos["linears in fp8"]["latents"]
        assert videos[way]["psnr_db"] > videos["linears in int8"]["psnr_db"] > videos["linears in fp8"]["psnr_db"]
    assert STORED["recorded"]["8 bits, of a longer range"]["largest"] < attention_trial.LIMITS["sage-shared"]
    assert STORED["recorded"]["calls"] >= 30
