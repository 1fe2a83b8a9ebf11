"""Captions: encoded once equals encoded each time, rows are joined without copies, every way of attending is equal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import magi_lite.dit.block
from magi_lite.dit.captions import CaptionContext
from magi_lite.dit.model import DiT
from magi_lite.errors import InputError
from tests.dit.conftest import SMALL, Inputs, make_inputs
from tests.dit.test_forward import EXACT, error

RANGES = [(0, 1), (0, 2), (1, 3)]


def run(dit: DiT, given: Inputs, captions: CaptionContext) -> Tensor:
    return dit(given.latents, given.timesteps, captions, first_chunk=0, kv_ranges=RANGES)


def test_encoded_once_equals_encoded_for_every_step(small: DiT) -> None:
    given = make_inputs(SMALL, 21, 1, 3)
    kept = given.captions(small)
    calls = []
    for layer in small.videodit_blocks.layers:
        layer.self_attention.linear_kv_xattn.register_forward_hook(lambda *_: calls.append(1))
    for step in range(3):
        given.timesteps = torch.full((1, 3), 0.1 * step)
        again = run(small, given, kept)
        assert not calls  # no forward computes a caption's keys
        assert torch.equal(again, run(small, given, given.captions(small)))
        assert len(calls) == SMALL.num_layers
        calls.clear()


def test_rows_chosen_and_joined_equal_rows_encoded_alone(small: DiT) -> None:
    given = make_inputs(SMALL, 22, 2, 3)
    together = given.captions(small, torch.tensor([True, False, False, True, False, True]))
    alone = [
        small.encode_captions(given.words[row : row + 1], [given.lengths[row]], dropped=row in (0, 3, 5))
        for row in range(6)
    ]
    wanted = run(small, given, together)
    assert error(run(small, given, CaptionContext.cat(alone)), wanted) < EXACT
    shuffled = together.select([3, 1, 0, 5, 4, 2])
    assert shuffled.lengths == tuple(given.lengths[row] for row in (3, 1, 0, 5, 4, 2))
    assert torch.equal(run(small, given, shuffled.select([2, 1, 5, 0, 4, 3])), wanted)
    assert together.select([4]).row(0, 0).key.data_ptr() == together.row(0, 4).key.data_ptr()


@pytest.mark.parametrize("source", ["one encoding", "joined"])
@pytest.mark.parametrize("lengths", [[4] * 6, [4, 4, 9, 1, 2, 4]], ids=["equal lengths", "mixed lengths"])
def test_one_masked_call_equals_one_call_each(
    small: DiT, lengths: list[int], source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = make_inputs(SMALL, 23, 2, 3)
    given.lengths = lengths
    captions = given.captions(small)
    if source == "joined":
        captions = CaptionContext.cat([captions.select([0]), captions.select([1, 2, 3, 4, 5])])
    monkeypatch.setattr(magi_lite.dit.block, "MOST_CALLS", 100)
    small.attention_slice = 1000
    one_by_one = run(small, given, captions)
    monkeypatch.setattr(magi_lite.dit.block, "MOST_CALLS", 0)
    assert error(run(small, given, captions), one_by_one) < EXACT


def test_padding_behind_a_caption_changes_nothing(small: DiT) -> None:
    given = make_inputs(SMALL, 24, 1, 3)
    wanted = run(small, given, given.captions(small))
    for row, length in enumerate(given.lengths):
        given.words[row, length:] = 1e4
    mask = torch.arange(SMALL.caption_max_length) < torch.tensor(given.lengths)[:, None]
    for as_given in (mask, mask.long(), mask.float()):
        captions = small.encode_captions(given.words, as_given)
        assert captions.lengths == tuple(given.lengths)
        assert error(run(small, given, captions), wanted) < EXACT


def test_dropping_changes_the_condition_but_not_the_words(small: DiT) -> None:
    given = make_inputs(SMALL, 25, 1, 3)
    kept, dropped = given.captions(small, False), given.captions(small, True)
    rows = small.y_embedder.null_caption_embedding[-2:]
    linear = small.y_embedder.y_proj_adaln[0]
    for context, row in ((kept, rows[0]), (dropped, rows[1])):
        assert torch.allclose(context.modulation, (linear.weight @ row + linear.bias).expand(3, -1), atol=1e-6)
    assert torch.equal(kept.row(1, 2).key, dropped.row(1, 2).key)
    assert error(run(small, given, kept), run(small, given, dropped)) > 1e-3


@pytest.mark.parametrize(
    ("shape", "mask", "sentence"),
    [
        ((2, 9, 19), None, "must be .captions, tokens, 20."),
        ((9, 20), None, "must be .captions, tokens, 20."),
        ((2, 9, 20), torch.ones(2, 8), "mask is .2, 8."),
        ((2, 9, 20), torch.tensor([[1, 1] + [0] * 7, [1, 0, 1] + [0] * 6]), "gaps"),
        ((2, 9, 20), torch.tensor([[1, 1] + [0] * 7, [0] * 9]), "each from 1 to 9"),
        ((2, 9, 20), [3], "there must be 2"),
        ((2, 9, 20), [3, 10], "each from 1 to 9"),
    ],
)
def test_captions_that_cannot_be_are_refused(
    small: DiT, shape: tuple[int, ...], mask: Tensor | list[int] | None, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        small.encode_captions(torch.zeros(shape), mask)
