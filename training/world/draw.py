"""Drawing of scenes, for a whole batch at once and on any device.

Everything is a formula of place: a shape is a signed distance in units, antialiased over one pixel, so that motion by
parts of a pixel is smooth; textures are functions of the ground's own coordinates, so that they move as the camera
does. Nothing is random: rain, snow, stars and hills are fixed patterns that move, and so can be learned.

Perspective: a place on the ground at scale s lies s * `GROUND` below the horizon; a height h above it is s * h. The
zoom magnifies around (32, `CENTRE`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from training.world.scene import UNITS, Scene
from training.world.words import COLOURS, PLACES, THINGS

SIZE = 96
"""Width and height of a frame in pixels. With 64, sixteen numbers for 8 x 8 pixels of four frames leave of what moves
little more than its colour; with 96, things of the same size in units keep their outlines."""
TOUCHED = 12.0
"""Difference of a pixel, of 255, from which a body or its shadow touches it."""
HORIZON = 33.0
GROUND = 21.0
CENTRE = 46.0

TINTS = ((1.0, 1.0, 1.0), (1.0, 0.74, 0.62), (0.40, 0.46, 0.74))
"""What day, sunset and night do to the colours of things."""
SKIES = (
    ((92, 160, 236), (190, 222, 246)),
    ((88, 62, 132), (255, 158, 84)),
    ((10, 14, 44), (40, 52, 104)),
)
"""Colours of the sky above and at the horizon by day, sunset and night."""
OVERCAST = ((158.0, 172.0, 188.0), (150.0, 116.0, 122.0), (34.0, 40.0, 66.0))
"""The grey of a cloudy sky by day, sunset and night."""
GROUNDS = {
    "meadow": ((112, 184, 80), (92, 160, 66), (66, 128, 78)),
    "desert": ((232, 200, 128), (216, 178, 104), (196, 142, 96)),
    "town": ((150, 150, 160), (128, 128, 140), (98, 100, 122)),
}
"""Two tones of the ground and the tone of what stands at the horizon."""
FOG = (204, 210, 216)


class _Canvas:
    """Pixels of N clips of F frames in units, (N, F, H, W), and the picture so far (N, F, H, W, 3), 0 to 255."""

    def __init__(self, x: Tensor, y: Tensor, pixel: float) -> None:
        self.x, self.y, self.pixel = x, y, pixel
        self.picture = x.new_zeros((*x.shape, 3))

    def lay(self, cover: Tensor, colour: Tensor) -> None:
        """Paint a colour (..., 3) over what is there; `cover` in 0 to 1."""
        self.picture = self.picture + cover[..., None] * (colour - self.picture)


def film(scene: Scene, device: torch.device | str = "cpu", size: int = SIZE) -> np.ndarray:
    """One scene as frames (F, size, size, 3) uint8."""
    return film_many([scene], device, size)[0].cpu().numpy()


@torch.no_grad()
def film_many(
    scenes: Sequence[Scene],
    device: torch.device | str = "cpu",
    size: int = SIZE,
    frames: slice | None = None,
    bodies: bool = True,
    first: int = 0,
) -> Tensor:
    """Scenes of one length as frames (N, F, size, size, 3) uint8.

    `frames` cuts a part out before it is drawn; without `bodies`, neither they nor their shadows are. `first` is the
    number of the first frame in its clip, which rain and snow depend on. A processor draws one clip at a time, and a
    background that stays once; a card draws all together.
    """
    device, frames = torch.device(device), frames or slice(None)
    groups = [scenes] if device.type != "cpu" else [[scene] for scene in scenes]
    drawn = [_draw(group, device, size, frames, bodies, first).add_(0.5).clamp_(0, 255).byte() for group in groups]
    return torch.cat(drawn)


def stage(scene: Scene, size: int = SIZE) -> np.ndarray:
    """What the scene's frames would be without its bodies and their shadows: (F, size, size, 3) uint8."""
    return film_many([scene], size=size, bodies=False)[0].numpy()


