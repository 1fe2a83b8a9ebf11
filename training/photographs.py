"""Clips made of photographs: a camera, light and weather over a real picture, as a video that starts from one shows.

The pictures are not in the repository: `credits()` names the Debian packages and the Python packages that carry them,
their authors and their licences (training/CREDITS.md), and `find` reads every picture below a folder that they were
unpacked into:

    apt-get download PACKAGE && dpkg -x PACKAGE*.deb FOLDER

One picture in ten, chosen by its name, is held back for tests and never trained on.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from magi_lite.errors import InputError
from magi_lite.files import write_tensors
from training.world.draw import SIZE, TINTS, falling, fog_colour
from training.world.scene import FRAMES, PAN, UNITS, ZOOM, shares
from training.world.words import CAMERAS, LIGHTS, WEATHERS, photograph

PACKAGES = (
    "mate-backgrounds",
    "plasma-workspace-wallpapers",
    "ukui-wallpapers",
    "gnome-backgrounds",
    "lxqt-themes",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
)
"""Debian packages whose pictures the model was trained on; `skimage/data` and `sklearn/datasets/images` besides."""
OF_PYTHON = (
    "astronaut", "brick", "camera", "chelsea", "coffee", "coins", "motorcycle_left", "rocket",
    "china", "flower",
)  # fmt: skip
"""The pictures of `skimage/data` and `sklearn/datasets/images` that show something seen with a camera."""
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_SHORT_SIDE = 256
"""Pixels to which a picture's shorter side is brought."""
_SMALLEST = 200
_PLAIN = 9.0
"""Standard deviation of brightness below which a picture shows nothing."""
_ALIKE = 0.985
"""Correlation of two small copies from which the pictures count as one."""
HELD_BACK = 10


@dataclass(frozen=True)
class Album:
    """Pictures (h, w, 3) uint8 by name, apart: for training, and held back."""

    trained: tuple[np.ndarray, ...]
    held_back: tuple[np.ndarray, ...]
    names: tuple[str, ...]
    held_back_names: tuple[str, ...]


def is_held_back(name: str) -> bool:
    """Whether a picture of this file name is kept for tests."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_BACK == 0


def album(folder: Path, kept: Path) -> Album:
    """`find`, remembered in the safetensors file `kept`."""
    if not kept.is_file():
        made = find(folder)
        names = (*made.names, *made.held_back_names)
        pictures = (*made.trained, *made.held_back)
        write_tensors(kept, {n: torch.tensor(p) for n, p in zip(names, pictures, strict=True)})
    pictures = {name: tensor.numpy() for name, tensor in sorted(load_file(kept).items())}
    return _split(pictures)


def find(folder: Path) -> Album:
    """Read every picture below a folder, once each: other sizes and light or dark copies of one picture are left out.

    Raises:
        InputError: there are none.
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    kept: dict[str, np.ndarray] = {}
    marks: list[np.ndarray] = []
    sources = [folder / name for name in PACKAGES]
    paths = [p for source in sources for p in source.rglob("*") if p.suffix.lower() in _SUFFIXES]
    for source in (folder / "skimage" / "data", folder / "sklearn" / "datasets" / "images"):
        paths += [p for p in source.glob("*") if p.stem in OF_PYTHON]
    paths = sorted(p for p in paths if p.is_file() and not p.is_symlink())
    for path in paths:
        name = path.relative_to(folder).as_posix()
        with Image.open(path) as image:
            if min(image.size) < _SMALLEST or "screenshot" in path.name:
                continue
            image.draft("RGB", (2 * _SHORT_SIDE, 2 * _SHORT_SIDE))
            scale = _SHORT_SIDE / min(image.size)
            size = (max(_SHORT_SIDE, round(image.width * scale)), max(_SHORT_SIDE, round(image.height * scale)))
            small = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0))
        mark = np.asarray(Image.fromarray(small).convert("L").resize((16, 16)), float)
        if small.mean(-1).std() < _PLAIN:
            continue
        mark = (mark - mark.mean()) / (mark.std() + 1e-6) / 16
        if any(float((mark * other).sum()) > _ALIKE for other in marks):
            continue
        marks.append(mark)
        kept[name] = small
    if not kept:
        raise InputError(f"There are no pictures below {folder}; unpack the packages of training/CREDITS.md there.")
    return _split(kept)


def _split(kept: dict[str, np.ndarray]) -> Album:
    names = {held: tuple(name for name in kept if is_held_back(name) == held) for held in (False, True)}
    trained, held_back = (tuple(kept[name] for name in names[held]) for held in (False, True))
    return Album(trained, held_back, names[False], names[True])


