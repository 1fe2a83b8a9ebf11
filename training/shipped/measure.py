"""What is to be seen in frames of the small world, by plain measuring: no network, nothing learned.

The idea is analysis by synthesis. The world's tables say what its stages and colours look like, so every pixel is a
blend of a stage and one colour; the stage, colour, shape and motion that explain the frames best are the answer. A
blurry autoencoder moves blends about but keeps their sums, so areas and centroids survive it.

Units: pixels and frames, as in `world`. Physics measures: Physics-IQ (arXiv 2501.09038, section 3), with masks of the
bodies against the known stage in place of masks of motion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from magi_lite.errors import InputError
from training.shipped.looks import BACKGROUNDS, COLOURS, SHAPES, SIZE, SIZES, background, coverage
from training.shipped.world import CORE_MOTIONS, FRAMES, GROWTH, SLIDE_SPEED, Body, advance

MEASURABLE = (*CORE_MOTIONS, "grows", "shrinks", "slides to a stop")
"""Motions that `motion_of` can tell apart. Turning is left out: on a ball there is nothing to see."""
SMALLEST_BODY = 30.0
"""Pixels of area below which there is no body in a frame."""
BODY_DIFFERENCE = 48
"""Difference from the stage, of 255, from which a pixel belongs to a body in the physics masks."""
_AREAS = {"ball": np.pi, "square": 3.24, "triangle": 2.309}
"""Area of a shape of radius 1."""
_TRIANGLE_CENTROID = 2 / 15
"""How far below the middle a triangle of radius 1 has its centroid."""
_ANGLES = {"ball": 1, "square": 6, "triangle": 8}
"""Angles of 15 degrees each that are tried, until the shape repeats."""
_STILL = 0.75
"""A track that strays this little (root mean square, pixels) stands still, whatever else would explain it too."""
_FALL_SPEEDS = np.arange(-3.5, 5.01, 0.25)
"""Downward speeds with which a second of falling may begin."""


@dataclass(frozen=True)
class Measurement:
    """What a clip of T frames shows. Names come from the world's tables; None where no body is found.

    `motions`: one per full second. `track` (T, 2): x, y of the centroid; `area` (T,): pixels; both NaN where a frame
    shows no body. `sharpness`: mean slope of the body's edge, 1/pixel; the world's own clips have about 0.46.
    """

    background: str
    colour: str | None
    shape: str | None
    size: str | None
    motions: tuple[str | None, ...]
    track: np.ndarray
    area: np.ndarray
    sharpness: float

    def attribute(self, name: str) -> str | None:
        """colour, shape, size, background, or motion (of the first second)."""
        return self.motions[0] if name == "motion" else getattr(self, name)


def measure(frames: np.ndarray, motions: tuple[str, ...] = CORE_MOTIONS) -> Measurement:
    """Measure a clip with one body.

    Args:
        frames: (T, 64, 64, 3) uint8. motions: the candidates, out of `MEASURABLE`.
    Raises:
        InputError: frames of another size, or a motion that cannot be measured.
    """
    if frames.ndim != 4 or frames.shape[1:] != (SIZE, SIZE, 3):
        raise InputError(f"Frames must be (T, {SIZE}, {SIZE}, 3), not {frames.shape}; the small world has one size.")
    unknown = [motion for motion in motions if motion not in MEASURABLE]
    if unknown:
        raise InputError(f"The motion '{unknown[0]}' cannot be measured; choose from {', '.join(MEASURABLE)}.")
    pixels = frames.astype(np.float32)
    sample = pixels[:: max(1, len(pixels) // 6)]
    stage = background_of(sample)
    colour = colour_of(sample, background(stage))
    alpha = isolate(blend(pixels, background(stage), colour)[0])
    area = alpha.sum((1, 2))
    there = area >= SMALLEST_BODY
    track = np.where(there[:, None], centroids(alpha), np.nan)
    area = np.where(there, area, np.nan)
    seconds = len(frames) // FRAMES
    if there.mean() < 0.5:
        return Measurement(stage, None, None, None, (None,) * seconds, track, area, 0.0)
    shape = shape_of(alpha[there], track[there], area[there])
    radius = np.sqrt(area / _AREAS[shape])
    typical = float(np.nanmedian(radius))
    size = min(SIZES, key=lambda name: abs(np.log(SIZES[name] / typical)))
    cuts = [slice(second * FRAMES, (second + 1) * FRAMES) for second in range(seconds)]
    moved = tuple(motion_of(track[cut], radius[cut], motions) for cut in cuts)
    return Measurement(stage, colour, shape, size, moved, track, area, sharpness_of(alpha[there]))


# --- what is there ---------------------------------------------------------------------------------------------------


def background_of(pixels: np.ndarray) -> str:
    """The stage that most pixels (T, 64, 64, 3) float lie nearest to."""
    return min(BACKGROUNDS, key=lambda name: float(np.median(np.abs(pixels - background(name)).mean(-1))))


def colour_of(pixels: np.ndarray, stage: np.ndarray) -> str:
    """The colour whose blends with the stage (64, 64, 3) explain the pixels (T, 64, 64, 3) best."""
    # the mean of distances, not of squares: a few wild pixels must not outvote the body
    return min(COLOURS, key=lambda name: float(blend(pixels, stage, name)[1].mean()))


def blend(pixels: np.ndarray, stage: np.ndarray, colour: str) -> tuple[np.ndarray, np.ndarray]:
    """How much of a colour each pixel holds, in [0, 1], and how far the pixel is from that blend; both (T, 64, 64)."""
    difference = pixels - stage
    direction = np.array(COLOURS[colour], np.float32) - stage
    alpha = np.clip((difference * direction).sum(-1) / (direction**2).sum(-1), 0.0, 1.0)
    return alpha, np.sqrt(((difference - alpha[..., None] * direction) ** 2).sum(-1))


def isolate(alpha: np.ndarray) -> np.ndarray:
    """Keep of each frame's alpha (T, 64, 64) what lies around its main body; stray specks and faint veils go."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] + 0.5
    kept = np.zeros_like(alpha)
    for number, frame in enumerate(alpha):
        solid = frame > 0.5
        if not solid.any():
            continue
        x, y = np.median(columns[solid]), np.median(rows[solid])
        reach = 2.0 * np.sqrt(solid.sum() / np.pi) + 2.0  # a triangle's corners are 1.6 such radii away
        near = (columns - x) ** 2 + (rows - y) ** 2 <= reach**2
        kept[number] = np.where(near & (frame > 0.15), frame, 0.0)
    return kept


