"""Scenes of the small world and their physics: the true state of every frame, before anything is drawn.

The world is seen from the side. Things stand and move on one line of a flat ground, scenery stands behind. A frame is
64 units wide; x grows to the right, a height is counted from the ground to a thing's lowest point. A thing's distance
is its scale s: 1 on the line of the things, less behind. The camera has a place x and a zoom.

Physics, in units and frames of 1/24 s: gravity `GRAVITY`; the ground gives back `RESTITUTION` of the speed; two walls
at the picture's sides (for a camera in the middle) stop what moves and reflect what was hit; two balls of mass radius^2
collide without loss, so that momentum and energy are kept. Balls turn as they roll, wheels as a car drives.

Everything follows from a seed: `make_scene(seed, seconds)` gives the same scene on every machine with the same numpy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from magi_lite.errors import InputError
from training.world.words import (
    CAMERAS,
    COLOURS,
    HIT,
    LIGHTS,
    PLACES,
    SCENERY,
    SIZES,
    THINGS,
    WEATHERS,
    motions_of,
    sentence,
)

UNITS = 64
"""Width and height of the picture in the world's units."""
FRAMES = 24
"""Frames in a second, one chunk of the model."""
SPEED = 0.75
DIRECTIONS = {"moves left": -1, "moves right": 1}
GRAVITY = 0.2
RESTITUTION = 0.75
BOUNCE_SPEED = 12 * GRAVITY
"""Upward speed of a bouncing ball: it is back after exactly a second."""
JUMP_FRAMES = 20
"""Frames that a jump lasts; the other four of its second are spent on the ground."""
HIT_SPEED = 1.25
PAN = 0.5
"""Units per frame that the camera moves sideways."""
ZOOM = 1.3 ** (1 / FRAMES)
"""Factor per frame by which the camera comes nearer."""
FARTHEST = 18.0
"""How far from the middle the camera goes; there it stands."""
ZOOMS = (0.75, 1.7)
FADE = 12
"""Frames in which light and weather change at the start of a second."""
SECOND_BALL = (7.0, 8.0, 9.0)
"""Radii of the ball that is hit."""
STAGED = 0.85
"""Share of the scenes that begin as one would stage them: see `_Staged`. Of collisions half, so that many happen later
than in a first second."""
LIVELY = 0.5
"""Share of the scenes whose every second is described anew, wherever that leaves the things; in others most goes on."""
HALF_WIDTHS = {"ball": 1.0, "box": 0.95, "car": 1.5, "cat": 1.35}
"""Distance from a thing's middle to its side, in radii: where a wall stops it."""


@dataclass(frozen=True)
class Body:
    """A thing and its true state in every frame: `x`, `height`, `vx`, `vh`, `angle` (F,) float64; `facing` (F,) is 1 or
    -1."""

    thing: str
    colour: str
    radius: float
    x: np.ndarray
    height: np.ndarray
    vx: np.ndarray
    vh: np.ndarray
    angle: np.ndarray
    facing: np.ndarray


@dataclass(frozen=True)
class Scene:
    """What a clip of S seconds (F = 24 S frames) shows, and its truth.

    `bodies`: none, one, or the two balls of a collision, the hitting one first. `scenery`: (name, x, scale) from far to
    near. `captions`, `motions`, `lights`, `weathers`, `cameras`: one for each second. `camera_x`, `zoom` (F,).
    `light` (F, 3) and `weather` (F, 4): shares of the entries of `LIGHTS` and `WEATHERS`, which sum to one.
    `begins_otherwise`: the first frame shows what the first sentence does not tell, as a picture may: another light or
    weather, or things that stand elsewhere than where they are staged.
    """

    place: str
    bodies: tuple[Body, ...]
    scenery: tuple[tuple[str, float, float], ...]
    size: str
    captions: tuple[str, ...]
    motions: tuple[str, ...]
    lights: tuple[str, ...]
    weathers: tuple[str, ...]
    cameras: tuple[str, ...]
    camera_x: np.ndarray
    zoom: np.ndarray
    light: np.ndarray
    weather: np.ndarray
    begins_otherwise: bool = False
    seed: int = field(default=0, compare=False)

    @property
    def frames(self) -> int:
        return len(self.camera_x)