@torch.no_grad()
def film_touched(scene: Scene, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """One scene (F, size, size, 3) uint8, and which pixels its bodies and their shadows touch, (F, size, size) bool."""
    shots = _Shots([scene], torch.device("cpu"), slice(None))
    canvas = shots.empty_stage(size)
    without = canvas.picture.clone()
    shots.put_bodies(canvas)
    touched = (canvas.picture - without).abs().amax(-1) > TOUCHED
    shots.put_weather(canvas, 0)
    return canvas.picture[0].add_(0.5).clamp_(0, 255).byte(), touched[0]


def _draw(
    scenes: Sequence[Scene], device: torch.device, size: int, frames: slice, bodies: bool, first: int = 0
) -> Tensor:
    shots = _Shots(scenes, device, frames)
    canvas = shots.empty_stage(size)
    if bodies:
        shots.put_bodies(canvas)
    shots.put_weather(canvas, first)
    return canvas.picture


class _Shots:
    """Some frames of scenes of one length, and what is drawn of them layer by layer."""

    def __init__(self, scenes: Sequence[Scene], device: torch.device, frames: slice) -> None:
        self.scenes, self.device, self.frames = scenes, device, frames
        self.camera, self.zoom = self.table([s.camera_x for s in scenes]), self.table([s.zoom for s in scenes])
        self.light, self.weather = self.table([s.light for s in scenes]), self.table([s.weather for s in scenes])
        self.tint = self.light @ torch.tensor(TINTS, device=device)

    def table(self, rows: list[np.ndarray]) -> Tensor:
        """Values per frame of every scene, (N, F, ...) float32."""
        return torch.from_numpy(np.stack(rows)[:, self.frames].astype(np.float32)).to(self.device)

    def empty_stage(self, size: int) -> _Canvas:
        """All that stands behind the bodies; where nothing of it changes it is drawn once."""
        states = (self.camera, self.zoom, self.light, self.weather)
        changing = torch.cat([self.camera[..., None], self.zoom[..., None], self.light, self.weather], dim=-1)
        if not torch.equal(changing, changing[:, :1].expand_as(changing)):
            return _background(self.scenes, *states, size)
        canvas = _background(self.scenes, *(state[:, :1] for state in states), size)
        whole = (len(self.scenes), self.camera.shape[1], size, size)
        canvas.x, canvas.y = canvas.x.expand(whole), canvas.y.expand(whole)
        canvas.picture = canvas.picture.expand(*whole, 3).clone()
        return canvas

    def put_bodies(self, canvas: _Canvas) -> None:
        """The bodies and their shadows, the first body on top."""
        for layer in (1, 0):
            for thing in THINGS:
                rows = [
                    n for n, s in enumerate(self.scenes) if layer < len(s.bodies) and s.bodies[layer].thing == thing
                ]
                if rows:
                    bodies = [self.scenes[n].bodies[layer] for n in rows]
                    _thing(canvas, rows, bodies, self.table, self.camera, self.zoom, self.tint, self.light)

    def put_weather(self, canvas: _Canvas, first: int) -> None:
        """What is in front of the bodies; `first` is the number of the first frame in its clip."""
        _fog(canvas, self.weather[..., 3], self.tint, before_things=False)
        numbers = first + torch.arange(self.scenes[0].frames, device=self.device)[self.frames].float()
        falling(canvas.picture, self.weather[..., 1], self.weather[..., 2], numbers, canvas.picture.shape[2])


def _background(
    scenes: Sequence[Scene], camera: Tensor, zoom: Tensor, light: Tensor, weather: Tensor, size: int
) -> _Canvas:
    """Sky, ground, walls, scenery and the fog between them and the things."""
    device = camera.device
    centres = (torch.arange(size, device=device) + 0.5) * (UNITS / size)
    shape = (*camera.shape, size, size)
    z = zoom[..., None, None]
    x = ((centres - 32) / z + 32).expand(shape)
    y = ((centres[:, None] - CENTRE) / z + CENTRE).expand(shape)
    canvas = _Canvas(x, y, UNITS / size)
    aa = canvas.pixel / z
    tint = light @ torch.tensor(TINTS, device=device)
    _sky(canvas, camera, light, 1 - weather[..., 0], aa)
    places = torch.tensor([PLACES.index(s.place) for s in scenes], device=device)
    _ground(canvas, camera, tint, light, places, aa)
    _walls(canvas, camera, tint, aa)
    for layer in range(max((len(s.scenery) for s in scenes), default=0)):
        for name in ("tree", "house"):
            rows = [n for n, s in enumerate(scenes) if layer < len(s.scenery) and s.scenery[layer][0] == name]
            if rows:
                _scenery(canvas, rows, [scenes[n].scenery[layer] for n in rows], camera, zoom, tint, light)
    _fog(canvas, weather[..., 3], tint, before_things=True)
    return canvas


# --- weather ---------------------------------------------------------------------------------------------------------


def falling(picture: Tensor, rain: Tensor, snow: Tensor, frames: Tensor, size: int) -> None:
    """Rain and snow over a picture (N, F, H, W, 3), in place; shares `rain`, `snow` (N, F), frame numbers (F,).

    Both are patterns that repeat, rain after four frames: every latent frame holds the same rain.
    """
    centres = (torch.arange(size, device=picture.device) + 0.5) * (UNITS / size)
    x, y = centres[None, None, :], centres[None, :, None]
    time = frames[:, None, None]
    jitter = torch.tensor([0.10, 0.62, 0.28, 0.86, 0.45, 0.03, 0.73, 0.35], device=picture.device)
    if bool((rain > 0).any()):
        slanted = x + 0.25 * y
        column = torch.floor(slanted / 8.0)
        along = (y - 4.0 * time) / 16.0 + jitter[column.long() % 8]
        across = slanted - 8.0 * column - 4 * jitter[(column.long() + 5) % 8] - 2
        streak = ((0.4 - (along - along.floor())) * 16).clamp(0, 1) * (1.1 - across.abs()).clamp(0, 1)
        shade = rain[..., None, None, None]
        picture.mul_(1 - 0.22 * shade)
        picture.add_((0.5 * streak[None, ..., None] * shade) * (picture.new_tensor((214, 226, 244)) - picture))
    if bool((snow > 0).any()):
        cover = torch.zeros((), device=picture.device)
        for speed, cell, radius, drift in ((1.0, 64 / 3, 1.5, 0.25), (0.5, 16.0, 1.0, -0.125)):
            column = torch.floor((x - drift * time) / cell)
            row = (y - speed * time) / cell + 2 * jitter[column.long() % 8]
            dx = (x - drift * time) - cell * (column + 0.25 + 0.5 * jitter[(column.long() + 3) % 8])
            dy = cell * (row - row.floor() - 0.5)
            cover = torch.maximum(cover, (radius + 0.5 - torch.hypot(dx, dy)).clamp(0, 1))
        shade = snow[..., None, None, None]
        picture.add_(0.12 * shade * (picture.new_tensor(FOG) - picture))
        picture.add_((0.95 * cover[None, ..., None] * shade) * (250.0 - picture))


def fog_colour(tint: Tensor) -> Tensor:
    """Fog is lit as things are, though more weakly: (..., 3) -> (..., 3)."""
    return (0.3 + 0.7 * tint) * torch.tensor(FOG, dtype=tint.dtype, device=tint.device)


def _fog(canvas: _Canvas, fog: Tensor, tint: Tensor, before_things: bool) -> None:
    """Fog hides what is behind more than what is near."""
    if not bool((fog > 0).any()):
        return
    share = 0.62 if before_things else 0.34
    far = (1.25 - ((canvas.y - HORIZON) / 40).abs()).clamp(0.6, 1.0) if before_things else 1.0
    canvas.lay(share * far * fog[..., None, None] * torch.ones_like(canvas.y), fog_colour(tint)[..., None, None, :])


# --- sky and ground --------------------------------------------------------------------------------------------------


def _sky(canvas: _Canvas, camera: Tensor, light: Tensor, overcast: Tensor, aa: Tensor) -> None:
    skies = torch.tensor(SKIES, device=light.device, dtype=torch.float32)
    grey = light @ torch.tensor(OVERCAST, device=light.device)
    top, bottom = (torch.lerp(light @ skies[:, part], grey, 0.65 * overcast[..., None]) for part in (0, 1))
    height = ((canvas.y + 4) / (HORIZON + 4)).clamp(0, 1)[..., None]
    height = (height * 9).floor() / 9 + 0.05  # bands, as in pixel art
    canvas.picture = torch.lerp(top[..., None, None, :], bottom[..., None, None, :], height.clamp(0, 1))
    x = canvas.x + 0.05 * camera[..., None, None]
    seen = light * (1 - 0.9 * overcast[..., None])  # clouds hide sun, moon and stars
    night, sunset, day = seen[..., 2, None, None], seen[..., 1, None, None], seen[..., 0, None, None]
    for place, height, radius, colour, share in (
        (50.0, 9.0, 4.5, (255, 240, 150), day),
        (44.0, 27.0, 6.5, (255, 214, 120), sunset),
        (50.0, 10.0, 4.5, (236, 236, 214), night),
    ):
        canvas.lay(_inside(torch.hypot(x - place, canvas.y - height) - radius, aa) * share, _colour(canvas, colour))
    moon_shadow = _inside(torch.hypot(x - 47.8, canvas.y - 9.2) - 4.2, aa) * night
    canvas.lay(moon_shadow * 0.93, torch.lerp(top[..., None, None, :], bottom[..., None, None, :], torch.tensor(0.3)))
    stars = torch.zeros_like(canvas.x)
    for place, height in ((6, 5), (15, 14), (24, 4), (33, 11), (40, 3), (12, 24), (28, 21), (60, 21), (3, 15), (58, 3)):
        distance = torch.maximum((x - place - 0.5).abs(), (canvas.y - height - 0.5).abs())
        stars = torch.maximum(stars, (1.0 - distance).clamp(0, 1))
    canvas.lay(stars * night, _colour(canvas, (230, 232, 255)))
    drift = canvas.x + 0.12 * camera[..., None, None]
    clouds = torch.zeros_like(canvas.x)
    for place, height, radius in ((12, 11, 4), (17, 10, 5.5), (23, 12, 4), (34, 20, 3), (38, 19, 4), (43, 20.5, 2.6)):
        lump = torch.hypot(drift - place, 1.5 * (canvas.y - height)) - radius
        clouds = torch.maximum(clouds, _inside(lump, aa) * (canvas.y < height + 1.5))
    white = light @ torch.tensor(((250.0, 252, 255), (255, 186, 150), (46, 58, 108)), device=light.device)
    canvas.lay(0.85 * clouds, white[..., None, None, :])


def _ground(canvas: _Canvas, camera: Tensor, tint: Tensor, light: Tensor, places: Tensor, aa: Tensor) -> None:
    tones = torch.tensor([GROUNDS[name] for name in PLACES], dtype=torch.float32, device=tint.device)[places]
    shade = tint[..., None, None, :]
    # what stands at the horizon: hills, dunes, or roofs
    x = canvas.x + 0.25 * camera[..., None, None]
    hills = 5.0 + 2.6 * torch.sin(x * 0.16 + 0.7) + 1.5 * torch.sin(x * 0.37 + 2.0)
    dunes = 3.0 + 3.4 * (torch.sin(x * 0.11 + 1.9)).abs()
    column = torch.floor(x / 5)
    roofs = 4.0 + 4.0 * (torch.sin(column * 12.9) * 0.5 + 0.5) + 3.5 * (torch.sin(column * 4.7 + 1) > 0.4)
    where = places[:, None, None, None]
    outline = torch.where(where == 0, hills, torch.where(where == 1, dunes, roofs))
    back = tones[:, 2][:, None, None, None, :]
    haze = torch.lerp(back, back.new_tensor((176.0, 200.0, 226.0)), 0.35)
    canvas.lay(_inside(HORIZON - outline - canvas.y, aa), haze * shade)
    windows = (where == 2) & ((x - 5 * column - 2.5).abs() < 1.0) & (torch.floor(canvas.y / 2) % 2 == 0)
    windows = windows & (canvas.y > HORIZON - outline + 1.4) & (canvas.y < HORIZON - 1)
    lit = light @ torch.tensor(((150.0, 168, 190), (236, 190, 130), (250, 214, 110)), device=light.device)
    canvas.lay(0.8 * windows.float(), lit[..., None, None, :])
    # the ground itself, in its own coordinates: scale s, sideways place, and depth that shrinks with distance
    s = ((canvas.y - HORIZON) / GROUND).clamp(min=0.05)
    side = (canvas.x - 32) / s + 32 + camera[..., None, None]
    depth = 9.0 / s
    soft = (0.22 / s.square()).clamp(0.05, 4.0)
    rows = torch.sin(math.pi * depth / 3.2)
    columns = torch.sin(math.pi * side / 8.0)
    pattern = torch.where(
        where == 0,
        torch.tanh(rows / soft * 1.2) * 0.55 + 0.45 * torch.tanh(columns * 2) * (rows > 0),
        torch.where(
            where == 1,
            torch.sin(depth * 2.1 + 1.2 * torch.sin(side * 0.22)) * 0.9,
            torch.tanh(columns * rows / soft * 3),
        ),
    )
    pattern = pattern * (s * 2.2).clamp(0, 1)
    mixed = torch.lerp(
        tones[:, 1][:, None, None, None, :], tones[:, 0][:, None, None, None, :], (0.5 + 0.5 * pattern)[..., None]
    )
    mixed = torch.lerp(mixed, haze, (0.55 - 1.1 * s).clamp(0, 0.6)[..., None])
    canvas.lay(_inside(HORIZON - canvas.y, aa), mixed * shade)


def _walls(canvas: _Canvas, camera: Tensor, tint: Tensor, aa: Tensor) -> None:
    """The two brick walls at the sides: seen where the camera turns to them, a pixel of each otherwise."""
    x = canvas.x + camera[..., None, None]
    for side in (-1, 1):
        outward = x - UNITS if side > 0 else -x
        body = torch.maximum(torch.maximum(-outward - 0.6, outward - 8), (canvas.y - 45).abs() - 12.5)
        row = torch.floor(canvas.y / 3)
        joint = torch.minimum(canvas.y - 3 * row, (outward + 3 * (row % 2)) % 6)
        brick = torch.where((joint < 0.8)[..., None], _colour(canvas, (126, 76, 66)), _colour(canvas, (182, 104, 84)))
        canvas.lay(_inside(body, aa), brick * tint[..., None, None, :])


# --- things and scenery ----------------------------------------------------------------------------------------------


def _inside(distance: Tensor, aa: Tensor | float) -> Tensor:
    """Cover of a pixel at a signed distance from an outline, antialiased over one pixel."""
    return (0.5 - distance / aa).clamp(0, 1)


def _colour(canvas: _Canvas, colour: tuple[float, ...]) -> Tensor:
    return torch.tensor(colour, dtype=torch.float32, device=canvas.picture.device)


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float, round_by: float = 0.0) -> Tensor:
    """Signed distance from a box around the origin."""
    dx, dy = x.abs() - half_width + round_by, y.abs() - half_height + round_by
    return torch.hypot(dx.clamp(min=0), dy.clamp(min=0)) + torch.maximum(dx, dy).clamp(max=0) - round_by


