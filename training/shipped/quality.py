"""The parts of the demo model's evaluation: each films clips, measures them and compares with the world's truth.

A part takes a studio and a number of samples and returns figures (mean, standard error, count) and rows of a contact
sheet. Seeds start at `HELD_OUT`, where training never was; the words are those of training, the world has no others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from training.shipped.looks import Look, background, coverage, paint
from training.shipped.measure import (
    Measurement,
    colour_tracks,
    measure,
    physics_score,
    psnr,
    trajectory_error,
)
from training.shipped.world import CORE_MOTIONS, FRAMES, Body, Clip, caption, make_clip, make_collision, room
from training.studio import Studio

HELD_OUT = 950_000
ATTRIBUTES = ("colour", "shape", "size", "background", "motion")
LEAST_ROOM = 10
"""Pixels to the wall without which a motion cannot show."""
Figures = dict[str, Any]
Row = tuple[np.ndarray, str]
"""A clip and the words beside it, for a contact sheet."""


def figure(values: Iterable[float]) -> Figures:
    """Mean, standard error of the mean and count; what is not finite is left out and counted."""
    table = np.array(list(values), float)
    kept = table[np.isfinite(table)]
    made: Figures = {"mean": None, "standard_error": None, "n": len(kept)}
    if len(kept):
        spread = kept.std(ddof=1) / np.sqrt(len(kept)) if len(kept) > 1 else 0.0
        made |= {"mean": round(float(kept.mean()), 4), "standard_error": round(float(spread), 4)}
    return made if len(kept) == len(table) else made | {"left_out": len(table) - len(kept)}


def figures(rows: list[dict[str, float]]) -> Figures:
    """`figure` of every column."""
    return {
        name: figure(row[name] for row in rows if name in row) for name in dict.fromkeys(k for r in rows for k in r)
    }


def followed(measured: Measurement, look: Look, motion: str) -> dict[str, float]:
    """1 for every attribute that is as asked, else 0."""
    asked = {name: getattr(look, name) for name in ATTRIBUTES if name != "motion"} | {"motion": motion}
    return {name: float(measured.attribute(name) == wanted) for name, wanted in asked.items()}


# --- parts: (studio, samples) -> (figures, rows of the contact sheet) ------------------------------------------------


def autoencoder(studio: Studio, samples: int) -> tuple[Figures, list[Row]]:
    """PSNR of clips never trained on, and how sharp edges stay."""
    rows, sheet = [], []
    for number in range(samples):
        clip = make_clip(HELD_OUT + number)
        made = studio.reconstruct(clip.frames)
        kept = measure(made).sharpness / measure(clip.frames).sharpness
        rows.append({"psnr": psnr(made, clip.frames), "sharpness_kept": kept})
        sheet.append((made, f"reconstruction, {clip.captions[0]}"))
    return figures(rows), sheet


def text(studio: Studio, samples: int, **how: Any) -> tuple[Figures, list[Row]]:
    """Does one second show what its caption says? `how`: steps, window, nearly_clean of `Studio.film`."""
    rows, sheet = [], []
    for number in range(samples):
        clip = make_clip(HELD_OUT + number)
        words = caption(clip.look, clip.motions[0])
        made = studio.film([words], seed=HELD_OUT + number, **how)
        measured = measure(made)
        row = followed(measured, clip.look, clip.motions[0])
        rows.append(row | {"all": float(all(row.values())), "sharpness": measured.sharpness})
        sheet.append((made, words))
    return figures(rows), sheet


def chunk_prompts(studio: Studio, samples: int, **how: Any) -> tuple[Figures, list[Row]]:
    """Does the motion change in the second whose caption changes, and is the body still the same one?

    Where the first second ends at a wall that leaves no room for the second motion, that motion is left out.
    """
    rows, sheet = [], []
    for number in range(samples):
        clip = make_clip(HELD_OUT + number)
        first = clip.motions[0]
        others = [motion for motion in CORE_MOTIONS if motion != first and {first, motion} != {"falls", "moves down"}]
        second = others[number % len(others)]
        words = [caption(clip.look, motion) for motion in (first, second)]
        made = studio.film(words, seed=HELD_OUT + number, **how)
        whole, before, after = measure(made), measure(made[:FRAMES]), measure(made[FRAMES:])
        rows.append(
            {
                "motion_first_second": float(whole.motions[0] == first),
                "motion_second_second": float(whole.motions[1] == second) if _fits(whole, second) else float("nan"),
                "same_colour": float(before.colour == after.colour is not None),
                "same_shape": float(before.shape == after.shape is not None),
                "seam_jump_pixels": _jump(whole.track, FRAMES),
            }
        )
        sheet.append((made, f"{words[0]} | {second}"))
    return figures(rows), sheet


def image(studio: Studio, samples: int, **how: Any) -> tuple[Figures, list[Row]]:
    """From a picture: is the first frame the picture, and does it go on as asked?"""
    rows, sheet = [], []
    for number in range(samples):
        clip = make_clip(HELD_OUT + number)
        words = caption(clip.look, clip.motions[0])
        made = studio.film([words], seed=HELD_OUT + number, prefix=clip.frames[:1], **how)
        track = measure(made).track
        start = measure(clip.frames[:1].repeat(FRAMES, 0)).track[0]
        rows.append(
            followed(measure(made), clip.look, clip.motions[0])
            | {
                "first_frame_psnr": psnr(made[0], clip.frames[0]),
                "first_position_error_pixels": float(np.hypot(*(track[0] - start))),
            }
        )
        sheet.append((made, f"picture, then: {words}"))
    return figures(rows), sheet


def continuation(studio: Studio, samples: int, **how: Any) -> tuple[Figures, list[Row]]:
    """Continue a true second; compare with the true next one, beside two baselines, for falls, collisions, motions."""
    table: dict[str, dict[str, list[dict[str, float]]]] = {}
    sheet = []
    for number in range(samples):
        kind = ("falls", "collision", "moves")[number % 3]
        clip = _two_seconds(kind, HELD_OUT + number)
        past, future = clip.frames[:FRAMES], clip.frames[FRAMES:]
        words = clip.captions[1] if kind == "collision" else caption(clip.look, clip.motions[1])
        made = studio.film([words], seed=HELD_OUT + number, prefix=past, **how)
        guesses = {
            "model": made,
            "last_frame_frozen": past[-1:].repeat(FRAMES, 0),
            "constant_velocity": constant_velocity(clip, FRAMES - 1, FRAMES),
        }
        for name, guess in guesses.items():
            table.setdefault(kind, {}).setdefault(name, []).append(_against_truth(guess, future, clip))
        seam = np.concatenate([past[-6:], made[:6]])
        table[kind]["model"][-1]["seam_jump_pixels"] = _jump(_tracks(seam, clip)[:, 0], 6)
        sheet.append((np.concatenate([past, made]), f"continued after 1 s: {words}"))
    kinds = {kind: {name: figures(rows) for name, rows in guesses.items()} for kind, guesses in table.items()}
    names = next(iter(table.values()))
    every = {name: figures([row for guesses in table.values() for row in guesses[name]]) for name in names}
    return {"all": every, **kinds}, sheet


def steps(studio: Studio, samples: int) -> tuple[Figures, list[Row]]:
    """Text obedience by number of steps."""
    return _variants(studio, samples, {str(number): {"steps": number} for number in (64, 32, 16, 12, 8)})


def windows(studio: Studio, samples: int) -> tuple[Figures, list[Row]]:
    """Two seconds of one motion each: window 4 against 1, and the schedule without the nearly clean copy."""
    ways = {"window_4": {}, "window_1": {"window": 1}, "lean": {"nearly_clean": False}}
    made = {name: chunk_prompts(studio, samples, **how) for name, how in ways.items()}
    return {name: result for name, (result, _) in made.items()}, [rows[0] for _, rows in made.values()]


def quantization(studio: Studio, samples: int) -> tuple[Figures, list[Row]]:
    """Text obedience and nearness to float32 by scheme; PSNR is against the same seed's float32 clip."""
    results: Figures = {}
    sheet: list[Row] = []
    words = [(clip, caption(clip.look, clip.motions[0])) for clip in map(make_clip, _seeds(samples))]
    originals = [studio.film([prompt], seed) for (_, prompt), seed in zip(words, _seeds(samples), strict=True)]
    for scheme in ("float32", "bf16", "fp8", "int8", "nf4"):
        quantized = studio if scheme == "float32" else Studio(studio.files, scheme)
        rows = []
        for (clip, prompt), original, seed in zip(words, originals, _seeds(samples), strict=True):
            made = original if scheme == "float32" else quantized.film([prompt], seed)
            near = {} if scheme == "float32" else {"psnr_to_float32": psnr(made, original)}
            rows.append(followed(measure(made), clip.look, clip.motions[0]) | near)
            if seed == HELD_OUT:
                sheet.append((made, f"{scheme}: {prompt}"))
        results[scheme] = figures(rows)
    return results, sheet