@dataclass(frozen=True)
class Shot:
    """A photograph and what happens to it in S seconds; words as in the world's scenes.

    `side`: of the window at the start, in the picture's pixels; `x`, `y`: its middle.
    """

    picture: np.ndarray
    x: float
    y: float
    side: float
    lights: tuple[str, ...]
    weathers: tuple[str, ...]
    cameras: tuple[str, ...]
    explicit: bool = False
    """Whether the captions name day, clear weather and a still camera too."""

    @property
    def captions(self) -> tuple[str, ...]:
        """One sentence for each second."""
        words = zip(self.lights, self.weathers, self.cameras, strict=True)
        return tuple(photograph(*some, explicit=self.explicit) for some in words)


def draw_shot(picture: np.ndarray, seconds: int, rng: np.random.Generator, camera: str | None = None) -> Shot:
    """A window of a picture with room for what its camera does; light and weather change in a third of the clips each.

    Args:
        camera: for all seconds; None draws it.
    """
    height, width = picture.shape[:2]
    camera = camera or str(rng.choice(CAMERAS, p=(0.2, 0.2, 0.2, 0.2, 0.2)))
    way = PAN * FRAMES * seconds / UNITS  # in widths of the window
    zoom = ZOOM ** (FRAMES * seconds)
    most = {"pans left": width / (1 + way), "pans right": width / (1 + way), "zooms out": min(height, width) / zoom}
    side = min(height, width, most.get(camera, math.inf)) * float(rng.uniform(0.45, 1.0))
    room = {"pans left": (way * side, 0.0), "pans right": (0.0, way * side)}.get(camera, (0.0, 0.0))
    margin = side / 2 * (zoom if camera == "zooms out" else 1)
    x, y = (
        _between(low, high, rng)
        for low, high in ((margin + room[0], width - margin - room[1]), (margin, height - margin))
    )
    lights, weathers = (tuple(_kept(table, seconds, 0.35, rng)) for table in (LIGHTS, WEATHERS))
    return Shot(picture, x, y, side, lights, weathers, (camera,) * seconds, bool(rng.random() < 0.2))


def _between(low: float, high: float, rng: np.random.Generator) -> float:
    """A place in a range, or the middle of one that rounding has turned round."""
    return float(rng.uniform(low, high)) if low < high else (low + high) / 2


def _kept(table: tuple[str, ...], seconds: int, share: float, rng: np.random.Generator) -> list[str]:
    """The first entry, changed in some second to another one that stays."""
    if rng.random() >= share:
        return [table[0]] * seconds
    begin, name = int(rng.integers(seconds)), str(rng.choice(table[1:]))
    return [table[0]] * begin + [name] * (seconds - begin)


@torch.no_grad()
def film_shot(shot: Shot, size: int = SIZE, frames: slice | None = None) -> Tensor:
    """The clip (F, size, size, 3) uint8: it starts with the picture as it is."""
    seconds = len(shot.cameras)
    cut = frames or slice(None)
    steps_x, factors = [], []
    x, factor = 0.0, 1.0
    for camera in shot.cameras:
        for _ in range(FRAMES):
            steps_x.append(x)
            factors.append(factor)
            x += {"pans left": -PAN, "pans right": PAN}.get(camera, 0.0) * factor / UNITS
            factor *= {"zooms in": 1 / ZOOM, "zooms out": ZOOM}.get(camera, 1.0)
    height, width = shot.picture.shape[:2]
    side = torch.tensor(factors)[cut] * shot.side
    middle = shot.x + torch.tensor(steps_x)[cut] * shot.side
    picture = torch.tensor(shot.picture).permute(2, 0, 1)[None].float()
    finer = 2 if float(side.max()) < 3 * size else 4  # samples for a pixel, by side
    places = (torch.arange(finer * size) + 0.5) / (finer * size) - 0.5
    across = (middle[:, None] + places * side[:, None]) / width * 2 - 1
    down = (shot.y + places * side[:, None]) / height * 2 - 1
    grid = torch.stack(
        [across[:, None, :].expand(-1, len(places), -1), down[:, :, None].expand(-1, -1, len(places))], dim=-1
    )
    sampled = F.grid_sample(
        picture.expand(len(grid), -1, -1, -1), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    made = F.avg_pool2d(sampled, finer).permute(0, 2, 3, 1)[None]
    light = torch.from_numpy(shares(shot.lights, LIGHTS, LIGHTS[0])[cut]).float()
    weather = torch.from_numpy(shares(shot.weathers, WEATHERS, WEATHERS[0])[cut]).float()
    tint = light @ torch.tensor(TINTS)
    made = (made * tint[:, None, None, :]).contiguous()
    made += 0.58 * weather[:, 3, None, None, None] * (fog_colour(tint)[:, None, None, :] - made)
    numbers = torch.arange(seconds * FRAMES)[cut].float()
    falling(made, weather[None, :, 1], weather[None, :, 2], numbers, size)
    return made[0].add_(0.5).clamp_(0, 255).byte()