def _triangle(x: Tensor, y: Tensor, half_width: float, height: float) -> Tensor:
    """Signed distance (nearly) from a triangle with its base at y = 0 and its tip at y = -height."""
    length = math.hypot(half_width, height)
    return torch.maximum(y, (height * x.abs() - half_width * y - half_width * height) / length)


REACH = 2.5
"""Radii from a thing's lowest point to its farthest."""


class _Pen:
    """Draws one kind of thing in several clips, in the thing's own units: radius 1, origin at its lowest point.

    `unit` (n, F, 1, 1): pixels of the picture's units for one radius.
    """

    def __init__(
        self, canvas: _Canvas, rows: list[int], x: Tensor, y: Tensor, unit: Tensor, zoom: Tensor, tint: Tensor
    ) -> None:
        self.canvas, self.rows = canvas, rows
        z = zoom[rows][..., None, None]
        part = []
        for middle, centre, above in ((y, CENTRE, 0.35), (x, UNITS / 2, 1.0)):  # only pixels that it can reach
            place, reach = (middle - centre) * z + centre, REACH * unit * z + 2
            ends = ((place - reach).min(), (place + above * reach).max())
            part.append(slice(*(min(max(int(end / canvas.pixel), 0), canvas.x.shape[-1]) for end in ends)))
        self.part = (rows, slice(None), *part)
        self.x, self.y = (canvas.x[self.part] - x) / unit, (canvas.y[self.part] - y) / unit
        self.aa = canvas.pixel / (z * unit)
        self.tint = tint[rows][..., None, None, :]
        self.picture = canvas.picture[self.part]

    def fill(
        self, distance: Tensor, colour: Tensor | tuple[float, ...], *, glows: bool = False, share: Tensor | float = 1.0
    ) -> None:
        """Paint the inside of a signed distance; what glows is not darkened by the night."""
        if not isinstance(colour, Tensor):
            colour = self.picture.new_tensor(colour)
        cover = (_inside(distance, self.aa) * share)[..., None]
        self.picture = self.picture + cover * ((colour if glows else colour * self.tint) - self.picture)

    def outline(self, distance: Tensor, colour: Tensor) -> None:
        """A dark border of a pixel around a shape, then the shape."""
        self.fill(distance - 0.5 * self.aa, colour * 0.32)
        self.fill(distance + 0.5 * self.aa, colour)

    def done(self) -> None:
        self.canvas.picture[self.part] = self.picture


