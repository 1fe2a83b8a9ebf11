"""What a clip shows, by drawing what was asked and what else might have been: no network, nothing learned.

A second is judged by forced choice. The scene that was asked for is drawn with the camera and the thing where the
clip's own first frame has them; then every other colour, thing, size, place, light, weather, camera and motion in turn.
What was asked is followed where no other drawing comes nearer to the frames. The same drawing tells what should not be
there (ghosts), whether a thing kept its area and shape, and whether it wraps round at a wall.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from training.world import FRAMES, Scene, film_many, make_scene
from training.world.draw import SIZE
from training.world.scene import UNITS, camera_path, shares
from training.world.words import CAMERAS, COLOURS, LIGHTS, PLACES, SIZES, THINGS, WEATHERS, motions_of, sentence

ATTRIBUTES = ("thing", "colour", "size", "place", "light", "weather", "camera", "motion")
JUDGED = (0, 6, 12, 16, 20, 23)
"""Frames of a second that are compared."""
MOST = 90.0
"""A pixel's difference counts at most this much, so that a thing that is elsewhere does not outvote the rest."""
ALIKE = 0.01
"""Mean difference of two drawings up to which they show the same."""
SHOWN = 40
"""Difference from the stage, of 255, from which a pixel belongs to a thing."""
FINENESS = SIZE / UNITS
"""Pixels of a unit."""
EDGE = 2
"""Pixels by which an edge of the stage may be blurred or shifted without being a ghost."""
NEAR = round(3 * FINENESS)
"""Pixels around a thing in which its blur is no ghost."""
FINER = (0.5, 0.25, 0.125, 0.0625, 0.03125)
"""Steps in units by which a thing is found ever better: what hardly stands out, at night, shows little more than its
edges, and two drawings half a unit apart then have less than half of their pixels in common."""
OFFSETS, ZOOMS = (-12.0, -8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0, 12.0), (0.77, 0.88, 1.0, 1.14, 1.3)
"""How far from where it should be, in units and factors, a camera is looked for that went on from second to second:
as far as one second takes it."""


@dataclass(frozen=True)
class Asked:
    """What one second was asked to show, and the light and weather of the second before it."""

    thing: str
    colour: str
    size: str
    place: str
    motion: str
    light: str = "day"
    weather: str = "clear"
    camera: str = "still"
    scenery: tuple[str, ...] = ()
    before: tuple[str, str] | None = None
    names_colour: bool = True

    @property
    def caption(self) -> str:
        """The sentence that asks for it; a thing's own colour may go without saying."""
        colour = f"{self.colour} " if self.names_colour else ""
        return sentence(
            f"a {self.size} {colour}{self.thing}", self.motion, scenery=self.scenery, place=self.place,
            light=self.light, weather=self.weather, camera=self.camera,
        )  # fmt: skip


@dataclass(frozen=True)
class Start:
    """Where a second begins: the thing's x, height and direction, the camera's place and zoom, the frame's number."""

    x: float = 32.0
    height: float = 0.0
    facing: int = 1
    camera_x: float = 0.0
    zoom: float = 1.0
    first: int = 0


@dataclass(frozen=True)
class Verdict:
    """What a second shows: which attributes are followed, and what is wrong with the picture.

    `ghosts`: pixels far from the thing whose colour the stage has nowhere near, as a share of the thing's. `iou`: of
    the thing's shape with the drawn one. `area`: of the thing in the last frame over the drawn one's. `track` (6,):
    x of the thing in `JUDGED`.
    """

    followed: dict[str, bool]
    start: Start
    ghosts: float
    iou: float
    area: float
    track: np.ndarray


def ideal(asked: Asked, start: Start) -> Scene:
    """The scene that was asked for, from where it starts."""
    scene = make_scene(
        0, thing=asked.thing, colour=asked.colour, size=asked.size, place=asked.place, motions=(asked.motion,),
        lights=(asked.light,), weathers=(asked.weather,), cameras=(asked.camera,), scenery=asked.scenery,
        start=start.x, height=start.height, facing=start.facing,
    )  # fmt: skip
    x, zoom = camera_path((asked.camera,), start.camera_x, start.zoom)
    light, weather = asked.before or (asked.light, asked.weather)
    return replace(
        scene, camera_x=x, zoom=zoom, light=shares((asked.light,), LIGHTS, light),
        weather=shares((asked.weather,), WEATHERS, weather),
    )  # fmt: skip


def draw(asked: Asked, start: Start, frames: Sequence[int] = JUDGED, bodies: bool = True) -> np.ndarray:
    """Frames of the ideal second: (len(frames), H, W, 3) float32."""
    scene = ideal(asked, start)
    if len(frames) == 1:
        cut = slice(frames[0], frames[0] + 1)
        return film_many([scene], frames=cut, bodies=bodies, first=start.first)[0].numpy().astype(np.float32)
    return film_many([scene], bodies=bodies, first=start.first)[0].numpy()[list(frames)].astype(np.float32)