def centroids(alpha: np.ndarray) -> np.ndarray:
    """(T, 64, 64) -> (T, 2) x, y; NaN for empty frames."""
    places = np.arange(SIZE) + 0.5
    total = alpha.sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([(alpha.sum(1) * places).sum(1) / total, (alpha.sum(2) * places).sum(1) / total], axis=1)


def shape_of(alpha: np.ndarray, track: np.ndarray, area: np.ndarray) -> str:
    """The shape whose drawing, at the measured places and areas, overlaps the frames most (mean IoU of eight)."""
    picks = np.unique(np.linspace(0, len(alpha) - 1, 8).astype(int))
    alpha, track, area = alpha[picks], track[picks], area[picks]
    scores = {}
    for shape in SHAPES:
        radius = np.sqrt(area / _AREAS[shape])
        best = np.zeros(len(picks))
        for turn in range(_ANGLES[shape]):
            angle = np.full(len(picks), turn * np.pi / 12)
            offset = _TRIANGLE_CENTROID * radius if shape == "triangle" else 0.0
            x, y = track[:, 0] + offset * np.sin(angle), track[:, 1] - offset * np.cos(angle)
            drawn = coverage(shape, x, y, radius, angle)
            overlap = np.minimum(drawn, alpha).sum((1, 2)) / np.maximum(drawn, alpha).sum((1, 2))
            best = np.maximum(best, overlap)
        scores[shape] = float(best.mean())
    return max(scores, key=scores.__getitem__)


def sharpness_of(alpha: np.ndarray) -> float:
    """Mean slope along the body's edge, weighted by the slope itself: (T, 64, 64) -> 1/pixel."""
    down, right = np.gradient(alpha, axis=(1, 2))
    slope = np.hypot(down, right)
    return float((slope**2).sum() / max(slope.sum(), 1e-6))


# --- how it moves ----------------------------------------------------------------------------------------------------


def motion_of(track: np.ndarray, radius: np.ndarray, motions: tuple[str, ...] = CORE_MOTIONS) -> str | None:
    """The motion of one second: the one that, simulated from the first place, stays nearest to the track.

    Args:
        track: (24, 2); radius: (24,), NaN where a frame shows no body.
    """
    there = ~np.isnan(radius)
    if there.mean() < 0.5:
        return None
    growth = np.polyfit(np.flatnonzero(there), radius[there], 1)[0]
    for name, sign in (("grows", 1), ("shrinks", -1)):
        if name in motions and sign * growth > GROWTH / 2:
            return name
    if "stays still" in motions and _stray(track, np.zeros_like(track), there) < _STILL:
        return "stays still"
    start, typical = track[there][0], float(np.median(radius[there]))
    errors = {
        motion: min(_stray(track, path, there) for path in _paths(motion, start, typical, len(track)))
        for motion in motions
        if motion not in ("grows", "shrinks")
    }
    return min(errors, key=errors.__getitem__) if errors else None


