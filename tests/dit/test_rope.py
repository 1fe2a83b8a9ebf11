"""Rotary tables: relative in effect, kept while nothing changes, never stale."""

from __future__ import annotations

import torch

from magi_lite.dit.rope import CACHED_TABLES, Rope, rope_table, rotate
from tests.dit.formula import angles, rotated


def test_table_and_rotation_equal_the_formula() -> None:
    bands = torch.rand(3, generator=torch.Generator().manual_seed(0))
    for start, frames, height, width in ((0, 2, 3, 5), (18, 3, 4, 1), (7, 1, 1, 6)):
        angle = angles(bands.double(), start, frames, height, width)
        table = rope_table(bands, start, frames, height, width)
        assert (table - torch.cat([angle.sin(), angle.cos()], dim=1)).abs().max() < 5e-6
        x = torch.randn(angle.shape[0], 2, 24, generator=torch.Generator().manual_seed(1))
        wanted = torch.stack([rotated(x[:, head].double(), angle) for head in range(2)], dim=1)
        assert (rotate(x, table) - wanted).abs().max() < 2e-5


def test_only_the_distance_in_time_counts() -> None:
    bands = Rope(32).bands.detach()
    generator = torch.Generator().manual_seed(2)
    query, key = torch.randn(1, 1, 32, generator=generator), torch.randn(1, 1, 32, generator=generator)

    def product(at: int, distance: int) -> torch.Tensor:
        there, here = (rope_table(bands, position, 1, 1, 1) for position in (at + distance, at))
        return (rotate(query, there) * rotate(key, here)).sum()

    for distance in (0, 1, 17):
        assert (product(0, distance) - product(6000, distance)).abs() < 5e-3
    assert (product(0, 1) - product(0, 17)).abs() > 5e-2


def test_a_table_is_made_once_and_again_when_the_bands_change() -> None:
    rope = Rope(32).requires_grad_(False)
    first = rope(6, 2, 3, 4)
    assert rope(6, 2, 3, 4) is first
    assert rope(12, 2, 3, 4) is not first
    with torch.inference_mode():
        assert not rope(6, 2, 3, 4).requires_grad
    assert not rope(6, 2, 3, 4).is_inference()  # one made in inference mode could not serve autograd
    rope.bands.mul_(2)
    assert torch.equal(rope(6, 2, 3, 4), rope_table(rope.bands, 6, 2, 3, 4))
    rope.bands = torch.nn.Parameter(rope.bands * 2, requires_grad=False)
    assert torch.equal(rope(6, 2, 3, 4), rope_table(rope.bands, 6, 2, 3, 4))


def test_an_endless_video_keeps_a_bounded_number_of_tables() -> None:
    rope = Rope(32).requires_grad_(False)
    for chunk in range(3 * CACHED_TABLES):
        rope(6 * chunk, 2, 3, 4)
    assert len(rope._tables) == CACHED_TABLES


def test_bands_in_training_get_their_gradient() -> None:
    rope = Rope(32)
    for _ in range(2):
        rope.bands.grad = None
        rope(6, 2, 3, 4).square().sum().backward()
        rope(6, 2, 3, 4)[:, :12].sum().backward()
        assert rope.bands.grad is not None and rope.bands.grad.abs().min() > 0