@dataclass
class _Mover:
    """A thing while the world moves it; `x` is its middle, `height` that of its lowest point."""

    thing: str
    radius: float
    x: float
    height: float = 0.0
    vx: float = 0.0
    vh: float = 0.0
    angle: float = 0.0
    facing: int = 1

    @property
    def reach(self) -> tuple[float, float]:
        """The smallest and the largest x that the walls leave it."""
        half = HALF_WIDTHS[self.thing] * self.radius
        return half, UNITS - half

    def state(self) -> tuple[float, ...]:
        return self.x, self.height, self.vx, self.vh, self.angle, self.facing


# --- motion ----------------------------------------------------------------------------------------------------------


def advance(body: _Mover, motion: str, frame: int) -> None:
    """Move a thing by one frame of a motion; `frame` counts from the start of its second."""
    low, high = body.reach
    if motion in DIRECTIONS:
        body.vx = SPEED * DIRECTIONS[motion]
    elif motion != HIT:
        body.vx = 0.0
    if frame == 0 and body.height == 0 and motion != "bounces":
        body.vh = 0.0
    if motion == "jumps" and frame == 0 and body.height == 0:
        body.vh = GRAVITY * JUMP_FRAMES / 2
    if motion == "bounces" and body.height == 0 and body.vh == 0:
        body.vh = BOUNCE_SPEED
    _fly(body, restitution={"falls": RESTITUTION, "bounces": 1.0}.get(motion, 0.0))
    place = body.x + body.vx
    inside = min(max(place, low), high)
    if motion == HIT and inside != place:
        inside, body.vx = 2 * inside - place, -body.vx
    elif inside != place:
        body.vx = 0.0
    body.angle += (inside - body.x) / (body.radius if body.thing == "ball" else 0.36 * body.radius)
    body.x = inside


def _fly(body: _Mover, restitution: float) -> None:
    """One frame of free flight: exact for constant acceleration, with a bounce on the ground."""
    if body.height == 0 and body.vh == 0:
        return
    body.height += body.vh - GRAVITY / 2
    body.vh -= GRAVITY
    if body.height <= 1e-9:
        if body.vh < -1e-9 and restitution:
            body.height, body.vh = -restitution * body.height, -restitution * body.vh
            if body.vh < 2 * GRAVITY and restitution < 1:
                body.height = body.vh = 0.0
        else:
            body.height = body.vh = 0.0


def collide(first: _Mover, second: _Mover) -> None:
    """An elastic collision along the ground of two balls of mass radius^2 that touch and come nearer."""
    apart = second.x - first.x
    approach = (first.vx - second.vx) * np.sign(apart)
    # balls of different radii that stand on one ground touch when their middles are 2 sqrt(r R) apart sideways
    if abs(apart) >= 2 * np.sqrt(first.radius * second.radius) or approach <= 0:
        return
    one, two = first.radius**2, second.radius**2
    impulse = 2 * (first.vx - second.vx) * one * two / (one + two)
    first.vx, second.vx = first.vx - impulse / one, second.vx + impulse / two


def camera_path(cameras: tuple[str, ...], x: float, zoom: float) -> tuple[np.ndarray, np.ndarray]:
    """Place and zoom of the camera in every frame, from where it begins."""
    places, zooms = [], []
    for camera in cameras:
        for _ in range(FRAMES):
            places.append(x)
            zooms.append(zoom)
            step = {"pans left": -PAN, "pans right": PAN}.get(camera, 0.0) / zoom
            x = min(max(x + step, -FARTHEST), FARTHEST)
            factor = {"zooms in": ZOOM, "zooms out": 1 / ZOOM}.get(camera, 1.0)
            zoom = min(max(zoom * factor, ZOOMS[0]), ZOOMS[1])
    return np.array(places), np.array(zooms)


def shares(names: tuple[str, ...], table: tuple[str, ...], before: str) -> np.ndarray:
    """(24 S, len(table)): how much of each entry every frame has; a change takes `FADE` frames."""
    made = []
    for name in names:
        ramp = np.clip(np.arange(FRAMES) / FADE, 0, 1)[:, None]
        old, new = (np.eye(len(table))[table.index(n)] for n in (before, name))
        made.append(old * (1 - ramp) + new * ramp)
        before = name
    return np.concatenate(made)


