"""The world keeps its own laws, says what it shows, and is the same every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from magi_lite.errors import InputError
from training.latents import SECONDS
from training.world import FRAMES, GRAVITY, RESTITUTION, SPEED, UNITS, film, film_many, make_scene, scene, stage
from training.world.draw import SIZE, TOUCHED, film_touched, ground_place
from training.world.words import (
    CAMERAS,
    COLOURS,
    LIGHTS,
    PLACES,
    SCENERY,
    SIZES,
    THINGS,
    WEATHERS,
    motions_of,
)

PLAIN = {"lights": ("day",), "weathers": ("clear",), "cameras": ("still",), "scenery": ()}


def plain(seconds: int = 1, **options: object) -> dict:
    """By day, in clear weather, before a still camera, with nothing behind."""
    return {name: value * seconds for name, value in PLAIN.items()} | {"name_all": True} | options


@pytest.fixture
def seed() -> int:
    return int(np.random.default_rng().integers(1 << 30))


def covered(scene: scene.Scene) -> np.ndarray:
    """(F, H, W) how much every pixel differs from the stage, of 255."""
    return np.abs(film(scene).astype(int) - stage(scene).astype(int)).max(-1)


def test_equal_seeds_make_equal_bits_and_others_do_not(seed: int) -> None:
    one, again, other = (film(make_scene(s, 2)) for s in (seed, seed, seed + 1))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert one.shape == (48, SIZE, SIZE, 3) and one.dtype == np.uint8


def test_a_batch_is_drawn_as_its_clips_are_and_a_part_as_the_whole(seed: int) -> None:
    scenes = [make_scene(seed + n) for n in range(6)]
    many = film_many(scenes)
    for made, one in zip(many, scenes, strict=True):
        assert np.array_equal(made.numpy(), film(one))
    assert torch.equal(film_many(scenes, frames=slice(5, 9)), many[:, 5:9])


def test_drawing_all_together_as_a_card_does_gives_the_same_pictures(seed: int) -> None:
    from training.world import draw

    scenes = [make_scene(seed + n) for n in range(8)]
    together = draw._draw(scenes, torch.device("cpu"), SIZE, slice(None), True)
    apart = torch.cat([draw._draw([one], torch.device("cpu"), SIZE, slice(None), True) for one in scenes])
    assert (together - apart).abs().max() < 0.1


def test_what_bodies_touch_is_where_the_picture_is_not_the_empty_stage(seed: int) -> None:
    for number in range(3):
        made = make_scene(seed + number, 2, **plain(2))
        frames, touched = film_touched(made)
        assert np.array_equal(frames.numpy(), film(made))
        apart = covered(made)
        assert touched.numpy()[apart > TOUCHED + 1].all() and not touched.numpy()[apart < TOUCHED - 1].any()
    foggy = make_scene(seed, kind="thing", **plain(weathers=("fog",), lights=("night",)))
    assert film_touched(foggy)[1].any((1, 2)).all(), "weather does not hide what counts"


@pytest.mark.parametrize("motion", ["moves left", "moves right"])
@pytest.mark.parametrize("thing", THINGS)
def test_plain_motions_go_their_way_at_constant_speed(motion: str, thing: str, seed: int) -> None:
    made = make_scene(seed, thing=thing, motions=(motion,), start=32.0, **plain())
    steps = np.diff(made.bodies[0].x)
    assert np.allclose(steps, SPEED * (1 if motion == "moves right" else -1))
    assert (made.bodies[0].facing == (1 if motion == "moves right" else -1)).all()


@pytest.mark.parametrize("thing", THINGS)
def test_what_is_drawn_is_where_the_state_says(thing: str, seed: int) -> None:
    """The middle of the changed pixels follows the thing by parts of a pixel, without judder."""
    options = plain(thing=thing, size="small", colour="red", place="desert", motions=("moves right",), start=18.0)
    made = make_scene(seed, **options)
    x, down = ground_place(made.bodies[0].x, 1.0, made.camera_x)
    changed = covered(made) > 24
    columns = (np.arange(SIZE) + 0.5) * UNITS / SIZE
    assert all(abs(np.flatnonzero(frame.any(1)).max() * UNITS / SIZE - down) < 4 for frame in changed)
    smooth = (film(made).astype(float) - stage(made).astype(float)).sum((1, 3))
    centre = (np.abs(smooth) * columns).sum(-1) / np.abs(smooth).sum(-1)
    assert np.abs(centre - x - (centre - x).mean()).max() < 1.5, "parts that swing count too"
    steps = np.diff(centre)
    assert steps.min() > 0.2 and steps.max() < 1.3, "every frame moves on, none jumps"


def test_falls_are_uniformly_accelerated_and_bounce_with_restitution(seed: int) -> None:
    body = make_scene(seed, 2, thing="ball", motions=("falls", "falls"), **plain(2)).bodies[0]
    speed, height = body.vh, body.height
    bounces = [i for i in range(1, len(speed)) if speed[i] > 0 > speed[i - 1]]
    assert bounces, "two seconds are enough to reach the ground"
    for i in range(1, bounces[0]):
        assert speed[i] == pytest.approx(speed[i - 1] - GRAVITY)
        assert height[i] == pytest.approx(height[i - 1] + speed[i - 1] - GRAVITY / 2)
    for i in bounces:
        assert speed[i] == pytest.approx(-RESTITUTION * (speed[i - 1] - GRAVITY))
    assert height.min() >= 0


def test_a_jump_and_a_bounce_end_where_they_began(seed: int) -> None:
    for thing, motion in (("cat", "jumps"), ("ball", "bounces")):
        body = make_scene(seed, 3, thing=thing, motions=(motion,) * 3, **plain(3)).bodies[0]
        assert body.height.max() > 8
        assert np.allclose(body.height[[0, FRAMES, 2 * FRAMES]], 0, atol=1e-6)
        assert np.allclose(body.height[:FRAMES], body.height[FRAMES : 2 * FRAMES], atol=1e-6)


def test_walls_stop_things_and_keep_them_whole(seed: int) -> None:
    """Nothing leaves the picture, wraps round, or is cut off at a wall."""
    for thing in THINGS:
        options = plain(2, thing=thing, colour="red", size="large", place="desert", start=34.0)
        made = make_scene(seed, 2, motions=("moves left",) * 2, **options)
        body = made.bodies[0]
        assert body.x[-1] == pytest.approx(scene.HALF_WIDTHS[thing] * body.radius) and body.vx[-1] == 0
        changed = covered(made) > 24
        area = changed[:, :, :].sum((1, 2))
        assert 0.88 < area[-1] / np.median(area[:12]) < 1.12
        assert not changed[-1, :, 50 * SIZE // UNITS :].any()


def test_walls_are_met_often() -> None:
    """In clips as the transformer is trained on."""
    met = total = 0
    for number in range(120):
        made = make_scene(number, SECONDS, kind="thing")
        for second, motion in enumerate(made.motions):
            if motion in ("moves left", "moves right"):
                total += 1
                met += made.bodies[0].vx[second * FRAMES + FRAMES - 1] == 0
    assert met / total > 0.25


def test_collisions_keep_momentum_and_energy_and_are_a_fifth_of_all() -> None:
    hits = 0
    for number in range(20):
        one, two = make_scene(number, 2, kind="collision").bodies
        masses = np.array([one.radius**2, two.radius**2])[:, None]
        speeds = np.stack([one.vx, two.vx])
        momentum, energy = (masses * speeds).sum(0), (masses * speeds**2).sum(0)
        assert np.allclose(energy, energy[0])
        for i in np.flatnonzero(np.abs(np.diff(two.vx)) > 1e-9):
            walls = [min(b.x[i], UNITS - b.x[i]) < b.radius + 3 for b in (one, two)]
            apart = np.hypot(one.x[i] - two.x[i], one.radius - two.radius)
            if not any(walls):
                hits += 1
                assert np.allclose(momentum[i + 1], momentum[i])
                assert apart < one.radius + two.radius + 2.6, "they touch"
        gap = np.hypot(one.x - two.x, one.radius - two.radius)
        assert (gap > one.radius + two.radius - 3).all(), "they do not pass through each other"
    assert hits > 10
    share = np.mean([len(make_scene(number).bodies) == 2 for number in range(200)])
    assert 0.12 < share < 0.29


def test_balls_turn_as_they_roll(seed: int) -> None:
    body = make_scene(seed, thing="ball", motions=("moves right",), start=20.0, **plain()).bodies[0]
    assert np.allclose(np.diff(body.angle), SPEED / body.radius)


@pytest.mark.parametrize(("camera", "sign"), [("pans left", 1), ("pans right", -1)])
def test_a_pan_moves_near_things_more_than_far_ones(camera: str, sign: int, seed: int) -> None:
    options = plain(cameras=(camera,), thing="box", motions=("stands still",), start=32.0, place="town")
    made = make_scene(seed, **options)
    x, _ = ground_place(made.bodies[0].x, 1.0, made.camera_x)
    far, _ = ground_place(np.full(24, 32.0), 0.6, made.camera_x)
    assert np.sign(x[-1] - x[0]) == sign and abs(x[-1] - x[0]) > abs(far[-1] - far[0]) > 2


@pytest.mark.parametrize(("camera", "larger"), [("zooms in", True), ("zooms out", False)])
def test_a_zoom_changes_the_things_size(camera: str, larger: bool, seed: int) -> None:
    made = make_scene(seed, **plain(cameras=(camera,), thing="box", motions=("stands still",), start=32.0))
    area = (covered(made) > 24).sum((1, 2))
    assert (area[-1] > 1.3 * area[0]) if larger else (area[-1] < 0.8 * area[0])


def test_light_and_weather_show_and_fade(seed: int) -> None:
    pictures = {}
    for light in LIGHTS:
        for weather in WEATHERS:
            options = plain() | {"lights": (light,), "weathers": (weather,)}
            pictures[light, weather] = film(make_scene(seed, place="meadow", kind="scenery", **options)).astype(float)
    assert pictures["night", "clear"].mean() < 0.6 * pictures["day", "clear"].mean()
    for light in LIGHTS:
        contrast = {weather: pictures[light, weather].std((0, 1, 2)).mean() for weather in WEATHERS}
        moving = {weather: np.abs(np.diff(pictures[light, weather], axis=0)).mean() for weather in WEATHERS}
        assert contrast["fog"] < contrast["clear"]
        assert moving["clear"] == moving["fog"] == 0 < min(moving["rain"], moving["snow"])
    fading = make_scene(seed, 2, place="meadow", kind="scenery", **plain(2) | {"lights": ("day", "night")})
    brightness = film(fading).mean((1, 2, 3))
    assert np.allclose(brightness[:FRAMES], brightness[0]) and (np.diff(brightness[FRAMES : FRAMES + 12]) < 0).all()


def test_every_sentence_names_what_is_asked_of_its_second() -> None:
    made = make_scene(
        3, 2, thing="car", colour="yellow", size="small", place="town", motions=("moves left", "jumps"),
        lights=("sunset", "night"), weathers=("clear", "snow"), cameras=("still", "zooms in"), scenery=("house",),
        name_all=True,
    )  # fmt: skip
    for second, words in enumerate((("moves left", "at sunset"), ("jumps", "at night", "in snow", "camera zooms in"))):
        for phrase in ("a small yellow car", "by a house", "in a town", *words):
            assert phrase in made.captions[second]


def test_scenery_is_always_named() -> None:
    """Else what nobody asked for would stand there now and then, and a small model draws it half."""
    for number in range(120):
        made = make_scene(number, 2)
        named = [name for name in SCENERY if all(f"a {name}" in caption for caption in made.captions)]
        assert sorted(named) == sorted(name for name, _, _ in made.scenery)


def test_things_begin_in_sight_and_mostly_stay_there() -> None:
    """A camera that changes every second may leave them, as people's cameras will."""
    stays = []
    for number in range(120):
        made = make_scene(number, 3)
        for body in made.bodies:
            place = 32 + (body.x - 32 - made.camera_x) * made.zoom
            assert 0 < place[0] < 64  # its middle is in the picture
            stays.append(place.min() > 4 and place.max() < 60)
    assert 0.75 < np.mean(stays) < 1


