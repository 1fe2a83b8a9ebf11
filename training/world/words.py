"""The words of the small world: what there is, what it does, and the sentence that says so for one second."""

from __future__ import annotations

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (226, 56, 48),
    "green": (52, 176, 74),
    "blue": (56, 104, 232),
    "yellow": (246, 206, 52),
    "white": (240, 240, 236),
    "purple": (160, 70, 204),
}
THINGS = ("ball", "box", "car", "cat")
SCENERY = ("tree", "house")
"""What stands behind the things and has its own colours."""
SIZES = {"small": 6.5, "large": 9.5}
"""Radius in units of a 64th of the picture's width, at the things' distance."""
PLACES = ("meadow", "desert", "town")
LIGHTS = ("day", "sunset", "night")
WEATHERS = ("clear", "rain", "snow", "fog")
CAMERAS = ("still", "pans left", "pans right", "zooms in", "zooms out")
MOTIONS = ("moves left", "moves right", "falls", "jumps", "stands still")
BOUNCE = "bounces"
"""The one motion that only a ball has."""
HIT = "hits"
"""Motion of the scenes in which one ball hits another."""
PHOTOGRAPH = "photograph"
"""The subject of clips that are made of a picture."""


def motions_of(thing: str) -> tuple[str, ...]:
    """The motions that a thing has."""
    return (*MOTIONS, BOUNCE) if thing == "ball" else MOTIONS


def surroundings(light: str, weather: str, camera: str, explicit: bool = False) -> str:
    """The end of a sentence. Day, clear weather and a still camera go without saying, unless it is `explicit`."""
    parts = [f"at {light}"] if explicit or light != LIGHTS[0] else []
    if weather != WEATHERS[0]:
        parts.append(f"in {weather}")
    elif explicit:
        parts.append("in clear weather")
    if explicit or camera != CAMERAS[0]:
        parts.append(f"camera {camera}")
    return " ".join(parts)


def sentence(
    subject: str,
    action: str,
    *,
    scenery: tuple[str, ...] = (),
    place: str | None = None,
    light: str = "day",
    weather: str = "clear",
    camera: str = "still",
    explicit: bool = False,
) -> str:
    """What one second shows: "a red ball moves left by a tree in a meadow at night in snow camera pans left".

    Args:
        subject: with its article, or "" for scenery alone. action: its motion; for a collision with the ball it hits.
        place: None leaves it out.
    """
    behind = " and ".join(f"a {name}" for name in scenery)
    start = f"{subject} {action}{f' by {behind}' if behind else ''}" if subject else behind or "nothing"
    where = f"in a {place}" if place else ""
    return " ".join(part for part in (start, where, surroundings(light, weather, camera, explicit)) if part)


def photograph(light: str, weather: str, camera: str, explicit: bool = False) -> str:
    """What one second of a moving photograph shows."""
    return f"a {PHOTOGRAPH} {surroundings(light, weather, camera, explicit)}".strip()


def words() -> list[str]:
    """Every word of the world's sentences, in alphabetical order."""
    found = {"a", "in", "at", "by", "and", "camera", "weather", "nothing", PHOTOGRAPH, HIT}
    for phrase in (*THINGS, *SCENERY, *PLACES, *LIGHTS, *WEATHERS, *CAMERAS, *MOTIONS, BOUNCE, *COLOURS, *SIZES):
        found |= set(phrase.split())
    return sorted(found)