@dataclass(frozen=True)
class _Staged:
    """Where things begin in a scene that is staged for what will happen in it: with room ahead, else in the middle.

    A small model cannot co-ordinate a guess over its tokens: things that may begin in two places are drawn in both.
    So a video's first sentence tells where everything begins, and what it leaves out (a size, a place) is all that the
    seed decides. Pictures, and the seconds that go on from others, begin anywhere.
    """

    right: float = 20.0
    left: float = 44.0
    middle: float = 32.0
    height: float = 22.0
    angle: float = 0.6
    scenery: tuple[float, float] = (-16.0, 16.0)
    """Of a tree and of a house, from the middle."""
    scale: float = 0.73
    hit: tuple[float, float, float] = (12.0, 27.0, 8.0)
    """A collision: where the ball starts, where it hits, and the other one's radius."""

    def x(self, motion: str) -> float:
        return {"moves right": self.right, "moves left": self.left}.get(motion, self.middle)


_STAGE = _Staged()

# --- scenes ----------------------------------------------------------------------------------------------------------


def _next(before: str | None, table: tuple[str, ...], stays: float, rng: np.random.Generator) -> str:
    """An entry of a table: half the time the first one, but with chance `stays` the same as before."""
    if before is not None and rng.random() < stays:
        return before
    return table[0] if rng.random() < 0.5 else str(rng.choice(table[1:]))


def _cameras(
    seconds: int, x: float, zoom: float, moving: float, stays: float, rng: np.random.Generator
) -> tuple[str, ...]:
    """Camera words that can be followed: none that the camera's limits forbid."""
    chosen: list[str] = []
    for _ in range(seconds):
        possible = [
            name
            for name, fits in (
                ("pans left", x > -FARTHEST + 8),
                ("pans right", x < FARTHEST - 8),
                ("zooms in", zoom < 1.35),
                ("zooms out", zoom > 0.95),
            )
            if fits
        ]
        camera = "still" if rng.random() >= moving else str(rng.choice(possible))
        if chosen and chosen[-1] in possible and rng.random() < stays:
            camera = chosen[-1]
        chosen.append(camera)
        places, zooms = camera_path((camera,), x, zoom)
        x, zoom = float(places[-1]), float(zooms[-1])
    return tuple(chosen)