def distance(made: np.ndarray, drawn: np.ndarray) -> float:
    """Mean difference of two clips, every pixel's cut off at `MOST`."""
    return float(np.minimum(np.abs(made - drawn).mean(-1), MOST).mean())


@lru_cache(maxsize=64)
def _offsets(asked: Asked, first: int) -> list[tuple[float, float, np.ndarray]]:
    """The empty stage from where a camera may begin."""
    empty = replace(asked, scenery=())
    return [
        (x, zoom, draw(empty, Start(camera_x=x, zoom=zoom, first=first), (0,), bodies=False))
        for x in (-8.0, -4.0, 0.0, 4.0, 8.0)
        for zoom in (0.88, 1.0, 1.15)
    ]


def find_camera(made: np.ndarray, asked: Asked, expected: tuple[float, float], first: int) -> tuple[float, float]:
    """Place and zoom of the camera in the first frame of a second, which the seconds before should have left there.

    One that they did not move as asked is found where it is, so that a second answers for its own words alone; but
    only if the whole picture says so, for a thing at the frame's edge looks like a wall.
    """
    frame, empty = made[:1].astype(np.float32), replace(asked, scenery=())

    def nearest(places: Iterable[tuple[float, float]]) -> tuple[float, float]:
        return min(places, key=lambda at: distance(frame, draw(empty, _seen_from(at, first), (0,), bodies=False)))

    x, zoom = expected
    rough = nearest([(x + dx, zoom) for dx in OFFSETS] + [(x, zoom * factor) for factor in ZOOMS])
    found = nearest((rough[0] + dx, rough[1] * factor) for dx in (0.0, -1.0, 1.0) for factor in (1.0, 0.95, 1.05))
    if found == expected:
        return expected
    starts = [find_start(made, asked, camera, first) for camera in (expected, found)]
    likely = min(starts, key=lambda start: distance(frame, draw(asked, start, (0,))))
    return likely.camera_x, likely.zoom


def _seen_from(camera: tuple[float, float], first: int) -> Start:
    return Start(camera_x=camera[0], zoom=camera[1], first=first)


def find_start(made: np.ndarray, asked: Asked, camera: tuple[float, float] | None, first: int) -> Start:
    """Where camera and thing are in the first frame of a second (24, H, W, 3).

    Args:
        camera: place and zoom, where they are known.
    """
    frame = made[:1].astype(np.float32)
    if camera is None:
        x, zoom, _ = min(_offsets(asked, first), key=lambda offset: distance(frame, offset[2]))
        camera = (x, zoom)
    still = _seen_from(camera, first)
    heights = tuple(range(0, 30, 3)) if asked.motion == "falls" else (0.0,)
    facing = {"moves left": (-1,), "moves right": (1,)}.get(asked.motion, (1, -1))
    facing = (1,) if asked.thing in ("ball", "box") else facing

    def nearest(starts: list[Start]) -> Start:
        return min(starts, key=lambda start: distance(frame, draw(asked, start, (0,))))

    rough = nearest(
        [replace(still, x=float(x), height=float(h), facing=facing[0]) for x in range(8, 60, 4) for h in heights]
    )
    fine = [
        replace(rough, x=rough.x + dx, height=max(0.0, rough.height + dh), facing=f)
        for dx in (-2, -1, 0, 1, 2)
        for dh in ((-1.5, 0, 1.5) if len(heights) > 1 else (0.0,))
        for f in facing
    ]
    found = nearest(fine)
    for step in FINER:
        found = nearest([replace(found, x=found.x + dx) for dx in (0.0, -step, step)])
        if len(heights) > 1:
            found = nearest([replace(found, height=max(0.0, found.height + dh)) for dh in (0.0, -step, step)])
    return found


def others(asked: Asked, attribute: str) -> list[Asked]:
    """What else a second might show in one attribute."""
    tables = {
        "thing": THINGS, "colour": tuple(COLOURS), "size": tuple(SIZES), "place": PLACES, "light": LIGHTS,
        "weather": WEATHERS, "camera": CAMERAS, "motion": motions_of(asked.thing),
    }  # fmt: skip
    values = [value for value in tables[attribute] if value != getattr(asked, attribute)]
    possible = [value for value in values if attribute != "thing" or asked.motion in motions_of(value)]
    return [replace(asked, **{attribute: value}) for value in possible]


