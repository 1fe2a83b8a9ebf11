"""The measuring routine must read the world's own clips, also blurred, and must not read meaning into noise."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from magi_lite.errors import InputError
from training.shipped import measure as m
from training.shipped.looks import BACKGROUNDS, COLOURS, SHAPES, SIZE, SIZES, Look
from training.shipped.world import CORE_MOTIONS, FRAMES, Clip, make_clip, make_collision

SEEDS = range(40_000, 40_200)
ATTRIBUTES = ("colour", "shape", "size", "background", "motion")
CHANCE = {
    "colour": 1 / len(COLOURS),
    "shape": 1 / len(SHAPES),
    "size": 1 / len(SIZES),
    "background": 1 / len(BACKGROUNDS),
    "motion": 1 / len(CORE_MOTIONS),
}


@cache
def clips() -> tuple[Clip, ...]:
    return tuple(make_clip(seed) for seed in SEEDS)


@cache
def own_measurements() -> tuple[m.Measurement, ...]:
    return tuple(m.measure(clip.frames) for clip in clips())


def truth(clip: Clip, attribute: str) -> str:
    return clip.motions[0] if attribute == "motion" else getattr(clip.look, attribute)


def accuracy(measured: list[m.Measurement], of: list[Clip], attribute: str) -> float:
    return float(np.mean([a.attribute(attribute) == truth(c, attribute) for a, c in zip(measured, of, strict=True)]))


def blurred(frames: np.ndarray, rng: np.random.Generator, noise: float = 5.0) -> np.ndarray:
    """A [1 2 1] blur in both directions and Gaussian noise: about what an autoencoder of 27 dB leaves."""
    x = frames.astype(np.float32)
    for axis in (1, 2):
        x = (np.roll(x, 1, axis) + 2 * x + np.roll(x, -1, axis)) / 4
    return np.clip(x + rng.normal(0, noise, x.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_reads_the_worlds_own_clips(attribute: str) -> None:
    assert accuracy(list(own_measurements()), list(clips()), attribute) >= 0.99


def test_reads_blurred_and_noisy_clips() -> None:
    rng = np.random.default_rng(1)
    some = list(clips()[:60])
    worse = [blurred(clip.frames, rng) for clip in some]
    assert np.mean([m.psnr(a, c.frames) for a, c in zip(worse, some, strict=True)]) < 32
    measured = [m.measure(frames) for frames in worse]
    for attribute in ATTRIBUTES:
        assert accuracy(measured, some, attribute) >= 0.98, attribute
    assert np.mean([a.sharpness for a in measured]) < 0.8 * np.mean([a.sharpness for a in own_measurements()[:60]])


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_another_clip_is_at_chance(attribute: str) -> None:
    measured = list(own_measurements())
    agreement = accuracy(measured[1:] + measured[:1], list(clips()), attribute)
    chance = CHANCE[attribute]
    assert abs(agreement - chance) < 4 * np.sqrt(chance * (1 - chance) / len(measured))


def test_random_frames_are_at_chance() -> None:
    rng = np.random.default_rng(2)
    some = list(clips()[:48])
    measured = [m.measure(rng.integers(0, 256, (FRAMES, SIZE, SIZE, 3), dtype=np.uint8)) for _ in some]
    for attribute in ATTRIBUTES:
        chance = CHANCE[attribute]
        limit = chance + 4 * np.sqrt(chance * (1 - chance) / len(some))
        assert accuracy(measured, some, attribute) <= limit, attribute


def test_an_empty_stage_has_no_body() -> None:
    clip = make_clip(1, look=Look("red", "ball", "small", "gray"))
    empty = np.broadcast_to(m.background("gray").astype(np.uint8), clip.frames.shape)
    measured = m.measure(empty)
    assert measured.background == "gray"
    assert (measured.colour, measured.shape, measured.size, measured.motions) == (None, None, None, (None,))
    assert np.isnan(measured.track).all()


def test_the_track_follows_the_truth() -> None:
    errors = []
    for clip, measured in zip(clips()[:60], own_measurements(), strict=False):
        offset = 2 / 15 * clip.radius[:, 0] if clip.look.shape == "triangle" else 0.0
        inside = clip.position[:, 0, 1] - 1.2 * clip.radius[:, 0] > 0  # the top of a triangle may be cut off
        true = clip.position[:, 0] + np.stack([np.zeros(FRAMES), np.broadcast_to(offset, FRAMES)], 1)
        errors.append(np.hypot(*(measured.track - true).T)[inside])
    assert np.concatenate(errors).mean() < 0.1
    assert np.concatenate(errors).max() < 1.0


def test_every_second_has_its_motion() -> None:
    motions = ("moves right", "stays still", "moves left", "falls")
    look = Look("yellow", "square", "large", "checkered")
    measured = m.measure(make_clip(3, 4, look=look, motions=motions, start=(20.0, 18.0)).frames)
    assert measured.motions == motions


@pytest.mark.parametrize("motion", ["grows", "shrinks", "slides to a stop"])
def test_the_wider_world_can_be_measured(motion: str) -> None:
    measured = [m.measure(make_clip(seed, motions=(motion,)).frames, m.MEASURABLE) for seed in range(10)]
    assert [a.motions[0] for a in measured] == [motion] * 10


def test_two_balls_are_tracked_by_their_colours() -> None:
    for seed in range(6):
        clip = make_collision(seed)
        tracks = m.colour_tracks(clip.frames, clip.look.background, (clip.look.colour, clip.other_colour))
        assert m.trajectory_error(tracks, clip.position) < 0.6


def test_physics_measures_of_two_squares() -> None:
    """Hand-made masks: 8x8 squares, one standing, one moving 4 pixels a frame."""
    still, moving = (np.broadcast_to(m.background("dark"), (3, SIZE, SIZE, 3)).astype(np.uint8) for _ in range(2))
    still, moving = still.copy(), moving.copy()
    for frame in range(3):
        still[frame, 20:28, 20:28] = 255
        moving[frame, 20:28, 20 + 4 * frame : 28 + 4 * frame] = 255
    score = m.physics_score(moving, still, "dark")
    assert score.spatial_iou == pytest.approx(64 / 128)
    assert score.spatiotemporal_iou == pytest.approx((1 + 32 / 96 + 0) / 3)
    # columns 20-24 are covered in 1 frame by the moving square, 24-28 in 2, against 3 by the standing one
    assert score.weighted_spatial_iou == pytest.approx((4 * 1 + 4 * 2) / (8 * 3 + 4 * 2 + 4 * 1))
    differing = (0 + 64 + 128) * (227**2 + 227**2 + 221**2)
    assert score.mse == pytest.approx(differing / (3 * SIZE * SIZE * 3) / 255**2)
    same = m.physics_score(still, still, "dark")
    assert (same.spatial_iou, same.spatiotemporal_iou, same.weighted_spatial_iou, same.mse) == (1, 1, 1, 0)


def test_trajectory_error_counts_what_is_not_seen() -> None:
    true = np.zeros((4, 2))
    made = np.array([[3.0, 4.0], [0, 0], [0, 0], [np.nan, np.nan]])
    assert m.trajectory_error(made, true) == pytest.approx((5 + 0 + 0 + 32) / 4)


def test_refusals() -> None:
    with pytest.raises(InputError, match="64, 64, 3"):
        m.measure(np.zeros((24, 32, 32, 3), np.uint8))
    with pytest.raises(InputError, match="turns"):
        m.measure(np.zeros((24, 64, 64, 3), np.uint8), ("turns",))