def test_what_the_world_does_not_have_is_refused() -> None:
    for name, value, match in (
        ("colour", "pink", "colour"),
        ("thing", "zebra", "thing"),
        ("place", "moon", "place"),
        ("size", "huge", "size"),
        ("motions", ("falls", "falls"), "motions"),
        ("lights", ("dawn",), "lights"),
        ("weathers", ("hail",), "weathers"),
        ("cameras", ("shakes",), "cameras"),
        ("scenery", ("tower",), "scenery"),
    ):
        with pytest.raises(InputError, match=match):
            make_scene(0, **{name: value})
    with pytest.raises(InputError, match="motions"):
        make_scene(0, thing="car", motions=("bounces",))


def test_every_word_of_the_tables_is_drawn_somewhere() -> None:
    scenes = [make_scene(number, 2) for number in range(200)]
    said = " ".join(caption for made in scenes for caption in made.captions)
    phrases = [*COLOURS, *SIZES, *THINGS, *PLACES, *LIGHTS, *WEATHERS, *CAMERAS, *motions_of("ball"), "hits", "tree"]
    assert [phrase for phrase in phrases if phrase not in said] == []


def test_most_scenes_begin_with_room_for_what_is_asked_and_others_anywhere() -> None:
    starts = {
        motion: np.array([make_scene(seed, motions=(motion,), thing="car").bodies[0].x[0] for seed in range(200)])
        for motion in ("moves right", "moves left", "jumps")
    }
    assert [round(float(np.median(x))) for x in starts.values()] == [20, 44, 32]
    for x in starts.values():
        assert 0.6 < (np.abs(x - np.median(x)) < 2.5).mean() < 0.95
        assert np.ptp(x) > 25
