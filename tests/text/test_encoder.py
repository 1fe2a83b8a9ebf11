"""The prompt encoder: leaving the padding out changes nothing, and a prompt's company never changes its embedding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from magi_lite.text.encoder import PromptEncoder, batches
from magi_lite.weights.t5 import load_t5

PROMPTS = [
    "a red ball falls down",
    "",
    "A green box moves slowly to the left of a small yellow triangle and stands",
    "up",
]


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> PromptEncoder:
    return load_t5(tiny_model / "ckpt" / "t5" / "demo", max_length=800)


def padded_to(encoder: PromptEncoder, prompt: str, length: int) -> torch.Tensor:
    """What the published program does: pad, mask, encode everything, in float64."""
    ids = encoder.tokenize(prompt)
    model = encoder.model.double()
    try:
        padded = torch.tensor([ids + [0] * (length - len(ids))])
        mask = (torch.arange(length)[None] < len(ids)).long()
        return model(input_ids=padded, attention_mask=mask).last_hidden_state[0, : len(ids)]
    finally:
        encoder.model.float()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_trimmed_equals_padded_to_800(encoder: PromptEncoder, prompt: str) -> None:
    """float32 against float64 of the padded form: only rounding may differ."""
    ours = encoder.encode([prompt])[0]
    golden = padded_to(encoder, prompt, 800)
    assert ours.shape == golden.shape
    assert (ours.double() - golden).norm() / golden.norm() < 1e-6


def test_order_and_lengths_are_the_prompts_own(encoder: PromptEncoder) -> None:
    together = encoder.encode(PROMPTS)
    assert [len(rows) for rows in together] == [len(encoder.tokenize(prompt)) for prompt in PROMPTS]
    for prompt, rows in zip(PROMPTS, together, strict=True):
        assert torch.equal(rows, encoder.encode([prompt])[0])  # the same bits, whatever the company


def test_batched_by_length_is_the_same_within_rounding(encoder: PromptEncoder) -> None:
    batched = PromptEncoder(encoder.model, encoder.tokenizer, 800, batch_tokens=64)
    for one, many in zip(encoder.encode(PROMPTS), batched.encode(PROMPTS), strict=True):
        assert (one - many).norm() / one.norm() < 1e-5


def test_cut_at_max_length_with_the_end_token(encoder: PromptEncoder) -> None:
    short = PromptEncoder(encoder.model, encoder.tokenizer, max_length=6)
    ids = short.tokenize("a red ball falls down on the green box and bounces")
    assert len(ids) == 6
    assert ids[-1] == encoder.tokenizer.eos_token_id
    assert short.encode(["a red ball falls down on the green box and bounces"])[0].shape[0] == 6


def test_prompts_are_cleaned_first(encoder: PromptEncoder) -> None:
    assert encoder.tokenize("A RED (ball) https://a.com") == encoder.tokenize("a red ball")


def test_batches_respect_the_limit_and_lose_nothing() -> None:
    lengths = torch.randint(1, 40, (50,)).tolist()
    groups = list(batches(lengths, 60))
    assert sorted(number for group in groups for number in group) == list(range(50))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[number] for number in group) <= 60
    assert all(len(group) == 1 for group in batches(lengths, 0))
    assert list(batches([], 60)) == []