def _stray(track: np.ndarray, path: np.ndarray, there: np.ndarray) -> float:
    """Root mean square distance between two tracks once their means agree."""
    difference = (track - path)[there]
    return float(np.sqrt(((difference - difference.mean(0)) ** 2).sum(1).mean()))


def _paths(motion: str, start: np.ndarray, radius: float, frames: int) -> list[np.ndarray]:
    """Tracks that the world would give a body for a motion; several where the first speed is not known."""
    if motion == "falls":
        speeds = [(0.0, float(speed)) for speed in _FALL_SPEEDS]
    elif motion == "slides to a stop":
        speeds = [(SLIDE_SPEED, 0.0), (-SLIDE_SPEED, 0.0)]
    else:
        speeds = [(0.0, 0.0)]
    paths = []
    for vx, vy in speeds:
        body = Body(float(start[0]), float(start[1]), radius, vx, vy)
        places = []
        for _ in range(frames):
            places.append((body.x, body.y))
            advance(body, motion)
        paths.append(np.array(places))
    return paths


def colour_tracks(frames: np.ndarray, stage: str, colours: tuple[str, ...]) -> np.ndarray:
    """Centroids of several bodies of known colours: (T, 64, 64, 3) uint8 -> (T, len(colours), 2), NaN where unseen.

    Every pixel goes to the nearest of the stage and the colours.
    """
    pixels = frames.astype(np.float32)
    tones = [background(stage), *(np.array(COLOURS[name], np.float32) for name in colours)]
    nearest = np.argmin([((pixels - tone) ** 2).sum(-1) for tone in tones], axis=0)
    tracks = []
    for number in range(1, len(tones)):
        owned = (nearest == number).astype(np.float32)
        enough = owned.sum((1, 2)) >= SMALLEST_BODY
        tracks.append(np.where(enough[:, None], centroids(owned), np.nan))
    return np.stack(tracks, axis=1)


# --- against the truth -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PhysicsScore:
    """Physics-IQ's measures of a future against the true one: IoUs 1 is best, `mse` (colours 0..1) 0 is best."""

    spatial_iou: float
    spatiotemporal_iou: float
    weighted_spatial_iou: float
    mse: float


def physics_score(made: np.ndarray, true: np.ndarray, stage: str) -> PhysicsScore:
    """Compare two clips (T, 64, 64, 3) uint8 that play before the same stage.

    spatial: where bodies ever were. spatiotemporal: where they were when, the mean over frames. weighted spatial: how
    long they were where.
    """
    one, two = body_masks(made, stage), body_masks(true, stage)
    counts_one, counts_two = one.sum(0), two.sum(0)
    per_frame = [_iou((a & b).sum(), (a | b).sum()) for a, b in zip(one, two, strict=True)]
    return PhysicsScore(
        spatial_iou=_iou((one.any(0) & two.any(0)).sum(), (one.any(0) | two.any(0)).sum()),
        spatiotemporal_iou=float(np.mean(per_frame)),
        weighted_spatial_iou=_iou(np.minimum(counts_one, counts_two).sum(), np.maximum(counts_one, counts_two).sum()),
        mse=float(((made.astype(np.float64) - true.astype(np.float64)) ** 2).mean() / 255**2),
    )


def body_masks(frames: np.ndarray, stage: str) -> np.ndarray:
    """(T, 64, 64) bool: pixels that differ from the stage."""
    return np.abs(frames.astype(np.float32) - background(stage)).max(-1) > BODY_DIFFERENCE


def _iou(intersection: float, union: float) -> float:
    """Two empty masks agree."""
    return float(intersection) / float(union) if union else 1.0


def trajectory_error(made: np.ndarray, true: np.ndarray) -> float:
    """Mean distance in pixels of two tracks (T, 2) or (T, B, 2); an unseen body counts as half a picture off."""
    distance = np.hypot(*np.moveaxis(made - true, -1, 0))
    return float(np.nan_to_num(distance, nan=SIZE / 2).mean())


def psnr(made: np.ndarray, true: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 pictures in dB; equal ones give infinity."""
    error = ((made.astype(np.float64) - true.astype(np.float64)) ** 2).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