def make_scene(
    seed: int,
    seconds: int = 1,
    *,
    thing: str | None = None,
    colour: str | None = None,
    size: str | None = None,
    place: str | None = None,
    motions: tuple[str, ...] | None = None,
    lights: tuple[str, ...] | None = None,
    weathers: tuple[str, ...] | None = None,
    cameras: tuple[str, ...] | None = None,
    scenery: tuple[str, ...] | None = None,
    start: float | None = None,
    height: float | None = None,
    facing: int | None = None,
    kind: str | None = None,
    name_all: bool = False,
) -> Scene:
    """A scene; what is None is drawn from the seed.

    Args:
        thing, colour, size, place: of the tables in `words`. motions, lights, weathers, cameras: one per second.
        start, height, facing: x of the thing in the first frame, its height above the ground, and 1 (to the right) or
            -1. kind: "thing", "collision" or "scenery" (nothing moves but the camera). name_all: captions always name
            size and place; else they are left out now and then. Scenery is always named. A camera that is given begins
            in the middle.

    Raises:
        InputError: an unknown word, or not one entry per second.
    """
    rng = np.random.default_rng((seed, 64))
    kind = kind or (
        "thing" if thing or motions else str(rng.choice(("thing", "collision", "scenery"), p=(0.7, 0.2, 0.1)))
    )
    thing = thing or ("ball" if kind == "collision" else str(rng.choice(THINGS)))
    colour = colour or str(rng.choice(list(COLOURS)))
    size = size or str(rng.choice(list(SIZES)))
    place = place or str(rng.choice(PLACES))
    _check(seconds, thing, colour, size, place, motions, lights, weathers, cameras, scenery)
    if scenery is None:
        number = int(rng.choice(3, p=(0.55, 0.3, 0.15))) if kind != "scenery" else int(rng.integers(1, 3))
        scenery = tuple(str(n) for n in rng.permutation(SCENERY)[:number])
    staged = bool(rng.random() < (0.5 if kind == "collision" else STAGED)) and start is None
    spots = rng.permutation((-16.0, 0.0, 16.0))[: len(scenery)] + rng.uniform(-4, 4, len(scenery))
    scales = np.sort(rng.uniform(0.62, 0.82, len(scenery)))
    if staged:
        spots = np.array([_STAGE.scenery[SCENERY.index(name)] for name in scenery])
        scales = np.full(len(scenery), _STAGE.scale)
    lively = bool(rng.random() < LIVELY)
    moving = bool(rng.random() < (0.7 if lively else 0.45)) and cameras is None
    camera_x = float(rng.uniform(-8, 8)) if moving and not staged and rng.random() < 0.5 else 0.0
    zoom = float(rng.uniform(0.85, 1.3)) if moving and not staged and rng.random() < 0.5 else 1.0
    begins_otherwise = bool(rng.random() < 0.15) and lights is None and weathers is None
    if lights is None:
        lights = _per_second(seconds, LIGHTS, 0.3 if lively else 0.7, rng)
    if weathers is None:
        weathers = _per_second(seconds, WEATHERS, 0.3 if lively else 0.7, rng)
    before = ("day", "clear") if begins_otherwise else (lights[0], weathers[0])
    begins_otherwise = not staged or before != (lights[0], weathers[0])
    if kind == "collision":
        bodies, motions = _collision(seconds, colour, size, staged, rng)
    elif kind == "thing":
        motions = motions or _motions(seconds, thing, 0.1 if lively else 0.4, rng)
        bodies = _one_thing(thing, colour, size, motions, (start, height, facing), staged, rng)
    else:
        bodies, motions = (), ("",) * seconds
    asked = cameras
    for _ in range(6):
        stays = 0.1 if lively else 0.4
        cameras = asked or (_cameras(seconds, camera_x, zoom, 0.75, stays, rng) if moving else ("still",) * seconds)
        camera_xs, zooms = camera_path(cameras, camera_x, zoom)
        places = [32 + (body.x - 32 - camera_xs) * zooms for body in bodies]
        seen = [place[:1] if lively else place for place in places]
        if asked or all(place.min() > 5 and place.max() < UNITS - 5 for place in seen):
            break
    else:  # no camera that was tried keeps the things in the picture
        cameras, camera_x, zoom = ("still",) * seconds, 0.0, 1.0
        camera_xs, zooms = camera_path(cameras, camera_x, zoom)
    names_size, names_place = rng.random(2) < (1.0 if name_all else 0.85)
    explicit = bool(rng.random() < 0.2)
    subject = f"a {size} {colour} {thing}" if names_size else f"a {colour} {thing}"
    captions = tuple(
        sentence(
            subject if bodies else "",
            f"{HIT} a {bodies[1].colour} ball" if kind == "collision" else motions[second],
            scenery=scenery,
            place=place if names_place else None,
            light=lights[second],
            weather=weathers[second],
            camera=cameras[second],
            explicit=explicit,
        )
        for second in range(seconds)
    )
    return Scene(
        place=place,
        bodies=bodies,
        scenery=tuple((n, 32.0 + float(x), float(s)) for n, x, s in zip(scenery, spots, scales, strict=True)),
        size=size,
        captions=captions,
        motions=motions,
        lights=lights,
        weathers=weathers,
        cameras=cameras,
        camera_x=camera_xs,
        zoom=zooms,
        light=shares(lights, LIGHTS, before[0]),
        weather=shares(weathers, WEATHERS, before[1]),
        begins_otherwise=begins_otherwise,
        seed=seed,
    )


def _check(seconds, thing, colour, size, place, motions, lights, weathers, cameras, scenery) -> None:  # type: ignore[no-untyped-def]
    for value, table, what in (
        (thing, THINGS, "thing"),
        (colour, COLOURS, "colour"),
        (size, SIZES, "size"),
        (place, PLACES, "place"),
    ):
        if value not in table:
            raise InputError(f"The world has no {what} '{value}'; choose one of {', '.join(table)}.")
    for values, table, what in (
        (motions, motions_of(thing), "motions"),
        (lights, LIGHTS, "lights"),
        (weathers, WEATHERS, "weathers"),
        (cameras, CAMERAS, "cameras"),
    ):
        if values is not None and (len(values) != seconds or any(v not in table for v in values)):
            raise InputError(f"A clip of {seconds} s needs {seconds} {what} out of: {', '.join(table)}.")
    if scenery is not None and any(name not in SCENERY for name in scenery):
        raise InputError(f"The world's scenery is: {', '.join(SCENERY)}.")


