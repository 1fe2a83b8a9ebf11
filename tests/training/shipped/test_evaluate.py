"""The evaluation's arithmetic, with a studio that films the truth, or something else, in place of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from training.shipped import evaluate as e
from training.shipped import quality as q
from training.shipped.looks import BACKGROUNDS, COLOURS, SHAPES, SIZES, Look
from training.shipped.measure import measure
from training.shipped.world import CORE_MOTIONS, FRAMES, make_clip, make_collision


def read(words: str) -> tuple[Look, str]:
    """The look and motion that a full caption names."""
    found = [next(name for name in table if f" {name}" in words) for table in (COLOURS, SHAPES, SIZES, BACKGROUNDS)]
    return Look(*found), next(motion for motion in CORE_MOTIONS if motion in words)


class Obedient:
    """Films exactly what it is told, from where the world would start, or goes on from the truth it is shown."""

    def film(self, captions: Sequence[str], seed: int, prefix: np.ndarray | None = None, **how: object) -> np.ndarray:
        if prefix is not None and len(prefix) == FRAMES:
            futures = [q._two_seconds(kind, seed).frames for kind in ("falls", "collision", "moves")]
            return next(clip[FRAMES:] for clip in futures if np.array_equal(clip[:FRAMES], prefix))
        if prefix is not None:
            return make_clip(seed, len(captions)).frames
        looks, motions = zip(*map(read, captions), strict=True)
        return make_clip(seed, len(captions), look=looks[0], motions=motions).frames


class Stubborn:
    """Films the same clip whatever it is told."""

    def film(self, captions: Sequence[str], seed: int, prefix: np.ndarray | None = None, **how: object) -> np.ndarray:
        look = Look("purple", "triangle", "large", "checkered")
        return make_clip(1, len(captions), look=look, motions=("stays still",) * len(captions)).frames


def test_an_obedient_studio_gets_full_marks() -> None:
    studio = Obedient()
    text, rows = q.text(studio, 8)
    assert all(text[name]["mean"] == 1 for name in (*q.ATTRIBUTES, "all")) and len(rows) == 8
    prompts, _ = q.chunk_prompts(studio, 8)
    assert prompts["motion_second_second"]["mean"] == 1 and prompts["same_shape"]["mean"] == 1
    assert prompts["seam_jump_pixels"]["mean"] < 2
    image, _ = q.image(studio, 4)
    assert image["first_position_error_pixels"]["mean"] < 0.1 and image["motion"]["mean"] == 1


def test_a_stubborn_studio_does_not() -> None:
    text, _ = q.text(Stubborn(), 12)
    assert text["colour"]["mean"] < 0.6 and text["motion"]["mean"] < 0.6
    prompts, _ = q.chunk_prompts(Stubborn(), 6)
    assert prompts["same_colour"]["mean"] == 1 and prompts["motion_second_second"]["mean"] < 0.7


def test_continuing_with_the_truth_is_perfect_and_baselines_are_not() -> None:
    result, _ = q.continuation(Obedient(), 6)
    assert result["all"]["model"]["spatiotemporal_iou"]["mean"] == 1
    assert result["all"]["model"]["trajectory_error_pixels"]["mean"] == 0
    for baseline in ("last_frame_frozen", "constant_velocity"):
        assert result["falls"][baseline]["spatiotemporal_iou"]["mean"] < 0.8
        assert result["falls"][baseline]["mse"]["mean"] > 0
    assert result["moves"]["constant_velocity"]["trajectory_error_pixels"]["mean"] < 1.0


def test_constant_velocity_goes_on_as_a_free_ball_does() -> None:
    clip = make_clip(2, 1, look=Look("red", "ball", "small", "gray"), motions=("moves right",), start=(12.0, 30.0))
    np.testing.assert_array_equal(q.constant_velocity(clip, 11, 12), clip.frames[12:])
    two = make_collision(3)
    np.testing.assert_array_equal(q.constant_velocity(two, 1, 2), two.frames[2:4])


def test_figures_state_spread_and_count() -> None:
    made = q.figure([1.0, 2.0, 3.0, float("inf"), float("nan")])
    assert made == {"mean": 2.0, "standard_error": round(1 / 3**0.5, 4), "n": 3, "left_out": 2}
    assert q.figure([])["mean"] is None
    assert q.figures([{"a": 1.0}, {"a": 3.0, "b": 2.0}])["b"]["n"] == 1


def test_a_motion_without_room_does_not_count() -> None:
    clip = make_clip(4, 1, look=Look("red", "ball", "small", "gray"), motions=("moves right",), start=(50.0, 30.0))
    at_the_wall = measure(clip.frames)
    assert not q._fits(at_the_wall, "moves right") and q._fits(at_the_wall, "moves left")


def test_results_grow_part_by_part(tmp_path: Path) -> None:
    out = tmp_path / "quality.json"
    e.evaluate(Obedient(), ["text"], 2, out)
    e.evaluate(Obedient(), ["text"], 3, out, label="other")
    results = json.loads(out.read_text())
    assert results["text"]["samples"] == 2 and results["text_other"]["samples"] == 3
    assert results["text"]["figures"]["colour"] == {"mean": 1.0, "standard_error": 0.0, "n": 2}
    assert (tmp_path / "results" / "demo_text.png").stat().st_size > 1000


def test_the_seeds_are_not_training_seeds() -> None:
    """Pools are made from seed * 1,000,000 + number; the autoencoder's clips from 100,000 on."""
    from training.train_vae import HELD_OUT

    assert q.HELD_OUT >= HELD_OUT


@pytest.mark.parametrize("part", sorted(q.PARTS))
def test_every_part_says_what_it_measures(part: str) -> None:
    assert (q.PARTS[part].__doc__ or "").strip()