def endurance(studio: Studio, samples: int, seconds: int = 60) -> tuple[Figures, list[Row]]:
    """Long clips whose motion changes every second: the last 10 seconds against the first 10."""
    rows, sheet = [], []
    for number in range(samples):
        clip = make_clip(HELD_OUT + number)
        turns = ("moves left", "moves right", "moves up", "moves down", "stays still")
        motions = [turns[(number + second * (1 + number % 2)) % len(turns)] for second in range(seconds)]
        made = studio.film([caption(clip.look, motion) for motion in motions], seed=HELD_OUT + number)
        row = {}
        for name, first in (("first", 0), ("last", seconds - 10)):
            part = [measure(made[s * FRAMES : (s + 1) * FRAMES]) for s in range(first, first + 10)]
            for attribute in ("colour", "shape", "background"):
                wanted = getattr(clip.look, attribute)
                row[f"{attribute}_{name}_10_s"] = float(np.mean([m.attribute(attribute) == wanted for m in part]))
            right = [m.motions[0] == motions[first + s] for s, m in enumerate(part)]
            row[f"motion_{name}_10_s"] = float(np.mean(right))
            row[f"sharpness_{name}_10_s"] = float(np.mean([m.sharpness for m in part]))
        rows.append(row)
        sheet.append((made, f"{seconds} s: a {clip.look.colour} {clip.look.shape} on {clip.look.background}"))
    return figures(rows), sheet


