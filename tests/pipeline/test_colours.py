"""The linear map from latents to colours, against a solution in float64, and in a run."""

from __future__ import annotations

import numpy as np
import torch

from magi_lite import events
from magi_lite.jobs.live import Live, side_by_side
from magi_lite.pipeline.colours import SIDE, ColourMap
from magi_lite.workers import wire


def second(generator: np.random.Generator, true: np.ndarray, t: int = 3, h: int = 4, w: int = 5) -> tuple:
    """Latents and frames whose mean colours are a linear function of them, with noise within a block."""
    latents = generator.normal(size=(1, 16, t, h, w)).astype(np.float32)
    colours = np.moveaxis(latents[0], 0, -1) @ true[:16] + true[16]  # (t, h, w, 3)
    frames = np.repeat(np.repeat(np.repeat(colours, 4, 0), 8, 1), 8, 2)
    return torch.from_numpy(latents), np.clip(frames + generator.normal(size=frames.shape), 0, 255).astype(np.uint8)


def test_the_map_is_the_least_squares_solution_of_all_seconds_shown() -> None:
    generator = np.random.default_rng()
    true = np.concatenate([generator.normal(size=(16, 3)) * 6, np.full((1, 3), 128.0)])
    seen = [second(generator, true) for _ in range(4)]
    colours = ColourMap()
    assert not colours.ready
    for latents, frames in seen:
        colours.learn(latents, frames)
    assert colours.ready
    rows = np.concatenate([np.moveaxis(latents[0].numpy(), 0, -1).reshape(-1, 16) for latents, _ in seen]).astype(float)
    means = [frames.reshape(3, 4, 4, 8, 5, 8, 3).mean((1, 3, 5)).reshape(-1, 3) for _, frames in seen]
    rows = np.c_[rows, np.ones(len(rows))]
    solved = np.linalg.lstsq(rows, np.concatenate(means), rcond=None)[0]
    latents, _ = second(generator, true)
    wanted = np.moveaxis(latents[0].numpy(), 0, -1) @ solved[:16] + solved[16]
    made = colours.pictures(latents)
    assert made.shape == (3, 4, 5, 3) and made.dtype == np.uint8
    assert np.abs(made - np.clip(wanted, 0, 255)).max() < 1.5


def test_one_flat_second_gives_its_colour_and_odd_shapes_are_left_out() -> None:
    colours = ColourMap()
    colours.learn(torch.zeros(1, 16, 2, 2, 2), np.zeros((4, 16, 16, 3), np.uint8))  # of 8 frames only 4
    assert not colours.ready
    colours.learn(torch.zeros(1, 16, 2, 2, 2), np.full((8, 16, 16, 3), (10, 255, 30), np.uint8))
    made = colours.pictures(torch.zeros(1, 16, 2, 2, 2))
    assert np.abs(made.astype(int) - (10, 255, 30)).max() <= 1
    assert max(colours.pictures(torch.zeros(1, 16, 1, 300, 500)).shape) <= SIDE


def test_moving_previews_reach_the_page() -> None:
    image = np.random.default_rng().integers(0, 255, (4, 6, 9, 16, 3)).astype(np.uint8)
    event = wire.unpack(*wire.pack(events.MovingPreview(2, image)))  # type: ignore[misc]
    assert isinstance(event, events.MovingPreview) and (event.image == image).all()
    live = Live(window=4, seconds=8)
    live.take(event)
    shown = live.snapshot(0)
    assert [one["second"] for one in shown["moving"]] == [2, 3, 4, 5] and shown["moving"][0]["moments"] == 6
    assert shown["moving"][0]["aspect"] == 16 / 9
    assert live.snapshot(shown["preview_version"])["moving"] is None  # the page has it
    assert (side_by_side(image[0])[:, 16:32] == image[0, 1]).all()