def judge(made: np.ndarray, asked: Asked, camera: tuple[float, float] | None = None, first: int = 0) -> Verdict:
    """Judge one second of a clip.

    Args:
        made: (24, H, W, 3) uint8. camera: place and zoom at its start, if known. first: number of its first frame.
    """
    start = find_start(made, asked, camera, first)
    frames = made[list(JUDGED)].astype(np.float32)
    drawn = draw(asked, start)
    best = distance(frames, drawn)
    followed = {
        attribute: all(
            distance(frames, shown) > best
            for shown in (draw(other, start) for other in others(asked, attribute))
            if distance(shown, drawn) > ALIKE  # a camera at its limit stands still, whatever is asked
        )
        for attribute in ATTRIBUTES
    }
    empty = draw(asked, start, bodies=False)
    mask, true = (np.abs(clip - empty).max(-1) > SHOWN for clip in (frames, drawn))
    near = np.stack([_grown(one, NEAR) for one in true])
    found = mask & near
    size = max(1, int(true.sum()))
    union = (found | true).sum()
    columns = (np.arange(SIZE) + 0.5) / FINENESS
    weight = found.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        track = (weight * columns).sum(1) / weight.sum(1)
    return Verdict(
        followed=followed,
        start=start,
        ghosts=float((_strange(frames, empty) & ~near).sum()) / size,
        iou=float((found & true).sum()) / float(union) if union else 0.0,
        area=float(found[-1].sum()) / max(1, int(true[-1].sum())),
        track=track,
    )


def judge_clip(made: np.ndarray, asked: Sequence[Asked], prefix: Start | None = None) -> list[Verdict]:
    """Judge every second of a clip, each from where the second before has left the camera."""
    verdicts = []
    camera = None if prefix is None else (prefix.camera_x, prefix.zoom)
    for second, words in enumerate(asked):
        part, first = made[second * FRAMES : (second + 1) * FRAMES], second * FRAMES
        if second and camera is not None:
            camera = find_camera(part, words, camera, first)
        verdicts.append(judge(part, words, camera, first=first))
        start = verdicts[-1].start
        places, zooms = camera_path((words.camera, "still"), start.camera_x, start.zoom)
        camera = (float(places[FRAMES]), float(zooms[FRAMES]))
    return verdicts


def wraps(made: np.ndarray, asked: Asked, start: Start) -> bool:
    """Whether something stands at the wall opposite to where the thing goes, that was not there at the start."""
    drawn = draw(asked, start, (0, FRAMES - 1), bodies=False)
    apart = np.abs(made[[0, -1]].astype(np.float32) - drawn).max(-1) > SHOWN
    edge = round(6 * FINENESS)
    side = slice(SIZE - edge, SIZE) if asked.motion == "moves left" else slice(0, edge)
    rows = slice(round(30 * FINENESS), round(58 * FINENESS))
    return int(apart[1, rows, side].sum()) > int(apart[0, rows, side].sum()) + 12 * FINENESS**2


def body_masks(frames: np.ndarray, empty: np.ndarray) -> np.ndarray:
    """(T, H, W) bool: pixels that differ from the stage by more than `SHOWN`."""
    return np.abs(frames.astype(np.float32) - empty.astype(np.float32)).max(-1) > SHOWN


def overlap(one: np.ndarray, two: np.ndarray) -> float:
    """Spatiotemporal IoU (Physics-IQ, arXiv 2501.09038, section 3): the mean over frames of the masks' IoU."""
    pairs = zip(one, two, strict=True)
    return float(np.mean([(a & b).sum() / (a | b).sum() if (a | b).any() else 1.0 for a, b in pairs]))


def step_ratio(made: np.ndarray, every: int = 4) -> float:
    """Mean step from frame to frame across latent borders over the mean step inside; `every` 24 compares seams."""
    steps = np.abs(np.diff(made.astype(np.float32), axis=0)).mean((1, 2, 3))
    number = np.arange(1, len(made))
    inside = steps[number % 4 != 0].mean()
    return float(steps[number % every == 0].mean() / inside) if inside > 0 else 1.0


def _strange(frames: np.ndarray, stage: np.ndarray) -> np.ndarray:
    """(T, H, W) bool: pixels of a colour that the stage has nowhere near, so that a blurred edge of it is none."""
    around = np.pad(stage, ((0, 0), (EDGE, EDGE), (EDGE, EDGE), (0, 0)), mode="edge")
    places = np.lib.stride_tricks.sliding_window_view(around, (2 * EDGE + 1, 2 * EDGE + 1), (1, 2))
    least, most = places.min((-1, -2)), places.max((-1, -2))
    return (np.maximum(least - frames, frames - most) > SHOWN).any(-1)


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """A mask and all pixels within `by` rows and columns of it."""
    padded = np.pad(mask, by)
    height, width = mask.shape
    shifts = range(2 * by + 1)
    return np.logical_or.reduce([padded[y : y + height, x : x + width] for y in shifts for x in shifts])
