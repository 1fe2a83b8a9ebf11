"""Cuts and pictures on the timeline's blocks: menu, keys, drop, undo, drafts, and the video that is made of them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Page

from magi_lite.project import Project
from tests.ui.conftest import App, Watched, generate, segments, set_length, set_size, wait_for, wait_for_another
from tests.ui.test_timeline import block, drop_file, three_blocks


def png(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()


def drop(page: Page, number: int, data: bytes, name: str, kind: str = "image/png") -> None:
    """Drop a file on a block."""
    page.evaluate(
        """([number, data, name, type]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0)), files = new DataTransfer();
            files.items.add(new File([bytes], name, { type }));
            const target = document.querySelectorAll(".tl-block")[number];
            for (const event of ["dragover", "drop"])
                target.dispatchEvent(new DragEvent(event, { dataTransfer: files, bubbles: true, cancelable: true }));
        }""",
        [number, base64.b64encode(data).decode(), name, kind],
    )


def marks(page: Page) -> list[dict]:
    keys = ("cut", "image")
    return [{key: s[key] for key in keys if key in s} for s in page.evaluate("magi.timeline.segments")]


def shown(page: Page, number: int) -> None:
    """Until the picture of a block is drawn."""
    page.wait_for_function(
        "n => { const i = document.querySelectorAll('.tl-block')[n].querySelector('.tl-picture');"
        " return i && i.complete && i.naturalWidth > 0; }",
        arg=number,
    )


@pytest.fixture
def blocks(page: Page) -> Page:
    """Three blocks of two seconds on a timeline of 8."""
    set_length(page, 8)
    three_blocks(page)
    return page


def test_a_cut_by_key_and_by_menu_is_seen_said_and_undone(blocks: Page) -> None:
    page = blocks
    block(page, 1).focus()
    page.keyboard.press("x")
    assert marks(page) == [{}, {"cut": True}, {}]
    assert "shot" in block(page, 1).get_attribute("class").split()
    assert "· cut" in block(page, 1).inner_text()
    assert "new shot" in page.locator(".tl-live").inner_text()
    page.keyboard.press("Control+z")
    assert marks(page) == [{}, {}, {}]

    block(page, 2).focus()
    page.keyboard.press("Shift+F10")
    item = page.locator(".tl-menu [data-action=cut-block]")
    assert item.get_attribute("aria-checked") == "false"
    assert item.evaluate("node => node === document.activeElement")
    page.keyboard.press("ArrowDown")
    assert page.locator("[data-action=picture-block]").evaluate("node => node === document.activeElement")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    assert marks(page) == [{}, {}, {"cut": True}]
    assert block(page, 2).evaluate("node => node === document.activeElement")
    page.keyboard.press("Shift+F10")
    page.keyboard.press("Escape")
    assert page.locator(".tl-menu").count() == 0
    assert block(page, 2).evaluate("node => node === document.activeElement")

    box = block(page, 1).bounding_box()
    assert box
    page.mouse.click(box["x"] + 200, box["y"] + 10, button="right")  # a wide block's menu opens where the pointer is
    menu = page.locator(".tl-menu").bounding_box()
    assert menu and abs(menu["x"] - box["x"] - 200) < 2
    page.keyboard.press("Escape")

    block(page, 0).click(button="right")  # the first block begins the video anyway
    assert page.locator(".tl-menu [data-action=cut-block]").is_disabled()


def test_the_tools_are_in_a_blocks_menu_too(blocks: Page) -> None:
    page = blocks
    before = segments(page)
    for tool in ("split", "duplicate", "merge", "delete"):
        block(page, 1).click(button="right")
        page.locator(f".tl-menu [data-action={tool}-block]").click()
        made = segments(page)
        assert page.locator(".tl-menu").count() == 0
        (start, end, words), (_, after, _) = before[1], before[2]
        half = (start + end) // 2
        assert {
            "split": made[1:3] == [(start, half, words), (half, end, words)],
            "duplicate": made == [*before, (before[2][1], before[2][1] + end - start, words)],  # the next room
            "merge": made[1][:2] == (start, after) and len(made) == 2,
            "delete": made == [before[0], before[2]],
        }[tool], made
        page.keyboard.press("Control+z")
        page.wait_for_function("n => magi.timeline.segments.length === n", arg=len(before))
        assert segments(page) == before
    block(page, 2).click(button="right")  # nothing is behind the last one, so it is merged with the one before
    page.locator(".tl-menu [data-action=merge-block]").click()
    assert len(segments(page)) == 2


def test_a_picture_over_a_block_is_the_blocks_alone(blocks: Page) -> None:
    """Neither does the box of the video's start stay lit that the picture was dragged past."""
    page = blocks
    page.evaluate(
        """() => {
            const files = new DataTransfer(), send = (type, where) => document.querySelector(where).dispatchEvent(
                new DragEvent(type, { dataTransfer: files, bubbles: true, cancelable: true }));
            files.items.add(new File(["x"], "red.png", { type: "image/png" }));
            send("dragover", "#mg-prompt");
            window.lit = [document.querySelector(".so-drop").classList.contains("over")];
            send("dragover", ".tl-block");
            window.lit.push(document.querySelector(".so-drop").classList.contains("over"));
        }"""
    )
    assert page.evaluate("lit") == [True, False] and page.locator(".tl-block.over").count() == 1


