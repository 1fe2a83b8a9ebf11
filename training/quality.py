"""The parts of the demo model's evaluation: each films clips, judges them and compares with the world's truth.

A part takes a studio and a number of samples and returns figures and rows of a contact sheet. A figure is a count where
it counts ("60 of 60"), else a mean with its standard error. Seeds start at `HELD_OUT`, where training never was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from training.judge import (
    ATTRIBUTES,
    Asked,
    Start,
    Verdict,
    body_masks,
    draw,
    judge,
    judge_clip,
    overlap,
    step_ratio,
    wraps,
)
from training.photographs import draw_shot, film_shot
from training.studio import Studio
from training.text_model import OWN_COLOURS
from training.world import FRAMES, Scene, film, make_scene, photograph, stage
from training.world.words import CAMERAS, COLOURS, LIGHTS, PLACES, SIZES, THINGS, WEATHERS, motions_of

HELD_OUT = 950_000
GUESSES = ("last_frame_frozen", "constant_velocity")
"""What a model that knows physics beats; with the world's own outlines, and, as `_decoded`, with an autoencoder's."""
STILL: dict[str, Any] = {
    "lights": ("day",) * 2, "weathers": ("clear",) * 2, "cameras": ("still",) * 2, "scenery": (), "name_all": True,
}  # fmt: skip
"""Two seconds by day, in clear weather, before a still camera."""
Figures = dict[str, Any]
Row = tuple[np.ndarray, str]
"""A clip and the words beside it, for a contact sheet."""


def count(values: Iterable[bool]) -> str:
    """ "58 of 60"."""
    table = list(values)
    return f"{sum(map(bool, table))} of {len(table)}"


def figure(values: Iterable[float]) -> Figures:
    """Mean, standard error of the mean and count; what is not finite is left out."""
    table = np.array([value for value in values if np.isfinite(value)], float)
    if not len(table):
        return {"mean": None, "standard_error": None, "n": 0}
    spread = table.std(ddof=1) / np.sqrt(len(table)) if len(table) > 1 else 0.0
    return {"mean": round(float(table.mean()), 4), "standard_error": round(float(spread), 4), "n": len(table)}


def psnr(made: np.ndarray, true: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 pictures in dB; equal ones give infinity."""
    error = ((made.astype(np.float64) - true.astype(np.float64)) ** 2).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def draw_asked(rng: np.random.Generator, **fixed: Any) -> Asked:
    """What one second might be asked to show; half are by day, half in clear weather, half before a still camera."""

    def pick(table: Iterable[str]) -> str:
        return str(rng.choice(list(table)))

    def usual(table: tuple[str, ...]) -> str:
        return table[0] if rng.random() < 0.5 else pick(table[1:])

    thing = fixed.get("thing") or pick(THINGS)
    drawn = {
        "thing": thing, "colour": pick(COLOURS), "size": pick(SIZES), "place": pick(PLACES),
        "motion": pick(motions_of(thing)), "light": usual(LIGHTS), "weather": usual(WEATHERS), "camera": usual(CAMERAS),
    }  # fmt: skip
    return Asked(**drawn | fixed)


# --- parts: (studio, samples) -> (figures, rows of the contact sheet) ------------------------------------------------


def obedience(studio: Studio, samples: int, **how: Any) -> tuple[Figures, list[Row]]:
    """Does one second show what its sentence asks for, whole and without ghosts? `how`: of `Studio.film`."""
    verdicts, ratios, sheet = [], [], []
    for seed in range(HELD_OUT, HELD_OUT + samples):
        asked = draw_asked(np.random.default_rng(seed))
        made = studio.film([asked.caption], seed=seed, **how)
        verdicts.append(judge(made, asked))
        if asked.camera == "still" and asked.motion != "stands still" and asked.weather in ("clear", "fog"):
            ratios.append(step_ratio(made))
        sheet.append((made, asked.caption))
    return _summed_up(verdicts) | {"border_step_ratio": figure(ratios)}, sheet


