"""The judge's verdicts on clips whose truth is known, and the evaluation with studios that film the truth, or not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training import evaluate as e
from training import quality as q
from training.judge import ATTRIBUTES, FINENESS, Asked, Start, draw, judge, judge_clip, step_ratio, wraps
from training.photographs import Album
from training.world import FRAMES, film
from training.world.words import CAMERAS, LIGHTS, WEATHERS, motions_of

ALL = tuple(range(FRAMES))
CAR = Asked("car", "red", "large", "meadow", "moves right")


def clip(asked: Asked, start: Start | None = None, bodies: bool = True) -> np.ndarray:
    return draw(asked, start or Start(x=25.0), ALL, bodies).round().clip(0, 255).astype(np.uint8)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def test_what_is_shown_as_asked_is_obeyed_whole_and_without_ghosts(rng: np.random.Generator) -> None:
    for _ in range(4):
        asked = q.draw_asked(rng, camera="still")
        start = Start(float(rng.uniform(22, 40)), 18.0 if asked.motion == "falls" else 0.0)
        verdict = judge(clip(asked, start), asked)
        assert all(verdict.followed.values()), (asked, verdict)
        assert verdict.ghosts < 0.02 and verdict.iou > 0.75 and 0.85 < verdict.area < 1.15


@pytest.mark.parametrize(
    ("asked", "x"),
    [
        (Asked("cat", "white", "small", "town", "falls", "night", "snow"), 33.53),
        (Asked("box", "white", "small", "town", "moves left", "night"), 31.23),
        (Asked("box", "purple", "small", "town", "moves right", "night", "rain"), 39.81),
        (Asked("car", "green", "small", "meadow", "stands still", "night"), 27.43),
    ],
)
def test_what_hardly_stands_out_has_its_shape_wherever_it_is(asked: Asked, x: float) -> None:
    verdict = judge(clip(asked, Start(x, 18.0 if asked.motion == "falls" else 0.0)), asked)
    assert verdict.iou > 0.85 and 0.85 < verdict.area < 1.15


@pytest.mark.parametrize(
    ("attribute", "shown"),
    [("thing", "cat"), ("colour", "blue"), ("size", "small"), ("place", "town"), ("light", "night"),
     ("weather", "snow"), ("camera", "zooms in"), ("motion", "moves left"), ("motion", "jumps")],
)  # fmt: skip
def test_what_is_shown_otherwise_is_not_obeyed(attribute: str, shown: str) -> None:
    verdict = judge(clip(replace(CAR, **{attribute: shown})), CAR)
    assert not verdict.followed[attribute]


def test_a_second_copy_is_a_ghost_and_a_missing_thing_has_no_shape() -> None:
    two = np.minimum(clip(CAR, Start(x=16.0)), clip(CAR, Start(x=46.0)))
    assert judge(two, CAR).ghosts > 0.4
    assert judge(clip(CAR, bodies=False), CAR).iou < 0.3


def test_noise_of_an_autoencoder_does_not_change_the_verdict(rng: np.random.Generator) -> None:
    made = clip(CAR).astype(float)
    made += rng.normal(0, 6, made.shape)
    verdict = judge(made.clip(0, 255).astype(np.uint8), CAR)
    assert all(verdict.followed.values()) and verdict.ghosts < 0.05


def test_a_thing_that_comes_in_at_the_other_side_wraps() -> None:
    start = Start(x=22.0, facing=-1)
    going = replace(CAR, motion="moves left")
    true = clip(going, start)
    wrapped = true.copy()
    edge = round(10 * FINENESS)
    wrapped[-1, :, -edge:] = np.roll(true[-1], -round(8 * FINENESS), axis=1)[:, -edge:]
    assert not wraps(true, going, start)
    assert wraps(wrapped, going, start)


@pytest.mark.parametrize("camera", ["pans left", "pans right", "zooms in", "zooms out"])
def test_a_second_answers_for_its_own_camera_alone(camera: str) -> None:
    first, second = replace(CAR, motion="stands still", camera=camera), replace(CAR, motion="jumps", camera="pans left")
    still = clip(replace(first, camera="still"))
    after_it = clip(second, Start(x=25.0, first=FRAMES))
    made = judge_clip(np.concatenate([still, after_it]), [first, second], Start())
    assert not made[0].followed["camera"]
    assert made[1].followed["camera"] and abs(made[1].start.camera_x) <= 1 and abs(made[1].start.zoom - 1) < 0.06
    also_still = clip(replace(second, camera="still"), Start(x=25.0, first=FRAMES))
    made = judge_clip(np.concatenate([still, also_still]), [first, second], Start())
    assert not made[1].followed["camera"]


def test_a_thing_at_the_edge_is_no_wall() -> None:
    seconds = [Asked("ball", "red", "large", "meadow", motion) for motion in ("stands still", "jumps")]
    parts = [clip(words, Start(x=54.0, first=place * FRAMES)) for place, words in enumerate(seconds)]
    assert all(all(one.followed.values()) for one in judge_clip(np.concatenate(parts), seconds, Start()))


def test_what_looks_the_same_is_nothing_else() -> None:
    farthest = Start(x=25.0, zoom=0.75)
    for asked in (replace(CAR, camera="zooms out"), replace(CAR, motion="stands still"), replace(CAR, motion="falls")):
        assert all(judge(clip(asked, farthest), asked, (0.0, 0.75)).followed.values())
    assert not judge(clip(CAR, farthest), replace(CAR, camera="zooms in"), (0.0, 0.75)).followed["camera"]


def test_the_step_ratio_is_one_for_even_motion_and_large_for_a_latents_judder() -> None:
    even = np.arange(48, dtype=np.float32)[:, None, None, None] * np.ones((48, 4, 4, 3), np.float32)
    assert step_ratio(even) == pytest.approx(1.0)
    assert step_ratio(even // 2 + even // 4 * 4) > 2
    jump = even.copy()
    jump[24:] += 5
    assert step_ratio(jump, FRAMES) == pytest.approx(6.0)


class Obedient:
    """Films exactly what it is asked, or goes on from the truth it is shown."""

    def __init__(self, album: Album | None = None) -> None:
        self.album = album or Album((), (), (), ())

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        return frames

    def film(self, captions: Sequence[str], seed: int, prefix: np.ndarray | None = None, **how: object) -> np.ndarray:
        return np.concatenate(list(self.seconds(captions, seed, prefix=prefix)))

    def seconds(
        self, captions: Sequence[str], seed: int, *, prefix: np.ndarray | None = None, **how: object
    ) -> Iterator[np.ndarray]:
        if prefix is not None and len(prefix) == FRAMES:
            scene = q.meeting(seed) if "hits" in captions[0] else q.make_scene(
                seed, 2, motions=("falls", "falls"), **q.STILL
            )  # fmt: skip
            frames = film(scene)
            assert np.array_equal(frames[:FRAMES], prefix)
            yield frames[FRAMES:]
            return
        before, start = None, Start()
        for second, words in enumerate(captions):
            asked = replace(read(words), before=before)
            height = 18.0 if asked.motion == "falls" else 0.0
            start = replace(start, height=height, first=second * FRAMES)
            yield clip(asked, start)
            start = after(asked, start)
            before = (asked.light, asked.weather)


def after(asked: Asked, start: Start) -> Start:
    """Where the next second begins."""
    from training.judge import ideal
    from training.world.scene import camera_path

    body = ideal(asked, start).bodies[0]
    x, zoom = camera_path((asked.camera, "still"), start.camera_x, start.zoom)
    return Start(float(body.x[-1] + body.vx[-1]), 0.0, int(body.facing[-1]), float(x[FRAMES]), float(zoom[FRAMES]))


def read(words: str) -> Asked:
    """What a full caption asks for."""
    _, size, colour, thing = words.split()[:4]
    motion = next(m for m in motions_of("ball") if f"{thing} {m}" in words)
    place = words.split(" in a ")[1].split()[0]
    light = next((name for name in LIGHTS if f"at {name}" in words), "day")
    weather = next((name for name in WEATHERS if f"in {name}" in words), "clear")
    camera = next((name for name in CAMERAS if f"camera {name}" in words), "still")
    return Asked(thing, colour, size, place, motion, light, weather, camera)


class Stubborn(Obedient):
    """Films the same clip whatever it is asked."""

    def seconds(self, captions: Sequence[str], seed: int, **how: object) -> Iterator[np.ndarray]:
        for _ in captions:
            yield clip(Asked("box", "purple", "large", "desert", "stands still"))


def share(counted: str) -> float:
    done, _, of = counted.split()
    return int(done) / int(of)


def test_an_obedient_studio_gets_full_marks_and_a_stubborn_one_does_not() -> None:
    good, rows = q.obedience(Obedient(), 4)
    assert len(rows) == 4 and all(share(good[name]) == 1 for name in ATTRIBUTES if name != "camera")
    bad, _ = q.obedience(Stubborn(), 4)
    assert share(bad["all"]) == 0


def test_changes_are_judged_second_by_second() -> None:
    good, _ = q.changes(Obedient(), 1)
    assert share(good["light"]) == share(good["weather"]) == share(good["colour"]) == 1


def test_walls_stop_what_an_obedient_studio_films() -> None:
    figures, _ = q.walls(Obedient(), 2)
    assert figures["wrapped"] == "0 of 2" and 0.8 < figures["area_at_the_wall"]["mean"] < 1.2


def test_continuing_with_the_truth_is_perfect_and_baselines_are_not() -> None:
    for part in (q.collisions, q.falls):
        figures, _ = part(Obedient(), 2)
        assert figures["model"]["mean"] == 1
        assert figures["last_frame_frozen"]["mean"] < 0.9 and figures["constant_velocity"]["mean"] < 0.95
        assert all(figures[f"{name}_decoded"] == figures[name] for name in q.GUESSES)


def test_photographs_are_held_against_the_true_camera(rng: np.random.Generator) -> None:
    from PIL import Image

    small = rng.integers(0, 255, (12, 18, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(small).resize((384, 256), Image.Resampling.BICUBIC))

    class Frozen(Obedient):
        def film(self, captions, seed, prefix=None, **how):  # type: ignore[no-untyped-def]
            return np.repeat(prefix, FRAMES, 0)

    album = Album((), (picture,) * 4, (), ("a",) * 4)
    figures, rows = q.photographs(Frozen(album), 4)
    assert all(abs(figures[name]["mean"]) < 1e-6 for name in figures if name.endswith("frozen"))
    assert len(rows) == 8
    assert q.photographs(Frozen(), 4) == ({}, [])


def test_figures_are_counts_where_they_count() -> None:
    assert q.count([True, False, True]) == "2 of 3"
    made = q.figure([1.0, 3.0, float("nan")])
    assert made == {"mean": 2.0, "standard_error": 1.0, "n": 2}


def test_results_grow_part_by_part(tmp_path: Path) -> None:
    out = tmp_path / "quality.json"
    e.evaluate(Stubborn(), ["walls"], 1, out)
    e.evaluate(Stubborn(), ["walls"], 2, out, label="other")
    results = json.loads(out.read_text())
    assert results["walls"]["samples"] == 1 and results["walls_other"]["samples"] == 2
    assert (tmp_path / "results" / "demo_walls.png").stat().st_size > 1000


@pytest.mark.parametrize("part", sorted(q.PARTS))
def test_every_part_says_what_it_measures(part: str) -> None:
    assert (q.PARTS[part].__doc__ or "").strip()