def ground_place(x: Tensor | np.ndarray, scale: float | Tensor, camera: Tensor | np.ndarray):  # type: ignore[no-untyped-def]
    """Where a place on the ground at a scale is in a picture that is not zoomed: x and y in units."""
    return 32 + (x - 32 - camera) * scale, HORIZON + GROUND * scale


def _scenery(
    canvas: _Canvas,
    rows: list[int],
    what: list[tuple[str, float, float]],
    camera: Tensor,
    zoom: Tensor,
    tint: Tensor,
    light: Tensor,
) -> None:
    place, scale = (camera.new_tensor([w[part] for w in what])[:, None] for part in (1, 2))
    x, y = ground_place(place, scale, camera[rows])
    unit = (scale * 15.0).expand_as(x)[..., None, None]
    pen = _Pen(canvas, rows, x[..., None, None], y.expand_as(x)[..., None, None], unit, zoom, tint)
    pen.fill(torch.hypot(pen.x - 0.1, pen.y * 3.5) - 0.75, (20, 24, 30), share=0.35)
    if what[0][0] == "tree":
        pen.outline(_box(pen.x, pen.y + 0.4, 0.12, 0.42), pen.picture.new_tensor((118.0, 80, 50)))
        leaves = [
            torch.hypot(pen.x - dx, pen.y + dy) - r
            for dx, dy, r in ((-0.36, 0.95, 0.42), (0.36, 0.98, 0.42), (0.0, 1.4, 0.5))
        ]
        crown = torch.minimum(torch.minimum(leaves[0], leaves[1]), leaves[2])
        pen.outline(crown, pen.picture.new_tensor((48.0, 132, 62)))
        pen.fill(torch.hypot(pen.x + 0.14, pen.y + 1.52) - 0.26, (92, 178, 84))
        pen.fill(torch.hypot(pen.x - 0.40, pen.y + 1.06) - 0.16, (92, 178, 84))
    else:
        pen.outline(_box(pen.x, pen.y + 0.5, 0.75, 0.5), pen.picture.new_tensor((232.0, 214, 180)))
        pen.outline(_triangle(pen.x, pen.y + 0.98, 0.98, 0.72), pen.picture.new_tensor((188.0, 74, 60)))
        pen.fill(_box(pen.x + 0.32, pen.y + 0.3, 0.17, 0.3), (122, 82, 58))
        shine = light[rows] @ light.new_tensor(((118.0, 170, 206), (244, 190, 112), (255, 220, 112)))
        pen.fill(_box(pen.x - 0.3, pen.y + 0.55, 0.22, 0.2), shine[..., None, None, :], glows=True)
        pen.fill(
            torch.minimum(*(_box(pen.x - 0.3, pen.y + 0.55, *side) for side in ((0.03, 0.2), (0.22, 0.03)))),
            (110, 80, 60),
        )
    pen.done()


