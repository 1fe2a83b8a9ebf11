"""Files that a browser cannot draw are drawn by the app: in the form, on a block, and where several are dropped."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page

from magi_lite.errors import InputError
from magi_lite.timeline import Timeline
from magi_lite.ui.given import Given
from magi_lite.ui.library import Library
from tests.ui.conftest import Watched, set_length
from tests.ui.test_create import drop
from tests.ui.test_shots import drop as drop_on_block
from tests.ui.test_shots import marks, shown
from tests.ui.test_timeline import three_blocks

KINDS = {"tif": "TIFF", "jp2": "JPEG2000", "tga": "TGA", "ppm": "PPM"}
"""Kinds of pictures that Chromium draws none of, by their endings."""
SIDES = (Image.new("RGB", (400, 200), (200, 40, 30)), Image.new("RGB", (400, 200), (30, 40, 200)))


def picture(kind: str) -> bytes:
    """A picture of 800 x 200, red at the left and blue at the right."""
    whole, data = Image.new("RGB", (800, 200)), io.BytesIO()
    for number, side in enumerate(SIDES):
        whole.paste(side, (400 * number, 0))
    whole.save(data, KINDS[kind])
    return data.getvalue()


def clip(path: Path) -> Path:
    """One second in MPEG-4 part 2, which browsers do not play; it ends green."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for number in range(24):
            pixels = np.full((64, 128, 3), (30, 160, 40) if number > 12 else (200, 40, 30), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode(None))
    return path


DRAWN = "(where) => { const i = document.querySelector(where); return i && i.complete && i.naturalWidth; }"


@pytest.mark.parametrize("kind", KINDS)
def test_the_form_shows_a_picture_that_the_browser_cannot_draw(kind: str, page: Page, tmp_path: Path) -> None:
    path = tmp_path / f"start.{kind}"
    path.write_bytes(picture(kind))
    drop(page, path)
    page.wait_for_function(DRAWN, arg=".so-drop.filled img")
    size = page.evaluate("(({ naturalWidth: w, naturalHeight: h }) => [w, h])(document.querySelector('.so-drop img'))")
    assert size == [320, 80], "small, and of its own shape"


def test_the_form_shows_the_end_of_a_clip_that_the_browser_cannot_play(page: Page, tmp_path: Path) -> None:
    drop(page, clip(tmp_path / "end.avi"))
    page.wait_for_function(DRAWN, arg=".so-drop.filled img")
    assert page.locator(".so-drop img").get_attribute("alt") == "The clip to continue"
    data = page.locator(".so-drop img").get_attribute("src").partition(",")[2]
    colour = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).reshape(-1, 3).mean(0)
    assert np.abs(colour - (30, 160, 40)).max() < 12


def test_a_block_shows_one_and_shows_it_again(page: Page, watched: Watched) -> None:
    set_length(page, 8)
    three_blocks(page)
    drop_on_block(page, 1, picture("tif"), "start.tif", "image/tiff")
    shown(page, 1)
    drop_on_block(page, 2, picture("jp2"), "start.jp2", "")  # of a kind that the browser has no name for
    shown(page, 2)
    watched.reload(page)
    page.wait_for_function("magi.timeline.segments.length === 3")
    shown(page, 1)
    shown(page, 2)
    drop_on_block(page, 1, picture("ppm"), "other.ppm", "")
    page.wait_for_function("held => magi.timeline.segments[1].image !== held", arg=marks(page)[1]["image"])
    shown(page, 1)


def test_a_timeline_dropped_on_a_block_is_still_a_timeline(page: Page) -> None:
    set_length(page, 8)
    three_blocks(page)
    drop_on_block(page, 1, b"1\n00:00:00,000 --> 00:00:03,000\na red ball\n", "one.srt", "")
    page.wait_for_function("magi.timeline.segments.length === 1 && magi.timeline.segments[0].prompt === 'a red ball'")


def test_a_clip_without_a_type_over_a_block_is_still_the_videos_start(page: Page, tmp_path: Path) -> None:
    set_length(page, 8)
    three_blocks(page)
    drop_on_block(page, 1, clip(tmp_path / "end.avi").read_bytes(), "end.mxf", "")
    page.wait_for_function(DRAWN, arg=".so-drop.filled img")
    assert all("image" not in mark for mark in marks(page))


def test_several_are_all_shown(page: Page, tmp_path: Path) -> None:
    paths = [tmp_path / f"{kind}.{kind}" for kind in KINDS]
    for path in paths:
        path.write_bytes(picture(path.stem))
    page.set_input_files(".so input[type=file]", paths)
    dialog = page.get_by_role("dialog", name="Several pictures")
    dialog.wait_for()
    page.wait_for_function(
        "n => { const all = [...document.querySelectorAll('.so-several img')];"
        " return all.length === n && all.every(i => i.complete && i.naturalWidth); }",
        arg=len(paths),
    )
    page.keyboard.press("Escape")


def test_only_what_a_page_may_name_is_drawn_and_nothing_is_said_to_be_made(tmp_path: Path) -> None:
    """A user's own picture is no model's."""
    library = Library(tmp_path / "projects")
    given = Given(library)
    given.folder.mkdir(parents=True)
    inside, outside = given.folder / "a.tif", tmp_path / "b.tif"
    for path in (inside, outside):
        path.write_bytes(picture("tif"))
    jpeg = base64.b64decode(given.drawn(str(inside)).partition(",")[2])
    assert Image.open(io.BytesIO(jpeg)).format == "JPEG" and b"trainedAlgorithmicMedia" not in jpeg
    (given.folder / "link.tif").symlink_to(outside)
    for other in (outside, given.folder / "link.tif", given.folder / "gone.tif", given.folder):
        with pytest.raises(InputError, match="There is no file"):
            given.drawn(str(other))


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "a\0b", "\udc80"], ids=["long", "deep", "zero", "half"])
def test_a_path_that_nothing_can_have_is_no_programs_error(name: str, tmp_path: Path) -> None:
    given = Given(Library(tmp_path))
    for ask in (given.drawn, given.look_at, lambda path: given.source(path, "image")):
        with pytest.raises(InputError):
            ask(str(tmp_path) + "/" + name)
    block = {"start": 0, "end": 1, "prompt": "a", "image": f"{tmp_path}/{'a' * 300}"}
    timeline = Timeline.from_json({"segments": [block]})
    assert given.own_pictures(timeline)[0].segments[0].image is None
