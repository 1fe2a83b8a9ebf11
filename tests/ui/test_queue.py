"""The queue in the page, and the app's death and return."""

from __future__ import annotations

import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from magi_lite.project import Project
from tests.ui.conftest import (
    PATIENCE,
    App,
    Watched,
    generate,
    set_length,
    set_seed,
    set_size,
    shoot,
    slowly,
    unfold,
    wait_done,
    wait_for,
)
from tests.ui.test_create import RIGHT, drop, latents


def waiting(page: Page) -> list[str]:
    """Titles of the waiting jobs, in order."""
    return page.evaluate("magi.state.jobs.filter(job => job.state === 'waiting').map(job => job.title)")


def choose_model(page: Page, name: str) -> None:
    unfold(page, "advanced")
    page.fill("#mg-model input", name)
    page.press("#mg-model input", "Enter")


def test_a_model_that_is_not_here_is_offered_and_not_queued(page: Page) -> None:
    page.fill("#mg-prompt textarea", "no weights")
    choose_model(page, "4.5B-distill")
    page.click("#mg-generate")
    dialog = page.get_by_role("dialog", name="Cannot start")
    dialog.get_by_text("The model 4.5B-distill is not on this computer").wait_for()
    assert dialog.locator("button[type=submit]").inner_text().startswith("Download (")
    dialog.get_by_role("button", name="Cancel").click()
    assert not [job for job in page.evaluate("magi.state.jobs") if job["title"] == "no weights"]


def test_a_queue_of_three_with_one_that_fails(page: Page, app: App, tmp_path: Path) -> None:
    page.get_by_role("tab", name="Queue").click()
    page.click(".qu [data-action=hold]")
    page.wait_for_function("magi.state.paused")
    picture = tmp_path / "lost.png"
    Image.new("RGB", (40, 40), "navy").save(picture)
    for words in ("first", "no image", "third"):
        page.get_by_role("tab", name="Create").click()
        set_length(page, 1)
        page.fill("#mg-prompt textarea", words)
        if words == "no image":
            drop(page, picture)
            page.wait_for_selector(".so-drop.filled img")
            page.wait_for_function("document.querySelector('#mg-mode input:checked').value === 'Start with image'")
        set_size(page, 32, 32)
        page.click("#mg-generate")
        page.wait_for_function("words => magi.state.jobs.some(job => job.title === words)", arg=words)
        if words == "no image":
            page.click(".so-remove")
            page.wait_for_function("document.querySelector('#mg-mode input:checked').value === 'Text to video'")
    page.get_by_role("tab", name="Queue").click()
    assert waiting(page) == ["first", "no image", "third"]
    card = page.locator(".qu-job", has_text="third")
    card.locator("[data-action=up]").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("magi.state.jobs.filter(job => job.state === 'waiting')[1].title === 'third'")
    page.wait_for_function(  # the list was drawn anew: the focus is where it was
        "(node => node.dataset.action === 'up' && node.closest('.qu-job').innerText.includes('third'))"
        "(document.activeElement)"
    )
    page.locator(".qu-job.waiting").nth(2).drag_to(page.locator(".qu-job.waiting").nth(0))
    page.wait_for_function("magi.state.jobs.filter(job => job.state === 'waiting')[0].title === 'no image'")
    assert waiting(page) == ["no image", "first", "third"]
    page.locator(".qu-job", has_text="third").locator("[data-action=clone]").click()
    page.wait_for_function("magi.state.jobs.filter(job => job.title === 'third').length === 2")
    page.locator(".qu-job.waiting").nth(3).locator("[data-action=delete]").click()
    page.wait_for_function("magi.state.jobs.filter(job => job.title === 'third').length === 1")
    page.locator(".qu-job", has_text="third").locator("[data-action=edit]").click()
    page.wait_for_selector("#mg-save-edit")
    page.wait_for_function("document.querySelector('#mg-prompt textarea').value === 'third'")
    page.fill("#mg-prompt textarea", "third, edited")
    page.click("#mg-save-edit")
    page.wait_for_function("magi.state.jobs.some(job => job.title === 'third, edited')")
    shoot(page, "queue")
    for kept in (app.projects / ".uploads").iterdir():
        kept.unlink()  # what a job needs can be gone when its turn comes
    page.click(".qu [data-action=hold]")
    page.wait_for_function(
        "titles => titles.every(title => magi.state.jobs.some(job =>"
        " job.title === title && ['finished', 'failed'].includes(job.state)))",
        arg=["first", "no image", "third, edited"],
        timeout=PATIENCE,
    )
    ended = {job["title"]: job for job in page.evaluate("magi.state.jobs")}
    assert ended["first"]["state"] == ended["third, edited"]["state"] == "finished"
    assert ended["no image"]["state"] == "failed"
    page.locator(".qu-error", has_text=ended["no image"]["error"]).first.wait_for()


