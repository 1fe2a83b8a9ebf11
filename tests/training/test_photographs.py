"""Clips of photographs: the camera goes where the words say, the first frame is the picture, tests have their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magi_lite.errors import InputError
from training.photographs import Shot, album, draw_shot, film_shot, find, is_held_back
from training.world.draw import SIZE


@pytest.fixture
def picture() -> np.ndarray:
    """A smooth random picture."""
    small = np.random.default_rng().integers(0, 255, (20, 30, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((384, 256), Image.Resampling.BICUBIC))


def shot(picture: np.ndarray, light: str = "day", weather: str = "clear", camera: str = "still") -> Shot:
    return Shot(picture, 192.0, 128.0, 128.0, (light,), (weather,), (camera,))


def window(picture: np.ndarray, x: float, y: float, side: float) -> np.ndarray:
    box = tuple(round(v) for v in (x - side / 2, y - side / 2, x + side / 2, y + side / 2))
    return np.asarray(Image.fromarray(picture).crop(box).resize((SIZE, SIZE), Image.Resampling.BOX)).astype(float)


def test_the_first_frame_is_the_picture_and_a_still_one_stays(picture: np.ndarray) -> None:
    frames = film_shot(shot(picture)).numpy()
    assert frames.shape == (24, SIZE, SIZE, 3)
    assert np.abs(frames[0] - window(picture, 192, 128, 128)).mean() < 2
    assert (frames == frames[0]).all()


@pytest.mark.parametrize(
    ("camera", "x", "side"),
    [("pans left", -23 / 64, 1), ("pans right", 23 / 64, 1), ("zooms in", 0, 1.3 ** (-23 / 24)),
     ("zooms out", 0, 1.3 ** (23 / 24))],
)  # fmt: skip
def test_the_camera_goes_where_the_words_say(picture: np.ndarray, camera: str, x: float, side: float) -> None:
    last = film_shot(shot(picture, camera=camera)).numpy()[-1]
    true = window(picture, 192 + 0.5 * x * 128, 128, 128 * side)
    assert np.abs(last - true).mean() < 3
    assert np.abs(last - true).mean() < 0.5 * np.abs(last - window(picture, 192, 128, 128)).mean()


def test_night_falls_and_snow_comes_over_the_picture(picture: np.ndarray) -> None:
    night = film_shot(shot(picture, light="night")).float().mean((1, 2, 3))
    assert (night[1:13] < night[:12]).all() and night[-1] < 0.65 * night[0]
    snow, rain, fog = (film_shot(shot(picture, weather=w)).numpy().astype(float) for w in ("snow", "rain", "fog"))
    assert np.abs(np.diff(snow[12:], axis=0)).mean() > 0.5 and np.abs(np.diff(rain[12:], axis=0)).mean() > 0.5
    assert fog[-1].std() < 0.6 * fog[0].std()


def test_a_drawn_shot_has_room_for_its_camera() -> None:
    rng = np.random.default_rng()
    for _ in range(60):
        height, width = (int(n) for n in rng.integers(256, 500, 2))
        made = draw_shot(np.zeros((height, width, 3), np.uint8), 5, rng)
        way = 0.5 * 24 * 5 / 64 * made.side
        left = made.x - made.side / 2 - (way if made.cameras[0] == "pans left" else 0)
        right = made.x + made.side / 2 + (way if made.cameras[0] == "pans right" else 0)
        assert left > -1 and right < width + 1
        assert made.side <= min(height, width) + 1e-6


def test_pictures_are_read_once_each_and_a_tenth_is_held_back(tmp_path: Path) -> None:
    folder = tmp_path / "mate-backgrounds" / "usr"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    for number in range(30):
        small = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((400, 300), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.png")
        if number == 0:
            image.resize((800, 600)).save(folder / "again.png")
    Image.fromarray(np.full((300, 300, 3), 90, np.uint8)).save(folder / "plain.png")
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / "tiny.png")
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(rng.integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(tmp_path / "elsewhere" / "x.png")
    found = find(tmp_path)
    names = {*found.names, *found.held_back_names}
    assert len(found.trained) + len(found.held_back) == len(names) == 30
    assert not any("plain" in n or "tiny" in n or "elsewhere" in n for n in names)
    assert all(is_held_back(n) for n in found.held_back_names) and not any(map(is_held_back, found.names))
    kept = album(tmp_path, tmp_path / "album.safetensors")
    again = album(tmp_path / "gone", tmp_path / "album.safetensors")
    assert set(kept.names) == set(again.names) == set(found.names)
    order = dict(zip(again.names, again.trained, strict=True))
    assert all(np.array_equal(order[n], p) for n, p in zip(found.names, found.trained, strict=True))


def test_about_a_tenth_of_all_names_is_held_back() -> None:
    share = np.mean([is_held_back(f"package/usr/share/{number}.jpg") for number in range(3000)])
    assert 0.07 < share < 0.13


def test_a_folder_without_pictures_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="CREDITS"):
        find(tmp_path)