def unnamed(studio: Studio, samples: int) -> tuple[Figures, list[Row]]:
    """One second whose sentence names no colour: does the thing come whole, in its own?"""
    verdicts, sheet = [], []
    for seed in range(HELD_OUT, HELD_OUT + samples):
        asked = draw_asked(np.random.default_rng(seed))
        asked = replace(asked, colour=OWN_COLOURS[asked.thing], names_colour=False)
        made = studio.film([asked.caption], seed=seed)
        verdicts.append(judge(made, asked))
        sheet.append((made, asked.caption))
    return _summed_up(verdicts), sheet


def autoencoder(studio: Studio, samples: int) -> tuple[Figures, list[Row]]:
    """What the autoencoder alone leaves of the seconds that `obedience` asks for: the most a transformer can reach."""
    verdicts, ratios, rows, sheet = [], [], [], []
    for seed in range(HELD_OUT, HELD_OUT + samples):
        asked = draw_asked(np.random.default_rng(seed))
        start = Start(height=18.0 if asked.motion == "falls" else 0.0)
        true = draw(asked, start, range(FRAMES)).round().astype(np.uint8)
        left = studio.reconstruct(true)
        verdicts.append(judge(left, asked))
        rows.append(psnr(left, true))
        ratios.append(step_ratio(left) / step_ratio(true))
        sheet.append((left, asked.caption))
    return _summed_up(verdicts) | {"psnr": figure(rows), "border_step_ratio_over_the_world's": figure(ratios)}, sheet


def changes(studio: Studio, samples: int) -> tuple[Figures, list[Row]]:
    """Four seconds, each with its own motion, light, weather and camera: does every change happen in its second?"""
    rows, seams, sheet = [], [], []
    for seed in range(HELD_OUT, HELD_OUT + samples):
        rng = np.random.default_rng(seed)
        body = draw_asked(rng, motion="stands still", camera="still")
        asked: list[Asked] = []
        for _ in range(4):
            fixed = {name: getattr(body, name) for name in ("thing", "colour", "size", "place")}
            second = draw_asked(rng, **fixed)
            while second.motion in ("falls", asked[-1].motion if asked else ""):
                second = draw_asked(rng, **fixed)
            before = (asked[-1].light, asked[-1].weather) if asked else None
            asked.append(replace(second, before=before))
        made = studio.film([words.caption for words in asked], seed=seed)
        rows += [verdict.followed for verdict in judge_clip(made, asked)[1:]]
        seams.append(step_ratio(made, FRAMES))
        sheet.append((made, " | ".join(words.caption for words in asked)))
    figures = {name: count(row[name] for row in rows) for name in ATTRIBUTES}
    return figures | {"seam_step_ratio": figure(seams)}, sheet


def walls(studio: Studio, samples: int) -> tuple[Figures, list[Row]]:
    """From a picture in which a thing stands near a wall and is asked to go on: does it stop there, whole?"""
    wrapped, areas, sheet = [], [], []
    for seed in range(HELD_OUT, HELD_OUT + samples):
        rng = np.random.default_rng(seed)
        left = bool(rng.random() < 0.5)
        asked = draw_asked(
            rng, motion="moves left" if left else "moves right", camera="still", light="day", weather="clear"
        )
        x = float(rng.uniform(18, 24))
        start = Start(x=x if left else 64 - x, facing=-1 if left else 1)
        first = draw(asked, start, (0,)).round().astype(np.uint8)
        made = studio.film([asked.caption] * 2, seed=seed, prefix=first)
        wrapped.append(wraps(made, asked, start))
        second = judge(made[FRAMES : 2 * FRAMES], asked, (0.0, 1.0), first=FRAMES)
        areas.append(second.area)
        sheet.append((made, f"to the wall: {asked.caption}"))
    return {"wrapped": count(wrapped), "area_at_the_wall": figure(areas)}, sheet


def collisions(studio: Studio, samples: int) -> tuple[Figures, list[Row]]:
    """Continue a true second in which two balls are about to meet; spatiotemporal IoU with the true next one."""
    return _continued(studio, samples, {"kind": "collision"})


def falls(studio: Studio, samples: int) -> tuple[Figures, list[Row]]:
    """Continue a true second of a falling thing; spatiotemporal IoU with the true next one."""
    return _continued(studio, samples, {"motions": ("falls", "falls")})