def test_a_copy_begins_as_its_block_does(blocks: Page) -> None:
    page = blocks
    drop(page, 1, png((200, 30, 30)), "red.png")
    shown(page, 1)
    block(page, 1).click()
    page.click("[data-action=duplicate]")
    assert marks(page) == [{}, marks(page)[1], {}, marks(page)[1]] and "image" in marks(page)[3]
    shown(page, 3)


def test_a_picture_is_dropped_on_a_block_and_taken_off(blocks: Page, watched: Watched, app: App) -> None:
    page = blocks
    drop(page, 1, png((200, 30, 30)), "red.png")
    shown(page, 1)
    held = marks(page)[1]["image"]
    assert held.startswith(str(app.projects)) and marks(page)[::2] == [{}, {}]
    assert "filled" not in page.locator(".so-drop").get_attribute("class")  # the video's own start is untouched
    watched.reload(page)
    page.wait_for_function("magi.timeline.segments.length === 3")  # the draft keeps it
    assert marks(page)[1] == {"image": held}
    shown(page, 1)
    block(page, 1).click(button="right")
    page.click("[data-action=unpicture-block]")
    assert marks(page) == [{}, {}, {}] and page.locator(".tl-picture").count() == 0
    page.keyboard.press("Control+z")
    assert marks(page)[1] == {"image": held}
    drop(page, 2, b"\x89PNG\r\n\x1a\n no picture", "bad.png")
    page.wait_for_selector(".mg-toast")
    assert marks(page)[2] == {}


def test_a_video_of_two_shots_and_what_goes_on_from_it(page: Page, app: App) -> None:
    set_length(page, 6)
    three_blocks(page)
    set_size(page, 64, 64)
    drop(page, 1, png((200, 30, 30)), "red.png")
    shown(page, 1)
    block(page, 2).focus()
    page.keyboard.press("x")
    generate(page)
    wait_for(page, "finished")
    with Project.open(app.newest()) as project:
        shots = project.request.timeline.shots(6)
        assert [shot.start for shot in shots] == [0, 2, 4]
        assert shots[1].image.parent == project.folder / "inputs"
        first = project.folder
    block(page, 1).click(button="right")
    page.click("[data-action=redo-block]")
    dialog = page.locator("dialog[open]")
    assert dialog.locator("input[type=number]").first.input_value() == "2"
    before = page.evaluate("magi.attached")
    dialog.locator("button[type=submit]").click()
    wait_for_another(page, before)
    wait_for(page, "finished")
    with Project.open(app.newest()) as again, Project.open(first) as old:
        assert again.folder != old.folder
        assert again.request.timeline.shots(6)[1].image_sha256 == old.request.timeline.shots(6)[1].image_sha256
        kept, made = again.read_latents(1).numpy(), old.read_latents(1).numpy()
        assert np.array_equal(kept, made)
    page.wait_for_function("magi.timeline.segments[1].image.includes('/inputs/')")  # the form is what it was made with
    assert marks(page)[2] == {"cut": True}
    shown(page, 1)


def test_a_timeline_with_pictures_of_elsewhere_comes_without_them(page: Page, app: App, tmp_path: Path) -> None:
    set_length(page, 4)
    segments = [{"start": 0, "end": 2, "prompt": "a"}, {"start": 2, "end": 4, "prompt": "b", "image": "/far/sea.png"}]
    (tmp_path / "story.json").write_text(json.dumps({"segments": segments}))
    drop_file(page, tmp_path / "story.json")
    page.get_by_text("The app does not have sea.png; drop it on its block").first.wait_for()
    page.get_by_text("The timeline of story.json is on the page now.").wait_for()
    assert [s["prompt"] for s in page.evaluate("magi.timeline.segments")] == ["a", "b"]
    assert marks(page) == [{}, {"cut": True}]


def test_nobody_can_name_a_picture_that_is_not_the_apps_own(page: Page, app: App) -> None:
    """Neither in text nor by the API; the file is not even looked at."""
    secret = app.folder / "secret.png"
    secret.write_bytes(png((1, 2, 3)))
    segments = [{"start": 0, "end": 2, "prompt": "a"}, {"start": 2, "end": 4, "prompt": "b", "image": str(secret)}]
    text = json.dumps({"segments": segments})
    page.click("[data-action=text]")
    page.fill(".tl-shorthand", text)
    page.wait_for_function("document.querySelector('.tl-error').textContent.includes('secret.png')")
    assert not any("image" in mark for mark in marks(page))
    client = Client(app.url, verbose=False)
    for place in (secret, app.projects / ".." / "secret.png", app.folder / "nothing.png"):
        named = text.replace(str(secret), str(place))
        with pytest.raises(AppError, match="is no file of the projects folder"):
            client.predict("c", 4, named, width=32, height=32, api_name="/generate")