def test_several_pictures_are_a_job_each(page: Page, app: App, tmp_path: Path) -> None:
    page.get_by_role("tab", name="Queue").click()
    page.click(".qu [data-action=hold]")
    page.wait_for_function("magi.state.paused")
    page.get_by_role("tab", name="Create").click()
    pictures = [tmp_path / f"{name}.png" for name in ("wide", "tall", "broken")]
    Image.new("RGB", (80, 40), "navy").save(pictures[0])
    Image.new("RGB", (40, 80), "green").save(pictures[1])
    pictures[2].write_text("no picture")
    set_length(page, 1)
    set_seed(page, -1)
    page.fill("#mg-prompt textarea", "from several")
    page.set_input_files(".so input[type=file]", pictures)
    page.get_by_role("dialog", name="Several pictures").get_by_text("Make 2 videos, one from each").wait_for()
    assert "broken.png" in page.locator(".so-error").inner_text()
    page.click("dialog[open] button[type=submit]")
    page.get_by_text("2 videos are put into the queue.").wait_for()
    mine = "magi.state.jobs.filter(job => job.title === 'from several')"
    page.wait_for_function(f"{mine}.length === 2")
    sizes = [job["summary"].split(", ")[1] for job in page.evaluate(mine)]
    wide, tall = ([int(side) for side in size.split(" × ")] for size in sizes)
    assert wide[0] > wide[1] and wide == tall[::-1]
    seeds = {job["summary"].split(", ")[2] for job in page.evaluate(mine)}
    assert len(seeds) == 2
    page.get_by_role("tab", name="Queue").click()
    for left in (1, 0):
        page.locator(".qu-job", has_text="from several").first.locator("[data-action=delete]").click()
        page.wait_for_function(f"{mine}.length === {left}")
    page.click(".qu [data-action=hold]")
    page.wait_for_function("!magi.state.paused")


def test_killed_in_the_middle_it_resumes_to_the_same_bits(watched: Watched, tmp_path: Path) -> None:
    lost = ("ERR_CONNECTION_REFUSED", "Failed to load resource", "Failed to fetch")  # the page of a dead server
    watched.forgiven = lambda text: any(part in text for part in lost)
    app = App(tmp_path).start()
    try:
        page = watched.open(app.url)
        set_length(page, 6)
        slowly(page)
        set_seed(page, 11)
        page.fill("#mg-prompt textarea", RIGHT)
        generate(page)
        wait_done(page, 2)
        app.kill()
        ended = time.monotonic() + PATIENCE / 1000
        while (cut := Project.open(app.newest())).status == "running":  # its worker ends the second that it is at
            assert time.monotonic() < ended
            time.sleep(0.1)
        assert cut.status == "paused" and 2 <= cut.chunks < 6
        page.get_by_text("The app does not answer").first.wait_for()
        app.start()
        again = watched.open(app.url)
        again.get_by_text("The app ended while this video was being made").first.wait_for()
        assert again.input_value("#mg-prompt textarea") == RIGHT
        again.click(".wa [data-action=resume]")
        wait_for_running_or_done(again)
        wait_for(again, "finished")
        resumed = Project.open(cut.folder)
        assert resumed.chunks == 6
        again.evaluate("magi.attached = null")
        set_seed(again, 11)
        generate(again)
        wait_for(again, "finished")
        whole = Project.open(app.newest())
        assert whole.folder != resumed.folder
        assert latents(whole) == latents(resumed)
    finally:
        app.stop()


def wait_for_running_or_done(page: Page) -> None:
    page.wait_for_function("['running', 'finished'].includes(magi.state.shown.state)", timeout=PATIENCE)
