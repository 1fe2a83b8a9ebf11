"""The shipped demo model does what it is told. The full figures are in benchmarks/demo_quality.json."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from magi_lite.pipeline.decoding import encode_pixels
from magi_lite.weights.layout import DEMO_FOLDER
from magi_lite.weights.opening import open_model
from training.shipped.measure import measure, psnr
from training.shipped.world import FRAMES, make_clip
from training.studio import Studio


@pytest.fixture(scope="module")
def studio() -> Studio:
    files = open_model("demo")
    assert files.trained, "presets/demo holds no weights"
    return Studio(files)


def test_it_is_small() -> None:
    weights = list(DEMO_FOLDER.rglob("*.safetensors"))
    assert weights and sum(path.stat().st_size for path in weights) < 20e6


def test_a_red_ball_asked_to_move_right_does(studio: Studio) -> None:
    measured = [measure(studio.film(["a red ball moves right on a gray background"], seed)) for seed in range(4)]
    assert [m.colour for m in measured] == ["red"] * 4
    assert [m.background for m in measured] == ["gray"] * 4
    assert sum(m.motions == ("moves right",) for m in measured) >= 3
    assert min(m.track[-1, 0] - m.track[0, 0] for m in measured) > 2


@pytest.mark.parametrize("colour", ["green", "blue", "yellow"])
def test_colours_and_backgrounds_are_obeyed(studio: Studio, colour: str) -> None:
    for stage in ("dark", "checkered"):
        measured = measure(studio.film([f"a large {colour} square stays still on a {stage} background"], seed=11))
        assert (measured.colour, measured.background) == (colour, stage)


def test_the_motion_changes_with_the_prompt(studio: Studio) -> None:
    words = [f"a small yellow ball {motion} on a dark background" for motion in ("moves left", "moves right")]
    followed = [measure(studio.film(words, seed)).motions for seed in range(3)]
    assert followed.count(("moves left", "moves right")) >= 2


def test_a_picture_is_where_its_video_begins(studio: Studio) -> None:
    clip = make_clip(960_001)
    made = studio.film([clip.captions[0]], seed=1, prefix=clip.frames[:1])
    assert psnr(made[0], clip.frames[0]) > 26
    assert measure(made).colour == clip.look.colour


def test_a_clip_goes_on_from_where_it_ends(studio: Studio) -> None:
    errors = []
    for seed in range(960_010, 960_013):
        clip = make_clip(seed, 2)
        made = studio.film([clip.captions[1]], seed, prefix=clip.frames[:FRAMES])
        errors.append(np.hypot(*(measure(made).track[0] - measure(clip.frames[FRAMES:]).track[0])))
    assert np.median(errors) < 3


def test_latents_have_unit_variance(studio: Studio) -> None:
    latents = torch.cat([encode_pixels(studio.vae, make_clip(seed).frames, "cpu") for seed in range(960_100, 960_116)])
    assert latents.mean().abs() < 0.1
    spread = latents.std((0, 2, 3, 4))
    assert spread.min() > 0.7 and spread.max() < 1.3