def _thing(canvas, rows, bodies, table, camera, zoom, tint, light) -> None:  # type: ignore[no-untyped-def]
    """Shadow and shape of one kind of thing in the clips that have it."""
    x, height, angle, facing = (
        table([getattr(b, name) for b in bodies]) for name in ("x", "height", "angle", "facing")
    )
    radius = camera.new_tensor([b.radius for b in bodies])[:, None].expand_as(x)
    colour = camera.new_tensor([COLOURS[b.colour] for b in bodies])[:, None, None, None, :]
    across, down = ground_place(x, 1.0, camera[rows])
    unit = radius[..., None, None]
    ground = _Pen(canvas, rows, across[..., None, None], torch.full_like(unit, down), unit, zoom, tint)
    high = (height / 30)[..., None, None]
    width = {"ball": 0.85, "box": 1.05, "car": 1.55, "cat": 1.2}[bodies[0].thing]
    strength = 0.42 * (1 - 0.6 * high.clamp(0, 1)) * (1 - 0.45 * light[rows][..., 2, None, None])
    ground.fill((torch.hypot(ground.x / width, ground.y * 4.0) - 1 + 0.35 * high) * 0.5, (16, 20, 28), share=strength)
    ground.done()
    pen = _Pen(canvas, rows, across[..., None, None], (down - height)[..., None, None], unit, zoom, tint)
    _SHAPES[bodies[0].thing](pen, colour, angle[..., None, None], facing[..., None, None])
    pen.done()


