"""The gallery as a light table over a thousand videos: searched, selected, named, thrown away, exported."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import c2pa
import numpy as np
import pytest
import torch
from playwright.sync_api import Page, expect

from magi_lite.project import Project
from magi_lite.request.build import build
from magi_lite.weights.identity import autoencoder_identity
from magi_lite.weights.opening import open_model
from tests.ui.conftest import PATIENCE, App, Watched
from tests.ui.test_page import axe

__all__ = ["axe"]
MANY = 1000


def fill(root: Path, count: int) -> None:
    """Two real videos, a version of the first, and copies of them (links, with records of their own)."""
    made = []
    identity = autoencoder_identity(open_model("demo").vae)
    for number, (prompt, size) in enumerate((("a red ball rolls", (64, 32)), ("a blue square stands", (32, 64)))):
        request = build(prompt=prompt, preset="demo", seconds=2, width=size[0], height=size[1], seed=number)
        with Project.create(root, request) as project:
            project.made_with(identity)
            for second in range(2):
                frames = np.full((24, size[1], size[0], 3), 60 + 90 * number, np.uint8)
                frames[:, 4:20, 4:20] = (np.arange(24) * 10).astype(np.uint8)[:, None, None, None]
                project.write_chunk(second, torch.zeros(1, 16, 6, size[1] // 8, size[0] // 8), frames)
            project.set_status("finished")
        made.append(project)
    with made[0].branch(1) as version:
        version.write_chunk(1, torch.zeros(1, 16, 6, 4, 8), np.zeros((24, 32, 64, 3), np.uint8))
        version.set_status("finished")
    record = json.loads((made[0].folder / "project.json").read_text())
    del record["checksum"]
    for number in range(count - 3):
        folder = root / f"20260101-{number:06}-copy"
        for part in ("chunks", "states", "inputs"):
            (folder / part).mkdir(parents=True)
        for path in [*(made[0].folder / "chunks").iterdir(), made[0].folder / "video.mp4"]:
            os.link(path, folder / path.relative_to(made[0].folder))
        own = record | {"created": f"2026-01-01T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}+00:00"}
        own["request"] = record["request"] | {"seed": 5000 + number}
        (folder / "project.json").write_text(json.dumps(own))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """An app whose gallery is full."""
    server = App(tmp_path_factory.mktemp("many"))
    fill(server.projects, MANY)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def gallery(watched: Watched, many: App) -> Page:
    page = watched.open(many.url)
    page.get_by_role("tab", name="Gallery").click()
    page.wait_for_selector(".ga-tile")
    return page


def count_is(page: Page, text: str) -> None:
    expect(page.locator(".ga-count")).to_contain_text(text)


def find_blue(page: Page) -> None:
    """Search for the one video with a blue square."""
    page.get_by_label("Search prompts").fill("blue")
    count_is(page, "1 video")


def test_a_thousand_videos_come_in_pages_and_are_found(gallery: Page) -> None:
    page = gallery
    count_is(page, f"{MANY - 1} videos")  # a video and its version are one
    assert page.locator(".ga-tile").count() <= 180
    page.get_by_label("Search prompts").fill("5321")
    count_is(page, "1 video")
    page.get_by_label("Search prompts").fill("blue STANDS")
    count_is(page, "1 video")
    page.get_by_label("Search prompts").fill("nothing of that kind")
    page.get_by_text("No video fits this search and filter.").wait_for()
    page.get_by_label("Search prompts").fill("")
    count_is(page, f"{MANY - 1} videos")
    page.select_option("[aria-label='Sort by']", "oldest")
    page.wait_for_selector(".ga-tile:first-child [data-video='20260101-000000-copy']")
    before = page.locator(".ga-tile").count()
    page.locator(".ga-more").scroll_into_view_if_needed()
    page.wait_for_function("n => document.querySelectorAll('.ga-tile').length > n", arg=before)


def test_a_tile_has_its_videos_shape_and_plays_under_the_pointer(gallery: Page) -> None:
    page = gallery
    find_blue(page)
    box = page.locator(".ga-thumb").bounding_box()
    assert box and abs(box["width"] / box["height"] - 0.5) < 0.02
    page.hover(".ga-item")
    page.wait_for_function("(v => v && v.readyState >= 2 && !v.paused)(document.querySelector('.ga-film'))")
    page.mouse.move(2, 2)
    page.wait_for_selector(".ga-film", state="detached")


def test_names_stars_and_versions(gallery: Page, many: App) -> None:
    page = gallery
    find_blue(page)
    page.hover(".ga-item")
    page.click("[data-action=star]")
    page.wait_for_selector("[data-action=star].on")
    page.click(".ga-item")
    page.get_by_label("Name of this video").fill("My favourite")
    page.keyboard.press("Escape")
    page.wait_for_selector(".ga-title:text('My favourite')")
    page.get_by_label("Search prompts").fill("favourite")
    page.select_option("[aria-label='Show']", "starred")
    count_is(page, "1 video")
    page.get_by_label("Search prompts").fill("")
    page.select_option("[aria-label='Show']", "all")

    page.click("[data-action=expand]")
    count_is(page, "2 videos")
    first = page.locator(".ga-item").last.get_attribute("data-video")
    page.locator(".ga-item").last.click()
    page.click("dialog[open] [data-action=main]")
    page.wait_for_selector("dialog[open]", state="detached")
    page.click("[data-action=back]")
    count_is(page, f"{MANY - 1} videos")
    page.wait_for_selector(f"[data-video='{first}']")  # it stands for both now
    assert json.loads((many.projects / str(first) / "labels.json").read_text())["main"] is True
    page.locator(f".ga-tile:has([data-video='{first}']) .ga-tick").check(force=True)
    page.click("[data-action=throw]")  # of a stack its face alone goes
    page.get_by_text("1 video moved to the bin. 1 other version of it stays here.").wait_for()
    page.click("[data-action=undo-bin]")
    page.wait_for_selector(f"[data-video='{first}']")


def test_a_video_of_the_gallery_is_opened_on_the_stage(gallery: Page) -> None:
    """With its timeline and its versions, though no job of the queue stands for it."""
    page = gallery
    page.get_by_label("Search prompts").fill("5321")
    count_is(page, "1 video")
    name = page.locator(".ga-item").get_attribute("data-video")
    page.click(".ga-item")
    page.click("dialog[open] [data-action=open]")
    page.wait_for_function("name => magi.state.shown && magi.state.shown.project === name", arg=name)
    page.get_by_label("The video so far").wait_for()
    expect(page.locator("#mg-prompt textarea")).to_have_value("a red ball rolls")
    assert page.locator(".wa [data-action=redo]").is_visible() and page.locator("dialog[open]").count() == 0


def test_tiles_stay_while_others_change(gallery: Page, many: App) -> None:
    """With what plays in them and the focus; and a selection that is given up changes nothing else."""
    page = gallery
    page.locator(".ga-item").nth(3).focus()
    line = page.locator(".ga-count").inner_text()
    assert str(many.projects) in line
    page.evaluate("window.kept = document.querySelectorAll('.ga-tile')[3]")
    page.locator("[data-action=star]").nth(1).dispatch_event("click")
    page.wait_for_selector(".ga-tile:nth-child(2) [data-action=star].on")
    assert page.evaluate("document.querySelectorAll('.ga-tile')[3] === kept && kept.contains(document.activeElement)")
    page.locator("[data-action=star]").nth(1).dispatch_event("click")
    page.wait_for_selector(".ga-tile:nth-child(2) [data-action=star]:not(.on)")
    page.locator(".ga-tick").nth(0).check(force=True)
    page.click("[data-action=throw]")
    page.get_by_text("Bin (1)").wait_for()
    page.locator(".ga-tick").nth(0).check(force=True)
    page.get_by_role("button", name="Clear the selection").click()
    assert page.locator(".ga-tile.chosen").count() == 0 and page.locator(".ga-tick:checked").count() == 0
    assert page.get_by_text("Bin (1)").is_visible() and str(many.projects) in page.locator(".ga-count").inner_text()
    page.click("[data-action=undo-bin]")
    page.wait_for_function("line => document.querySelector('.ga-count').innerText === line", arg=line)


def test_several_go_into_the_bin_and_come_back(gallery: Page, many: App) -> None:
    page = gallery
    page.select_option("[aria-label='Sort by']", "oldest")
    page.wait_for_selector(".ga-tile:first-child [data-video='20260101-000000-copy']")
    page.locator(".ga-tick").nth(0).check(force=True)
    page.locator(".ga-tick").nth(4).click(modifiers=["Shift"], force=True)
    page.get_by_text("5 selected").wait_for()
    page.click("[data-action=throw]")
    count_is(page, f"{MANY - 6} videos")
    assert not (many.projects / "20260101-000003-copy").exists()
    page.click("[data-action=undo-bin]")
    count_is(page, f"{MANY - 1} videos")
    assert (many.projects / "20260101-000003-copy" / "video.mp4").exists()

    page.locator(".ga-tick").nth(0).check(force=True)
    page.keyboard.press("Escape")
    page.locator(".ga-chosen").wait_for(state="hidden")
    page.locator(".ga-tick").nth(0).check(force=True)
    page.locator(".ga-tick").nth(1).check(force=True)
    page.locator(".ga-count").click()
    page.keyboard.press("Delete")
    count_is(page, f"{MANY - 3} videos")
    page.click("[data-action=bin]")
    count_is(page, "In the bin: 2 videos")
    page.locator(".ga-tick").nth(0).check(force=True)
    page.click("[data-action=restore]")
    count_is(page, "In the bin: 1 video")
    page.click("[data-action=empty-bin]")
    dialog = page.get_by_role("dialog", name="Delete for good")
    dialog.get_by_text("Delete this video? It cannot be extended or redone afterwards.").wait_for()
    dialog.get_by_role("button", name="Cancel").click()
    page.click("[data-action=empty-bin]")
    page.click("dialog[open] [data-action=sure]")
    page.get_by_text("The bin is empty.").wait_for()
    page.click("[data-action=back]")
    count_is(page, f"{MANY - 2} videos")


def test_the_gallery_can_be_used_with_keys_alone(gallery: Page) -> None:
    """The focus stays where it was, whatever is drawn anew; Ctrl and Shift select, as in other programs."""
    page = gallery
    focused = "() => document.activeElement.dataset.action"
    tiles = page.locator(".ga-tile")
    star = tiles.nth(1).locator("[data-action=star]")
    star.focus()
    for pressed in ("true", "false"):
        page.keyboard.press("Enter")
        expect(star).to_have_attribute("aria-pressed", pressed)
        expect(star).to_be_focused()
    tiles.nth(1).locator(".ga-item").focus()
    page.keyboard.press("Enter")
    page.get_by_label("Name of this video").fill("renamed")
    page.keyboard.press("Enter")
    page.wait_for_selector(".ga-title:text('renamed')", state="attached")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="detached")
    expect(tiles.nth(1).locator(".ga-item")).to_be_focused()

    tiles.nth(0).locator(".ga-item").click(modifiers=["ControlOrMeta"])
    tiles.nth(2).locator(".ga-item").click(modifiers=["Shift"])
    page.get_by_text("3 selected").wait_for()
    assert page.locator("dialog[open]").count() == 0
    page.mouse.move(2, 2)  # under the pointer a tile would play a video that goes away
    page.keyboard.press("Delete")
    page.get_by_text("Bin (3)").wait_for()
    page.wait_for_function("document.activeElement.closest('.ga-tile') !== null")
    page.focus("[data-action=bin]")
    page.keyboard.press("Enter")
    count_is(page, "In the bin: 3 videos")
    page.wait_for_function(f"({focused})() === 'back'")
    tiles.nth(0).locator(".ga-tick").focus()
    page.keyboard.press("Space")
    page.keyboard.press("Delete")
    page.get_by_role("dialog", name="Delete for good").get_by_text("Delete this video?").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="detached")
    expect(tiles.nth(0).locator(".ga-tick")).to_be_focused()
    page.keyboard.press("ControlOrMeta+a")
    page.focus("[data-action=restore]")
    page.keyboard.press("Enter")
    page.get_by_text("The bin is empty.").wait_for()
    page.wait_for_function(f"({focused})() === 'back'")
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-action=bin]")
    page.wait_for_function("document.activeElement.closest('.ga') !== null")


def test_an_export_shows_how_far_it_is_and_can_be_saved(gallery: Page, many: App) -> None:
    page = gallery
    find_blue(page)
    page.locator(".ga-item").dblclick()  # as videos are opened elsewhere: one dialog
    page.locator("dialog[open] [data-action=export]").dblclick()
    dialog = page.get_by_role("dialog", name="Export")
    dialog.first.wait_for()
    assert page.locator("dialog[open]").count() == 2 and dialog.count() == 1
    assert dialog.locator("option[value=av1]").is_disabled()  # which begins at 64 x 64
    assert dialog.locator("option").count() == 11
    page.click("[data-action=export-start]")
    page.wait_for_selector("[data-export=h264][data-state=finished]", timeout=PATIENCE)
    with page.expect_download() as download:
        dialog.get_by_role("link", name="Save").first.click()
    assert Path(download.value.path()).read_bytes()[4:8] == b"ftyp"
    dialog.locator("[data-action=credentials]").check()
    dialog.get_by_text("programs show it as not trusted").wait_for()
    dialog.locator("[data-field=format]").select_option("gif")
    dialog.get_by_label("To second").fill("0.5")
    page.click("[data-action=export-start]")
    page.wait_for_selector("[data-export=gif][data-state=finished]", timeout=PATIENCE)
    dialog.get_by_label("From second").fill("1")  # behind the end
    page.click("[data-action=export-start]")
    page.get_by_text("begins at second 1 and ends at 0.5; let it end later.").wait_for()
    dialog.get_by_label("To second").fill("9")  # which a single picture does not ask for
    dialog.locator("[data-field=format]").select_option("frame")
    dialog.get_by_label("Moment in seconds").fill("2")  # where a video that was played stands: its last frame
    page.click("[data-action=export-start]")
    page.locator("[data-export=frame][data-state=finished]").wait_for(timeout=PATIENCE)
    dialog.locator("[data-field=format]").select_option("h264")
    dialog.get_by_label("From second").fill("0")
    dialog.get_by_label("To second").fill("2")
    silent = {"name": "silent.wav", "mimeType": "audio/wav", "buffer": b"no sound"}
    dialog.get_by_label("Sound from a file").set_input_files(silent)  # type: ignore[arg-type]
    page.click("[data-action=export-start]")
    failed = page.locator("[data-export=h264][data-state=failed]")
    failed.wait_for(timeout=PATIENCE)
    assert "silent.wav is damaged or not a file with sound" in failed.inner_text()
    name, why = (failed.locator(part).bounding_box() for part in ("b", ".qu-error"))
    assert name and why and name["x"] == why["x"] and name["y"] < why["y"]  # one under the other
    made = next(path for path in many.projects.glob("*/exports/*.gif"))
    from PIL import Image

    with c2pa.Reader(made) as signed:
        assert "trainedAlgorithmicMedia" in signed.json()
    with Image.open(made) as picture:
        assert picture.n_frames == 12 and picture.size == (32, 64)


def test_the_light_table_is_accessible(gallery: Page, axe: str) -> None:
    page = gallery
    page.evaluate(axe)
    run = "axe.run(document, {resultTypes: ['violations']}).then(a => a.violations.filter(v => ['serious',"
    run += " 'critical'].includes(v.impact)).map(v => v.id + ': ' + v.nodes[0].html.slice(0, 200)))"
    page.locator(".ga-tick").nth(0).check(force=True)
    assert page.evaluate(run) == []
    page.locator(".ga-item").first.click()
    page.wait_for_selector("dialog[open] .ga-settings")
    assert page.evaluate(run) == []
    page.click("dialog[open] [data-action=export]")
    page.wait_for_selector(".ex[open]")
    assert page.evaluate(run) == []


def test_several_can_be_selected_where_no_pointer_hovers(watched: Watched, many: App) -> None:
    page = watched.open(many.url, size=(390, 844), has_touch=True, is_mobile=True)
    page.get_by_role("tab", name="Gallery").click()
    page.wait_for_selector(".ga-tile")
    tick = page.locator(".ga-tick").first
    assert tick.evaluate("node => getComputedStyle(node).opacity") == "1"
    tick.tap()
    page.get_by_text("1 selected").wait_for()
