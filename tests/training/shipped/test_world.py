"""The world keeps its own laws, says what it does, and is the same every time."""

import numpy as np
import pytest

from magi_lite.errors import InputError
from training.shipped import world
from training.shipped.looks import Look
from training.shipped.world import make_clip, make_collision

LARGE_BALL = Look("red", "ball", "large", "dark")


@pytest.fixture
def seed(request):
    return int(np.random.default_rng().integers(1 << 30))


def test_equal_seeds_make_equal_bits_and_others_do_not(seed):
    one, again, other = make_clip(seed, 2), make_clip(seed, 2), make_clip(seed + 1, 2)
    assert np.array_equal(one.frames, again.frames) and one.captions == again.captions
    assert not np.array_equal(one.frames, other.frames)
    assert one.frames.shape == (48, 64, 64, 3) and one.frames.dtype == np.uint8


@pytest.mark.parametrize("motion", sorted(world.DIRECTIONS))
def test_plain_motions_go_their_way_at_constant_speed(motion):
    clip = make_clip(3, look=LARGE_BALL, motions=(motion,), start=(32.0, 32.0))
    way = np.array(world.DIRECTIONS[motion])
    steps = np.diff(clip.position[:, 0], axis=0)
    assert np.allclose(steps, way * world.SPEED)


def test_what_is_drawn_is_where_the_state_says():
    clip = make_clip(5, look=Look("white", "ball", "large", "dark"), motions=("moves right",), start=(20.0, 30.0))
    light = clip.frames.astype(float).mean(-1) - 30
    light = np.clip(light, 0, None)
    centres = np.arange(64) + 0.5
    x = (light.sum(1) * centres).sum(-1) / light.sum((1, 2))
    y = (light.sum(2) * centres).sum(-1) / light.sum((1, 2))
    assert np.allclose(np.stack([x, y], 1), clip.position[:, 0], atol=0.15)


def test_falls_are_uniformly_accelerated_and_bounce_with_restitution():
    clip = make_clip(7, 2, look=Look("blue", "ball", "small", "gray"), motions=("falls", "falls"), start=(30.0, 10.0))
    speed, height = clip.velocity[:, 0, 1], clip.position[:, 0, 1]
    bounces = [i for i in range(1, len(speed)) if speed[i] < 0 < speed[i - 1]]
    assert bounces, "two seconds are enough to reach the floor"
    free = [i for i in range(1, len(speed)) if i not in bounces and abs(speed[i] - speed[i - 1] - world.GRAVITY) < 1e-9]
    assert len(free) >= len(speed) - len(bounces) - 3
    for i in bounces:
        assert speed[i] == pytest.approx(-world.RESTITUTION * (speed[i - 1] + world.GRAVITY))
    assert height.max() <= world.SIZE - world.SIZES["small"] + 1e-9


def test_a_slide_loses_speed_evenly_and_stands():
    clip = make_clip(
        9, look=Look("green", "square", "small", "dark"), motions=("slides to a stop",), start=(12.0, 30.0)
    )
    speed = clip.velocity[1:, 0, 0]
    assert np.all(np.diff(speed[speed > 0]) == pytest.approx(-world.FRICTION))
    assert speed[-1] == 0


def test_sizes_and_angles_follow_the_words():
    for motion, sign in (("grows", 1), ("shrinks", -1)):
        radius = make_clip(1, look=LARGE_BALL, motions=(motion,), start=(32.0, 32.0)).radius[:, 0]
        assert np.allclose(np.diff(radius), sign * world.GROWTH)
    angle = make_clip(1, look=Look("red", "square", "large", "dark"), motions=("turns",), start=(32.0, 32.0)).angle[
        :, 0
    ]
    assert np.allclose(np.diff(angle), world.TURN)


def test_collisions_keep_momentum_and_energy(seed):
    hits = 0
    for number in range(seed, seed + 48):
        clip = make_collision(number)
        mass, velocity = clip.radius**2, clip.velocity
        energy = (mass[..., None] * velocity**2).sum((1, 2))
        assert np.allclose(energy, energy[0])
        momentum = (mass[..., None] * velocity).sum(1)
        apart = np.hypot(*(clip.position[:, 0] - clip.position[:, 1]).T)
        for i in np.flatnonzero(np.abs(np.diff(velocity[:, 1, 0])) > 1e-9):
            touching = apart[i] < clip.radius[i].sum() + 4
            at_wall = any(
                min(p, world.SIZE - p) < r + 3
                for p, r in zip(clip.position[i].T.flat, np.tile(clip.radius[i], 2), strict=True)
            )
            if touching and not at_wall:
                hits += 1
                assert np.allclose(momentum[i + 1], momentum[i])
    assert hits > 12, "half of these balls meet away from walls"


def test_captions_name_what_is_seen_second_by_second():
    look = Look("yellow", "triangle", "small", "checkered")
    clip = make_clip(11, 2, look=look, motions=("moves left", "falls"))
    assert all("yellow triangle" in caption for caption in clip.captions)
    assert "moves left" in clip.captions[0] and "falls" in clip.captions[1]


def test_what_the_world_does_not_have_is_refused():
    with pytest.raises(InputError, match="colour"):
        Look("pink", "ball", "small", "dark")
    with pytest.raises(InputError, match="motions"):
        make_clip(0, 2, motions=("falls",))