def _ball(pen: _Pen, colour: Tensor, angle: Tensor, facing: Tensor) -> None:
    y = pen.y + 1.0
    pen.outline(torch.hypot(pen.x, y) - 1.0, colour)
    rim = torch.hypot(pen.x, y) - (1.0 - pen.aa)
    across = torch.cos(angle) * pen.x + torch.sin(angle) * y
    along = torch.cos(angle) * y - torch.sin(angle) * pen.x
    pale = torch.where((colour.mean(-1, keepdim=True) > 225), torch.full_like(colour, 96.0), colour * 0.25 + 190.0)
    pen.fill(torch.maximum(across.abs() - 0.24, rim), pale)
    pen.fill(torch.hypot(along - 0.62, across) - 0.2, colour * 0.45)
    pen.fill(torch.maximum(0.95 - torch.hypot(pen.x + 0.45, y + 0.5), rim), colour * 0.0, share=0.16)


def _crate(pen: _Pen, colour: Tensor, angle: Tensor, facing: Tensor) -> None:
    y = pen.y + 0.9
    pen.outline(_box(pen.x, y, 0.9, 0.9), colour)
    frame = torch.maximum(_box(pen.x, y, 0.78, 0.78), -_box(pen.x, y, 0.56, 0.56))
    pen.fill(frame, colour * 0.66)
    pen.fill(torch.maximum((pen.x + y).abs() / 1.414 - 0.13, _box(pen.x, y, 0.56, 0.56)), colour * 0.66)
    pen.fill(_box(pen.x, y + 0.8, 0.84, 0.07), colour * 0.6 + 100, share=0.8)