def _per_second(seconds: int, table: tuple[str, ...], stays: float, rng: np.random.Generator) -> tuple[str, ...]:
    chosen: list[str] = []
    for _ in range(seconds):
        chosen.append(_next(chosen[-1] if chosen else None, table, stays, rng))
    return tuple(chosen)


def _motions(seconds: int, thing: str, stays: float, rng: np.random.Generator) -> tuple[str, ...]:
    """What a thing does in every second."""
    choices = motions_of(thing)
    made = [str(rng.choice(choices))]
    on_ground = tuple(motion for motion in choices if motion != "falls")  # from there nothing can fall
    while len(made) < seconds:
        made.append(made[-1] if rng.random() < stays else str(rng.choice(on_ground)))
    return tuple(made)


def _one_thing(
    thing: str,
    colour: str,
    size: str,
    motions: tuple[str, ...],
    given: tuple[float | None, float | None, int | None],
    staged: bool,
    rng: np.random.Generator,
) -> tuple[Body, ...]:
    """A thing that moves alone; of walks that are not staged a third begin so near to a wall that they end there."""
    start, height, facing = given
    body = _Mover(thing, SIZES[size], 32.0, facing=1 if rng.random() < 0.5 else -1)
    body.facing = facing or body.facing
    body.angle = float(rng.uniform(0, 2 * np.pi))
    low, high = body.reach
    body.x = float(rng.uniform(low, high)) if start is None else start
    if start is None and motions[0] in DIRECTIONS:
        way = FRAMES * SPEED
        room = rng.uniform(2, way) if rng.random() < 0.33 else rng.uniform(way, max(way, high - low))
        place = high - room if motions[0] == "moves right" else low + room
        body.x = float(min(max(place, low), high))
    if motions[0] == "falls":
        body.height = float(rng.uniform(16, 34 - body.radius))
    if staged:
        body.x, body.facing, body.angle = _STAGE.x(motions[0]), facing or 1, _STAGE.angle
        body.height = _STAGE.height if motions[0] == "falls" else 0.0
    body.height = body.height if height is None else height
    states = []
    for motion in motions:
        body.facing = DIRECTIONS.get(motion, body.facing)
        for frame in range(FRAMES):
            states.append(body.state())
            advance(body, motion, frame)
    return (_body(thing, colour, SIZES[size], states),)


def _collision(
    seconds: int, colour: str, size: str, staged: bool, rng: np.random.Generator
) -> tuple[tuple[Body, ...], tuple[str, ...]]:
    """A rolling ball that hits a standing one of another colour and perhaps another size."""
    radius, other_radius = min(SIZES[size], 8.0), float(rng.choice(SECOND_BALL))
    other = str(rng.choice([name for name in COLOURS if name != colour]))
    gap = 2 * np.sqrt(radius * other_radius)
    frames = rng.uniform(3, min(20 * seconds, 34))
    way = HIT_SPEED * min(frames, (UNITS - radius - other_radius - gap - 2) / HIT_SPEED)
    start = radius + rng.uniform(0, max(UNITS - radius - other_radius - gap - way, 0.1))
    side = 1 if rng.random() < 0.5 else -1
    angles = tuple(float(rng.uniform(0, 6)) for _ in range(2))
    if staged:
        start, end, other_radius = _STAGE.hit
        way, side, angles = end - start, 1, (_STAGE.angle, _STAGE.angle)
    places = (start, start + way + gap)
    one, two = (
        _Mover("ball", r, x if side > 0 else UNITS - x, vx=v, angle=angle, facing=side)
        for x, r, v, angle in zip(places, (radius, other_radius), (HIT_SPEED * side, 0.0), angles, strict=True)
    )
    states: tuple[list, list] = ([], [])
    for _ in range(seconds * FRAMES):
        for body, kept in zip((one, two), states, strict=True):
            kept.append(body.state())
            advance(body, HIT, 1)
        collide(one, two)
    return (_body("ball", colour, radius, states[0]), _body("ball", other, other_radius, states[1])), (HIT,) * seconds


def _body(thing: str, colour: str, radius: float, states: list[tuple[float, ...]]) -> Body:
    return Body(thing, colour, radius, *np.array(states, float).T)
