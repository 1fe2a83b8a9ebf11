"""A small world of moving shapes whose truth is known: the demo model's only teacher.

A clip is a scene (one body, or two balls that collide) filmed at 24 frames per second on 64x64 pixels. Every second
has one motion and one caption, so captions change from second to second as MAGI-1's chunk prompts do. The state
(positions, velocities, radii, angles) of every frame is kept, so tests and the evaluation can ask for the truth.

Units: pixels and frames. The origin is the top left corner, x grows to the right, y downwards.
Physics: gravity `GRAVITY`, a floor at the lower edge with restitution `RESTITUTION`, friction `FRICTION` for sliding,
collisions of two balls of mass radius^2 with restitution 1 (momentum and energy kept).

Everything follows from a seed: `make_clip(seed, seconds)` gives the same bits on every machine with the same numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from magi_lite.errors import InputError
from training.shipped.looks import BACKGROUNDS, COLOURS, SHAPES, SIZE, SIZES, Look, background, coverage, paint

FRAMES = 24
"""Frames in a second (one chunk of the model)."""

CORE_MOTIONS = ("moves left", "moves right", "moves up", "moves down", "stays still", "falls")
EXTRA_MOTIONS = ("grows", "shrinks", "turns", "slides to a stop")
COLLISION = "hits"
"""Motion of the two-ball scenes."""

SPEED = 0.75
"""Pixels per frame of every plain motion: 18 pixels in a second."""
GRAVITY = 0.2
"""Pixels per frame^2."""
RESTITUTION = 0.75
"""Speed kept in a bounce on the floor."""
SLIDE_SPEED = 1.5
FRICTION = SLIDE_SPEED / 20
"""A sliding body loses this much speed per frame and stands after 20 frames."""
GROWTH = 0.15
"""Pixels of radius per frame."""
TURN = np.pi / 48
"""Radians per frame: a quarter turn in a second."""
DIRECTIONS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}


@dataclass(frozen=True)
class Clip:
    """A filmed scene and its truth. F frames, B bodies (1, or 2 in a collision).

    `frames` (F, 64, 64, 3) uint8; `position`, `velocity` (F, B, 2) as x, y; `radius`, `angle` (F, B) float64.
    """

    frames: np.ndarray
    captions: tuple[str, ...]
    motions: tuple[str, ...]
    look: Look
    position: np.ndarray
    velocity: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    other_colour: str | None = None


@dataclass
class Body:
    """A body while the world moves it."""

    x: float
    y: float
    radius: float
    vx: float = 0.0
    vy: float = 0.0
    angle: float = 0.0


# --- captions --------------------------------------------------------------------------------------------------------


def caption(look: Look, motion: str, *, name_size: bool = True, name_background: bool = True) -> str:
    """The sentence for one second, e.g. "a large red ball falls on a dark background"."""
    size = f"{look.size} " if name_size else ""
    place = f" on a {look.background} background" if name_background else ""
    return f"a {size}{look.colour} {look.shape} {motion}{place}"


def collision_caption(look: Look, other_colour: str) -> str:
    """The sentence for a second of a two-ball scene."""
    return f"a {look.colour} ball hits a {other_colour} ball on a {look.background} background"


# --- moving ----------------------------------------------------------------------------------------------------------


def advance(body: Body, motion: str) -> None:
    """Move a body by one frame of a motion; walls stop it, the floor lets a falling one bounce."""
    low, high = body.radius, SIZE - body.radius
    if motion in DIRECTIONS:
        body.vx, body.vy = (SPEED * axis for axis in DIRECTIONS[motion])
    elif motion == "falls":
        body.vx = 0.0
        body.vy += GRAVITY
    elif motion == "slides to a stop":
        body.vy = 0.0
        body.vx = np.sign(body.vx) * max(0.0, abs(body.vx) - FRICTION)
    else:
        body.vx = body.vy = 0.0
    if motion == "turns":
        body.angle += TURN
    elif motion == "grows":
        body.radius = min(body.radius + GROWTH, SIZE / 2 - 2)
    elif motion == "shrinks":
        body.radius = max(body.radius - GROWTH, 4.0)
    body.x += body.vx
    body.y += body.vy
    if motion == "falls" and body.y > high:
        body.y = 2 * high - body.y
        body.vy = -RESTITUTION * body.vy
    for axis, speed in (("x", "vx"), ("y", "vy")):
        inside = min(max(getattr(body, axis), low), high)
        if inside != getattr(body, axis):
            setattr(body, axis, inside)
            setattr(body, speed, 0.0)


def begin(body: Body, motion: str, previous: str | None, rng: np.random.Generator) -> None:
    """What changes at the start of a second: a new fall starts at rest, a new slide with a push."""
    if motion == previous:
        return
    body.vx = body.vy = 0.0
    if motion == "slides to a stop":
        body.vx = SLIDE_SPEED * (1 if body.x < SIZE / 2 else -1)


def collide(first: Body, second: Body) -> None:
    """An elastic collision of two touching balls of mass radius^2 along the line of their centres."""
    normal = np.array([second.x - first.x, second.y - first.y])
    distance = float(np.hypot(*normal))
    if distance >= first.radius + second.radius or distance == 0:
        return
    normal /= distance
    one, two = np.array([first.vx, first.vy]), np.array([second.vx, second.vy])
    approach = float((one - two) @ normal)
    if approach <= 0:
        return
    mass_one, mass_two = first.radius**2, second.radius**2
    impulse = 2 * approach * mass_one * mass_two / (mass_one + mass_two)
    first.vx, first.vy = one - impulse / mass_one * normal
    second.vx, second.vy = two + impulse / mass_two * normal


def room(body: Body, motion: str) -> float:
    """Pixels that a body can go before a wall stops its motion."""
    if motion == "falls":
        return SIZE - body.radius - body.y
    if motion not in DIRECTIONS:
        return float(SIZE)
    x, y = DIRECTIONS[motion]
    place, step = (body.x, x) if x else (body.y, y)
    return (SIZE - body.radius - place) if step > 0 else place - body.radius


def _next_motion(body: Body, previous: str | None, motions: tuple[str, ...], rng: np.random.Generator) -> str:
    """Half the seconds go on as before; a motion with no room is seldom chosen (but walls must be met sometimes)."""
    if previous is not None and rng.random() < 0.45 and room(body, previous) > 4:
        return previous
    for _ in range(8):
        motion = str(rng.choice(motions))
        if room(body, motion) > 14 or rng.random() < 0.05:
            break
    return motion


# --- clips -----------------------------------------------------------------------------------------------------------


def make_clip(
    seed: int,
    seconds: int = 1,
    *,
    look: Look | None = None,
    motions: tuple[str, ...] | None = None,
    start: tuple[float, float] | None = None,
    extended: bool = False,
) -> Clip:
    """Film one body for some seconds.

    Args:
        look: None draws one. motions: one per second; None draws them. start: x, y of the first frame; None draws it.
        extended: also draw from `EXTRA_MOTIONS`.
    Raises:
        InputError: as many motions as seconds are needed, and they must be known.
    """
    rng = np.random.default_rng((seed, 7))
    known = CORE_MOTIONS + EXTRA_MOTIONS
    if motions is not None and (len(motions) != seconds or any(m not in known for m in motions)):
        raise InputError(f"A clip of {seconds} s needs {seconds} motions out of: {', '.join(known)}.")
    if look is None:
        look = Look(*(str(rng.choice(list(table))) for table in (COLOURS, SHAPES, SIZES, BACKGROUNDS)))
    choices = known if extended else CORE_MOTIONS
    if look.shape == "ball":
        choices = tuple(m for m in choices if m != "turns")
    body = _place(look, motions[0] if motions else str(rng.choice(choices)), start, rng)
    chosen: list[str] = [body[1]]
    mover, states = body[0], []
    for second in range(seconds):
        if second:
            chosen.append(motions[second] if motions else _next_motion(mover, chosen[-1], choices, rng))
        begin(mover, chosen[second], chosen[second - 1] if second else None, rng)
        for _ in range(FRAMES):
            states.append((mover.x, mover.y, mover.vx, mover.vy, mover.radius, mover.angle))
            advance(mover, chosen[second])
    table = np.array(states)
    frames = paint(background(look.background), coverage(look.shape, *table[:, (0, 1, 4, 5)].T), look.colour)
    named = rng.random((seconds, 2)) < 0.85
    return Clip(
        frames=np.rint(frames).astype(np.uint8),
        captions=tuple(
            caption(look, motion, name_size=bool(named[0, 0]), name_background=bool(named[0, 1])) for motion in chosen
        ),
        motions=tuple(chosen),
        look=look,
        position=table[:, None, 0:2],
        velocity=table[:, None, 2:4],
        radius=table[:, None, 4],
        angle=table[:, None, 5],
    )


def _place(look: Look, motion: str, start: tuple[float, float] | None, rng: np.random.Generator) -> tuple[Body, str]:
    """Where the first frame finds the body: anywhere that leaves room for its first motion."""
    radius = SIZES[look.size]
    if start is not None:
        return Body(*start, radius), motion
    if motion == "grows":
        return Body(*rng.uniform(radius + 4, SIZE - radius - 4, 2), radius), motion
    for _ in range(16):
        body = Body(*rng.uniform(radius, SIZE - radius, 2), radius)
        if room(body, motion) > 17:
            break
    return body, motion


def make_collision(
    seed: int,
    seconds: int = 1,
    *,
    look: Look | None = None,
    other_colour: str | None = None,
    contact: tuple[float, float] = (2, 36),
) -> Clip:
    """Film a ball that hits another one, standing; momentum and energy are kept, walls give perfect bounces.

    `contact` is the range of frames after which they touch; more than 36 do not fit the stage.
    """
    rng = np.random.default_rng((seed, 11))
    colours = [str(c) for c in rng.permutation(list(COLOURS))]
    if look is None:
        look = Look(colours[0], "ball", "small", str(rng.choice(BACKGROUNDS)))
    other_colour = other_colour or next(c for c in colours if c != look.colour)
    radius, other_radius = SIZES["small"], float(rng.choice([7.0, 8.0, 9.0]))
    frames = rng.uniform(*contact)
    speed = SLIDE_SPEED if SLIDE_SPEED * frames < 20 else SPEED
    way = speed * frames
    start = radius + rng.uniform(0, SIZE - 2 * (radius + other_radius) - way)
    meeting = start + way + radius + other_radius
    height = rng.uniform(20, SIZE - 20)
    side = 1 if rng.random() < 0.5 else -1
    one, two = (
        Body(x if side > 0 else SIZE - x, y, r, vx=side * v)
        for x, y, r, v in (
            (start, height, radius, speed),
            (meeting, height + rng.uniform(-4, 4), other_radius, 0.0),
        )
    )
    states = []
    for _ in range(seconds * FRAMES):
        states.append([(b.x, b.y, b.vx, b.vy, b.radius, 0.0) for b in (one, two)])
        for body in (one, two):
            body.x, body.y = body.x + body.vx, body.y + body.vy
            for axis, speed in (("x", "vx"), ("y", "vy")):
                low, high, place = body.radius, SIZE - body.radius, getattr(body, axis)
                if not low <= place <= high:
                    setattr(body, axis, 2 * (low if place < low else high) - place)
                    setattr(body, speed, -getattr(body, speed))
        collide(one, two)
    table = np.array(states)
    frames = paint(background(look.background), coverage("ball", *table[:, 1, (0, 1, 4, 5)].T), other_colour)
    frames = paint(frames, coverage("ball", *table[:, 0, (0, 1, 4, 5)].T), look.colour)
    text = collision_caption(look, other_colour)
    return Clip(
        frames=np.rint(frames).astype(np.uint8),
        captions=(text,) * seconds,
        motions=(COLLISION,) * seconds,
        look=look,
        position=table[:, :, 0:2],
        velocity=table[:, :, 2:4],
        radius=table[:, :, 4],
        angle=table[:, :, 5],
        other_colour=other_colour,
    )