def pictures(studio: Studio, samples: int) -> tuple[Figures, list[Row]]:
    """From a picture of the world: is the first frame the picture, and does it go on as asked?"""
    rows, followed, sheet = [], [], []
    for seed in range(HELD_OUT, HELD_OUT + samples):
        asked = draw_asked(np.random.default_rng(seed), light="day", weather="clear")
        first = draw(asked, Start(height=18.0 if asked.motion == "falls" else 0.0), (0,)).round().astype(np.uint8)
        made = studio.film([asked.caption], seed=seed, prefix=first)
        rows.append(psnr(made[0], first[0]))
        followed.append(judge(made, asked, (0.0, 1.0)).followed)
        sheet.append((made, f"picture, then: {asked.caption}"))
    figures: Figures = {name: count(row[name] for row in followed) for name in ("motion", "camera", "thing", "colour")}
    return figures | {"first_frame_psnr": figure(rows)}, sheet


def photographs(studio: Studio, samples: int) -> tuple[Figures, list[Row]]:
    """From photographs never trained on: the first frame kept, and a camera's second against the true one, in dB."""
    table: dict[str, list[float]] = {}
    sheet: list[Row] = []
    held_back = studio.album.held_back
    for number in range(samples if held_back else 0):
        rng = np.random.default_rng(HELD_OUT + number)
        camera = CAMERAS[1 + number % 4]
        picture = held_back[number % len(held_back)]
        shot = draw_shot(picture, 1, rng, camera)
        shot = replace(shot, lights=("day",), weathers=("clear",), explicit=False)
        true = film_shot(shot).numpy()
        made = studio.film([photograph("day", "clear", camera)], seed=HELD_OUT + number, prefix=true[:1])
        table.setdefault("first_frame_psnr", []).append(psnr(made[0], true[0]))
        frozen = psnr(true[:1].repeat(FRAMES, 0)[6:], true[6:])
        table.setdefault(camera.replace(" ", "_") + "_gain_over_frozen", []).append(psnr(made[6:], true[6:]) - frozen)
        sheet.append((made, f"photograph, {camera}"))
    looks = (("night", "clear"), ("day", "snow"), ("sunset", "clear"), ("day", "rain"))
    for number, (light, weather) in enumerate(looks if held_back else ()):
        first = film_shot(draw_shot(held_back[number], 1, np.random.default_rng(number), "still"))[:1].numpy()
        made = studio.film([photograph(light, weather, "still")], seed=HELD_OUT + number, prefix=first)
        sheet.insert(0, (made, photograph(light, weather, "still")))
    return {name: figure(values) for name, values in table.items()}, sheet


def steps(studio: Studio, samples: int) -> tuple[Figures, list[Row]]:
    """Obedience by number of steps."""
    made = {str(number): obedience(studio, samples, steps=number) for number in (64, 16, 8)}
    return {name: figures for name, (figures, _) in made.items()}, [rows[0] for _, rows in made.values()]


def quantization(studio: Studio, samples: int) -> tuple[Figures, list[Row]]:
    """Obedience by weight precision."""
    schemes = ("float32", "fp8", "int8", "nf4")
    studios = {name: studio if name == "float32" else Studio(studio.files, name) for name in schemes}
    made = {name: obedience(one, samples) for name, one in studios.items()}
    return {name: figures for name, (figures, _) in made.items()}, [rows[0] for _, rows in made.values()]


def endurance(studio: Studio, samples: int, seconds: int = 60) -> tuple[Figures, list[Row]]:
    """Long clips whose motion changes every second: the last ten seconds against the first ten."""
    table: dict[str, list[bool]] = {}
    sheet = []
    for seed in range(HELD_OUT, HELD_OUT + samples):
        body = draw_asked(np.random.default_rng(seed), camera="still", weather="clear", light="day")
        motions = ("moves left", "moves right", "jumps", "stands still")
        asked = [replace(body, motion=motions[second % 4]) for second in range(seconds)]
        made = studio.film([words.caption for words in asked], seed=seed)
        for when, first in (("first", 0), ("last", seconds - 10)):
            part = judge_clip(made[first * FRAMES : (first + 10) * FRAMES], asked[first : first + 10])
            for name in ("thing", "colour", "place", "motion"):
                table.setdefault(f"{name}_{when}_10_s", []).extend(verdict.followed[name] for verdict in part)
        sheet.append((made, f"{seconds} s: a {body.colour} {body.thing} in a {body.place}"))
    return {name: count(values) for name, values in table.items()}, sheet


