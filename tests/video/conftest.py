import numpy as np
import pytest


def moving_frames(count, width=64, height=48, seed=0):
    """A bright square on a coloured ground, (count, height, width, 3) uint8; another seed, another ground and path."""
    rng = np.random.default_rng(seed)
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = rng.integers(30, 200, 3)
    x, y = rng.integers(0, width - 24), rng.integers(0, height - 12)
    for number, frame in enumerate(frames):
        left = (x + number) % (width - 12)
        frame[y : y + 12, left : left + 12] = 255 - frame[0, 0]
    return frames


@pytest.fixture
def frames():
    return moving_frames
