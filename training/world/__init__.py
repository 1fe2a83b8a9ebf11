"""A small world with depth, light and weather, whose truth is known: the demo model's teacher.

`words` names what there is, `scene` moves it, `draw` films it. `film(make_scene(seed, seconds))` is a clip.
"""

from training.world.draw import film, film_many, film_touched, stage
from training.world.scene import FRAMES, GRAVITY, RESTITUTION, SPEED, UNITS, Body, Scene, make_scene
from training.world.words import photograph, sentence

__all__ = [
    "FRAMES",
    "GRAVITY",
    "RESTITUTION",
    "SPEED",
    "UNITS",
    "Body",
    "Scene",
    "film",
    "film_many",
    "film_touched",
    "make_scene",
    "photograph",
    "sentence",
    "stage",
]
