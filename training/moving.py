"""Moving pictures made by the demo model: those of the example cards, and the one in the README.

    python -m training.moving [--model FOLDER]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from magi_lite.errors import MagiLiteError
from magi_lite.ui.examples import DEMO_NAMES, Example, load
from training.studio import Studio
from training.world import FRAMES

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "magi_lite" / "ui" / "web" / "examples"
README = ROOT / "docs" / "screenshots" / "demo.webp"
SEED = 1
CARD_EVERY, README_EVERY = 3, 2
"""Every how many frames of 24 a second one is kept."""
SCALE, GAP = 2, 8
"""Of the README's picture: whole-number enlargement, and pixels between two clips."""


def demo_examples() -> list[Example]:
    """The example timelines that are for the demo model."""
    return [example for example in load().values() if example.name.startswith(DEMO_NAMES)]


def prompts_by_second(example: Example) -> list[str]:
    """What every second of an example asks for."""
    return [mix.text for mix in example.timeline.compile(example.seconds)]


def film_example(studio: Studio, example: Example) -> np.ndarray:
    """(24 * seconds, H, W, 3) uint8."""
    return studio.film(prompts_by_second(example), SEED)


def write_moving(path: Path, frames: np.ndarray, every: int, quality: int = 80) -> None:
    """An endless WebP of every `every`-th of frames (T, H, W, 3) uint8."""
    from PIL import Image

    first, *others = [Image.fromarray(frame) for frame in frames[::every]]
    path.parent.mkdir(parents=True, exist_ok=True)
    pause = round(1000 * every / FRAMES)
    first.save(path, save_all=True, append_images=others, duration=pause, loop=0, quality=quality, method=4)


def side_by_side(clips: Sequence[np.ndarray]) -> np.ndarray:
    """Clips (T, H, W, 3) of one length, enlarged pixel by pixel, in a row on white."""
    large = [clip.repeat(SCALE, 1).repeat(SCALE, 2) for clip in clips]
    gap = np.full((*large[0].shape[:2], GAP, 3), 255, np.uint8)
    return np.concatenate([part for clip in large for part in (gap, clip)][1:], axis=2)


def main() -> int:
    """Film all examples and write their pictures; user's mistakes are one sentence."""
    parser = argparse.ArgumentParser(prog="python -m training.moving", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="demo", help="a model folder of this world")
    asked = parser.parse_args()
    from magi_lite.weights.opening import open_model

    try:
        studio = Studio(open_model(asked.model))
        clips = {example.name: film_example(studio, example) for example in demo_examples()}
    except MagiLiteError as error:
        print(error)
        return error.exit_code
    for name, clip in clips.items():
        write_moving(CARDS / f"{name}.webp", clip, CARD_EVERY)
    write_moving(README, side_by_side([clip for _, clip in list(clips.items())[:3]]), README_EVERY)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