def speed(studio: Studio, samples: int) -> tuple[Figures, list[Row]]:
    """Seconds of wall time for four seconds of video at 8 steps and for the first of them, loading left out."""
    first, whole = [], []
    for seed in range(HELD_OUT, HELD_OUT + samples):
        caption = draw_asked(np.random.default_rng(seed)).caption
        began = time.perf_counter()
        made = [time.perf_counter() - began for _ in studio.seconds([caption] * 4, seed=seed)]
        first.append(made[0])
        whole.append(made[-1])
    return {"wall_seconds_to_first_second": figure(first), "wall_seconds_for_4_s": figure(whole)}, []


PARTS: dict[str, Callable[[Studio, int], tuple[Figures, list[Row]]]] = {
    part.__name__: part
    for part in (
        obedience, unnamed, autoencoder, changes, walls, collisions, falls, pictures, photographs, steps, quantization,
        endurance, speed,
    )
}  # fmt: skip


# --- helpers ---------------------------------------------------------------------------------------------------------


def _summed_up(verdicts: list[Verdict]) -> Figures:
    """How often each attribute was followed, and all of them; ghosts, shape and area as means."""
    figures: Figures = {name: count(v.followed[name] for v in verdicts) for name in ATTRIBUTES}
    figures["all"] = count(all(v.followed.values()) for v in verdicts)
    return figures | {name: figure(getattr(v, name) for v in verdicts) for name in ("ghosts", "iou", "area")}


def meeting(seed: int) -> Scene:
    """Two seconds of a collision whose balls meet early in the second one."""
    for number in range(seed * 1000, seed * 1000 + 1000):
        scene = make_scene(number, 2, kind="collision", **STILL)
        hit = np.flatnonzero(np.abs(np.diff(scene.bodies[1].vx)) > 1e-9)
        if len(hit) and FRAMES <= hit[0] < FRAMES + 10:
            return scene
    raise AssertionError("one in ten collisions meets then")


def _continued(studio: Studio, samples: int, what: dict[str, Any]) -> tuple[Figures, list[Row]]:
    table: dict[str, list[float]] = {}
    sheet = []
    for seed in range(HELD_OUT, HELD_OUT + samples):
        scene = meeting(seed) if "kind" in what else make_scene(seed, 2, **STILL, **what)
        frames, empty = film(scene), stage(scene)
        past, future = frames[:FRAMES], frames[FRAMES:]
        made = studio.film([scene.captions[1]], seed=seed, prefix=past)
        guesses: dict[str, np.ndarray] = {
            "model": made,
            GUESSES[0]: past[-1:].repeat(FRAMES, 0),
            GUESSES[1]: film(constant_velocity(scene, FRAMES - 1))[FRAMES:],
        }
        guesses |= {f"{name}_decoded": studio.reconstruct(guesses[name]) for name in GUESSES}
        true = body_masks(future, empty[FRAMES:])
        for name, guess in guesses.items():
            table.setdefault(name, []).append(overlap(body_masks(guess, empty[FRAMES:]), true))
        sheet.append((np.concatenate([past, made]), f"continued after 1 s: {scene.captions[1]}"))
    return {name: figure(values) for name, values in table.items()}, sheet


def constant_velocity(scene: Scene, last: int) -> Scene:
    """The scene with its bodies going on, from frame `last`, as fast as they are there."""
    ahead = np.maximum(np.arange(scene.frames) - last, 0)

    def on(values: np.ndarray) -> np.ndarray:
        return np.where(ahead > 0, values[last] + ahead * (values[last] - values[last - 1]), values)

    return replace(scene, bodies=tuple(replace(body, x=on(body.x), height=on(body.height)) for body in scene.bodies))