def speed(studio: Studio, samples: int) -> tuple[Figures, list[Row]]:
    """Seconds of wall time for four seconds of video at 8 steps and for the first of them, loading left out."""
    rows = []
    for number in range(samples):
        clip = make_clip(HELD_OUT + number)
        began = time.perf_counter()
        made = [
            time.perf_counter() - began
            for _ in studio.seconds([caption(clip.look, clip.motions[0])] * 4, seed=HELD_OUT + number)
        ]
        rows.append({"wall_seconds_to_first_second": made[0], "wall_seconds_for_4_s": made[-1]})
    return figures(rows), []


PARTS: dict[str, Callable[[Studio, int], tuple[Figures, list[Row]]]] = {
    part.__name__: part
    for part in (autoencoder, text, chunk_prompts, image, continuation, steps, windows, quantization, endurance, speed)
}


# --- helpers ---------------------------------------------------------------------------------------------------------


def constant_velocity(clip: Clip, last: int, frames: int) -> np.ndarray:
    """The bodies of frame `last` drawn on, each going on with the velocity it has there: (frames, 64, 64, 3) uint8."""
    ahead = np.arange(1, frames + 1)[:, None]
    bodies = range(clip.position.shape[1])
    pixels = background(clip.look.background)
    for body in reversed(bodies):  # as the world paints: the first body lies on top
        places = clip.position[last, body] + ahead * (clip.position[last, body] - clip.position[last - 1, body])
        radius, angle = (np.full(frames, values[last, body]) for values in (clip.radius, clip.angle))
        colour = clip.look.colour if body == 0 else clip.other_colour
        assert colour is not None
        pixels = paint(pixels, coverage(clip.look.shape, *places.T, radius, angle), colour)
    return np.rint(pixels).astype(np.uint8)


def _two_seconds(kind: str, seed: int) -> Clip:
    if kind == "collision":
        return make_collision(seed, 2, contact=(FRAMES + 2, FRAMES + 12))  # they meet in the second to be guessed
    if kind == "falls":
        return make_clip(seed, 2, motions=("falls", "falls"))
    motion = CORE_MOTIONS[seed % 4]
    start = {"moves left": (50, 32), "moves right": (14, 32), "moves up": (32, 50), "moves down": (32, 14)}[motion]
    return make_clip(seed, 2, motions=(motion, motion), start=start)


def _tracks(frames: np.ndarray, clip: Clip) -> np.ndarray:
    names = (clip.look.colour,) if clip.other_colour is None else (clip.look.colour, clip.other_colour)
    return colour_tracks(frames, clip.look.background, names)


def _against_truth(guess: np.ndarray, true: np.ndarray, clip: Clip) -> dict[str, float]:
    score = asdict(physics_score(guess, true, clip.look.background))
    return score | {"trajectory_error_pixels": trajectory_error(_tracks(guess, clip), _tracks(true, clip))}


def _fits(measured: Measurement, motion: str) -> bool:
    """Whether the body, where the first second leaves it, has room for a motion (or is not there at all: a failure)."""
    x, y = measured.track[FRAMES - 1]
    radius = float(np.sqrt(measured.area[FRAMES - 1] / np.pi))
    return bool(np.isnan(x)) or room(Body(float(x), float(y), radius), motion) > LEAST_ROOM


def _jump(track: np.ndarray, seam: int) -> float:
    """How far the body is, just after a seam, from where its last step before would have taken it."""
    expected = 2 * track[seam - 1] - track[seam - 2]
    return float(np.hypot(*(track[seam] - expected)))


def _seeds(samples: int) -> range:
    return range(HELD_OUT, HELD_OUT + samples)


def _variants(studio: Studio, samples: int, ways: dict[str, dict[str, Any]]) -> tuple[Figures, list[Row]]:
    made = {name: text(studio, samples, **how) for name, how in ways.items()}
    sheet = [(clip, f"{name}: {words}") for name, (_, rows) in made.items() for clip, words in rows[:2]]
    return {name: result for name, (result, _) in made.items()}, sheet
