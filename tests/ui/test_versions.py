"""The empty stage's examples, the transport, and versions of one video compared in step."""

from __future__ import annotations

import json

from playwright.sync_api import Page

from magi_lite.project import Project
from tests.ui.conftest import (
    PATIENCE,
    App,
    generate,
    segments,
    set_length,
    set_size,
    wait_for,
    wait_for_another,
)
from tests.ui.test_kept import redo

GREEN = "a large green ball jumps in a meadow"
VIDEO = "document.querySelector('.wa-video')"
OTHER = "document.querySelector('.wa-other')"


def test_one_click_makes_a_story_whose_versions_are_compared(page: Page, app: App) -> None:
    card = page.locator(".wa-card").first
    card.wait_for()
    assert card.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 96
    card.click()
    first = wait_for_another(page, None)
    wait_for(page, "finished")
    story = segments(page)
    assert len(story) == 3 and story[-1][1] >= 8
    assert Project.open(app.newest()).chunks == story[-1][1]

    second = redo(page, 7, prompt=GREEN)
    wait_for(page, "finished")
    page.wait_for_function("document.querySelectorAll('.wa-version').length === 2")
    assert page.locator(".wa-version[aria-pressed=true]").inner_text() == "Version 2 · from 7 s"
    branch = page.locator(".tl-branch").bounding_box()
    ruler = page.locator(".tl-canvas").bounding_box()
    assert branch and ruler and abs((branch["x"] - ruler["x"]) / ruler["width"] - 7 / 8) < 0.02
    page.click("[data-action=name-version]")
    page.locator("dialog[open] input[type=text]").fill("Green ending")
    page.locator("dialog[open] button[type=submit]").click()
    page.wait_for_selector(".wa-version:text('Green ending · from 7 s')")
    page.click("[data-action=star-version]")
    page.wait_for_selector(".wa-version:text('★ Green ending')")
    page.click("[data-action=main-version]")
    page.wait_for_selector(".wa-version:text('goes on')")
    labels = json.loads((app.newest() / "labels.json").read_text())
    assert (labels["name"], labels["starred"], labels["main"]) == ("Green ending", True, True)
    page.click("[data-action=compare-wipe]")
    page.wait_for_function(f"{OTHER}.readyState >= 2 && !{VIDEO}.paused", timeout=PATIENCE)
    page.locator(".wa-handle").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_attribute(".wa-handle", "aria-valuenow") == "52"
    page.click("[data-action=frame-forward]")  # a single frame: both stand still, at the same one
    page.wait_for_function(f"{VIDEO}.paused && {OTHER}.paused")
    page.wait_for_function(f"Math.abs({VIDEO}.currentTime - {OTHER}.currentTime) < 0.02")
    page.click("[data-action=compare-sides]")
    assert page.locator(".wa-handle").is_hidden() and page.locator(".wa-layer").is_visible()
    page.click("[data-action=compare-sides]")
    assert page.locator(".wa-layer").is_hidden()

    page.locator(".wa-version").first.click()  # the first version again, and its prompts
    assert wait_for_another(page, second) == first
    page.wait_for_function("words => magi.timeline.segments.every(s => s.prompt !== words)", arg=GREEN)
    assert segments(page) == story

    page.click(".wa [data-action=export]")
    page.click("[data-action=export-start]")  # shown here, too
    page.wait_for_selector("[data-export=h264][data-state=finished]", timeout=PATIENCE)
    page.get_by_role("dialog", name="Export").get_by_role("button", name="Close").click()

    page.get_by_role("tab", name="Queue").click()
    page.locator(f"[data-job='{second}'] [data-action=delete]").click()
    page.wait_for_function("id => magi.state.jobs.every(job => job.id !== id)", arg=second)
    page.get_by_role("tab", name="Create").click()
    name = page.locator(".wa-version").last.get_attribute("data-version")
    page.locator(".wa-version").last.click()  # its job is gone, the video is not
    assert wait_for_another(page, first) == name
    page.wait_for_function("words => magi.timeline.segments.some(s => s.prompt === words)", arg=GREEN)
    page.wait_for_function(f"{VIDEO}.readyState >= 2 && !{VIDEO}.hidden")
    assert page.locator(".wa-version[aria-pressed=true]").get_attribute("data-version") == name
    page.click(".wa [data-action=extend]")
    page.locator("dialog[open] input[type=number]").fill("1")
    page.locator("dialog[open] button[type=submit]").click()
    wait_for_another(page, name)
    wait_for(page, "finished")
    assert Project.open(app.projects / name).chunks == story[-1][1] + 1


def test_keys_step_through_the_video(page: Page) -> None:
    page.locator(".wa-card").first.click()
    wait_for_another(page, None)
    wait_for(page, "finished")
    page.wait_for_function(f"{VIDEO}.duration >= 8")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Home")
    page.keyboard.press("k")
    page.wait_for_function(f"{VIDEO}.paused && {VIDEO}.currentTime < 0.2")
    start = page.evaluate(f"{VIDEO}.currentTime")
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_function(f"t => Math.abs({VIDEO}.currentTime - t - 1) < 0.05", arg=start)
    page.keyboard.press("ArrowDown")  # the edge between the first two blocks
    page.wait_for_function(f"Math.abs({VIDEO}.currentTime - 2) < 0.05")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(f"{VIDEO}.currentTime < 2")
    page.keyboard.press("Space")
    page.wait_for_function(f"!{VIDEO}.paused")
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keys").get_by_text("play or pause").wait_for()
    page.keyboard.press("Escape")
    page.locator(".tl-block").nth(1).click(button="right")  # a redo of this block
    page.click("[data-action=redo-block]")
    dialog = page.get_by_role("dialog", name="Redo from a second")
    assert dialog.locator("input[type=number]").first.input_value() == "2"


def test_the_redo_of_a_block_changes_its_prompt_and_no_other(page: Page, app: App) -> None:
    set_size(page, 32, 32)
    set_length(page, 3)
    page.click("[data-action=text]")
    page.fill(".tl-shorthand", "[0s-1s: a red ball] [1s-2s: a blue ball] [2s-3s: a green ball]")
    page.wait_for_function("magi.timeline.segments.length === 3")
    generate(page)
    wait_for(page, "finished")
    page.locator(".tl-block").nth(1).click(button="right")
    page.click("[data-action=redo-block]")
    words = page.locator("dialog[open] textarea")
    assert words.input_value() == "a blue ball" and words.evaluate("node => node === document.activeElement")
    words.fill("a yellow ball")
    before = page.evaluate("magi.attached")
    page.locator("dialog[open] button[type=submit]").click()
    wait_for_another(page, before)
    wait_for(page, "finished")
    prompts = [segment.prompt for segment in Project.open(app.newest()).request.timeline.segments]
    assert prompts == ["a red ball", "a yellow ball", "a green ball"]