def _car(pen: _Pen, colour: Tensor, angle: Tensor, facing: Tensor) -> None:
    x, y = pen.x * facing, pen.y
    pen.outline(torch.minimum(_box(x + 0.12, y + 1.02, 0.72, 0.4, 0.2), _box(x, y + 0.58, 1.42, 0.34, 0.16)), colour)
    pen.fill(_box(x - 0.2, y + 1.06, 0.28, 0.22, 0.06), (190, 224, 240))
    pen.fill(_box(x + 0.44, y + 1.06, 0.26, 0.22, 0.06), (190, 224, 240))
    pen.fill(_box(x, y + 0.46, 1.32, 0.08), colour * 0.62)
    pen.fill(_box(x - 1.28, y + 0.66, 0.12, 0.12), (255, 244, 170), glows=True)
    for place in (-0.78, 0.78):
        dx, dy = x - place, y + 0.36
        pen.fill(torch.hypot(dx, dy) - 0.40, (30, 30, 36))
        turn = angle * facing
        spoke = (torch.cos(turn) * dx + torch.sin(turn) * dy).abs() - 0.1
        pen.fill(torch.maximum(spoke, torch.hypot(dx, dy) - 0.26), (206, 206, 212))


def _cat(pen: _Pen, colour: Tensor, angle: Tensor, facing: Tensor) -> None:
    x, y = pen.x * facing, pen.y
    swing = 0.2 * torch.sin(0.5 * angle * facing)
    dark = colour * 0.72
    for place, sign in ((-0.62, 1), (-0.3, -1), (0.32, 1), (0.62, -1)):
        lean = sign * swing * (-(y)).clamp(0, 0.6).sub(0.6).abs() * 1.6
        pen.fill(_box(x - place - lean, y + 0.3, 0.12, 0.3), dark * 0.8)
    tail = torch.hypot(x + 1.02, y + 1.12) - 0.42
    pen.fill(torch.maximum(torch.maximum(tail.abs() - 0.1, x + 0.86), y + 0.72), dark)
    head = torch.hypot(x - 0.86, y + 1.22) - 0.42
    ears = torch.minimum(_triangle(x - 0.62, y + 1.42, 0.17, 0.42), _triangle(x - 1.08, y + 1.42, 0.17, 0.42))
    trunk = torch.hypot(x / 1.0, (y + 0.78) * 2.3) - 0.9
    trunk = torch.where(trunk > 0, trunk * 0.55, trunk * 0.45)
    pen.outline(torch.minimum(torch.minimum(trunk, head), ears), colour)
    for place in (-0.4, -0.05, 0.3):
        pen.fill(torch.maximum((x - place).abs() - 0.08, torch.maximum(trunk + 0.1, y + 0.75)), colour * 0.55)
    pen.fill(_box(x - 1.0, y + 1.28, 0.07, 0.09), (24, 24, 30))
    pen.fill(_box(x - 0.74, y + 1.28, 0.07, 0.09), (24, 24, 30))


_SHAPES = {"ball": _ball, "box": _crate, "car": _car, "cat": _cat}
