"""Nothing typed is lost, and the form tells of the video on the stage: after a redo, a reload, the app's death."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import Page

from magi_lite.project import Project
from tests.ui.conftest import (
    App,
    Watched,
    generate,
    segments,
    set_length,
    set_seed,
    slowly,
    wait_done,
    wait_for,
    wait_for_another,
)
from tests.ui.test_create import LEFT, RIGHT, drop, finished

__all__ = ["finished"]
LATE = """(() => {
  window.hold = false;
  const send = window.fetch;
  window.fetch = async (...all) => {
    const answer = await send(...all);
    if (window.hold && String(all[1] && all[1].body).includes('"status"')) {
      window.hold = false;
      await new Promise((done) => { window.release = done; });
    }
    return answer;
  };
})();"""
"""While `hold` is set, the next answer about the app's state waits for `release`."""


def redo(page: Page, second: int, *, prompt: str = "", seed: int | None = None) -> str:
    """Make the video on the stage again; the id of the new job."""
    page.click(".wa [data-action=redo]")
    dialog = page.locator("dialog[open]")
    dialog.locator("input[type=number]").first.fill(str(second))
    dialog.locator("textarea").fill(prompt)
    if seed is not None:
        dialog.locator("[data-field=seed]").fill(str(seed))
    old = page.evaluate("magi.attached")
    dialog.locator("button[type=submit]").click()
    return wait_for_another(page, old)


def test_after_a_redo_and_an_extension_the_form_is_what_the_video_was_made_with(
    page: Page, watched: Watched, app: App, finished: Project
) -> None:
    redo(page, 2, prompt=LEFT)
    page.wait_for_function("words => magi.timeline.segments.some(s => s.prompt === words)", arg=LEFT)
    assert segments(page) == [(2, 3, LEFT)] and page.input_value("#mg-prompt textarea") == RIGHT
    wait_for(page, "finished")
    page.click(".wa [data-action=redo]")  # the form is as the video: there is nothing to choose
    assert page.locator("dialog[open] [data-action=follow]").count() == 0
    page.keyboard.press("Escape")
    redo(page, 1, seed=9)
    wait_for(page, "finished")
    newest = Project.open(app.newest())
    assert [(s.start, s.end, s.prompt) for s in newest.request.timeline.segments] == [(2, 3, LEFT)]
    page.click(".wa [data-action=extend]")
    page.locator("dialog[open] input[type=number]").fill("1")
    old = page.evaluate("magi.attached")
    page.locator("dialog[open] button[type=submit]").click()
    wait_for_another(page, old)
    page.wait_for_function("document.querySelector('#mg-seconds input[type=number]').value === '4'")
    wait_for(page, "finished")

    shown = page.evaluate("magi.attached")
    watched.reload(page)
    page.wait_for_function("id => magi.state && magi.state.shown && magi.state.shown.id === id", arg=shown)
    page.wait_for_function("document.querySelector('#mg-seconds input[type=number]').value === '4'")
    assert segments(page) == [(2, 3, LEFT)] and page.input_value("#mg-prompt textarea") == RIGHT


def test_what_was_changed_and_not_used_can_be_brought_back(page: Page, finished: Project) -> None:
    page.fill("#mg-prompt textarea", "a thought not to be lost")
    page.click(".wa [data-action=redo]")
    tick = page.locator("dialog[open] [data-action=follow]")
    assert tick.is_visible() and not tick.is_checked()
    page.keyboard.press("Escape")
    redo(page, 2, seed=6)
    page.wait_for_function("words => document.querySelector('#mg-prompt textarea').value === words", arg=RIGHT)
    page.click("[data-action=bring-back]")
    page.wait_for_function("document.querySelector('#mg-prompt textarea').value === 'a thought not to be lost'")
    wait_for(page, "finished")


def test_a_change_that_came_too_late_stays_on_the_page(page: Page, finished: Project) -> None:
    """An earlier one had reached the video, so that the form learns at its end what it was made with."""
    words = "typed just before the end"
    page.fill("#mg-prompt textarea", words)
    page.wait_for_function("words => (sessionStorage.getItem('magi-draft') || '').includes(words)", arg=words)
    page.evaluate(
        """words => {
            const now = magi.state, shown = {...now.shown, redirected: {second: 1, count: 1}};
            magi.emit("state", {...now, shown: {...shown, state: "running", locked: 1}});
            magi.emit("redirect", {job: shown.id, prompt: words});
            magi.emit("state", {...now, shown});
        }""",
        words,
    )
    page.wait_for_timeout(2500)
    assert page.input_value("#mg-prompt textarea") == words


def test_a_late_answer_never_brings_the_old_version_back(watched: Watched, app: App) -> None:
    page = watched.open(app.url, script=LATE)
    page.wait_for_function("window.magi && magi.state && document.querySelector('.tl-lane')")
    page.evaluate("magi.attached = null; magi.emit('poll')")
    page.fill("#mg-prompt textarea", RIGHT)
    set_length(page, 2)
    old = generate(page)
    wait_for(page, "finished")
    page.evaluate("hold = true")
    page.wait_for_function("Boolean(window.release)")
    page.evaluate("window.seen = []; addEventListener('magi-state', (e) => seen.push(e.detail.shown?.id))")
    new = redo(page, 1, seed=3)
    page.evaluate("release()")
    wait_for(page, "finished")
    seen = page.evaluate("seen")
    assert new in seen and old not in seen[seen.index(new) :]


def test_the_page_says_that_the_app_is_gone_and_connects_again(watched: Watched, tmp_path: Path) -> None:
    lost = (
        "ERR_CONNECTION",
        "Failed to load resource",
        "Failed to fetch",
        "INCOMPLETE",
        "Connection errored out",
        "network error",
    )
    watched.forgiven = lambda text: any(part in text for part in lost)
    app = App(tmp_path).start()
    try:
        page = watched.open(app.url)
        page.fill("#mg-prompt textarea", RIGHT)
        set_length(page, 40)
        set_seed(page, 11)
        slowly(page)
        job = generate(page)
        wait_done(page, 1)
        app.kill()
        page.evaluate("document.querySelector('.wa [data-action=pause]').click()")
        page.locator(".mg-toast.error", has_text="The app does not answer").wait_for()
        assert page.get_by_text("Pausing after this step").count() == 0
        page.locator(".mg-offline").wait_for()
        assert page.locator("#mg-generate").is_disabled()
        assert page.locator(".wa [data-action=stop]").is_disabled()
        page.get_by_text("No connection to the app").wait_for()
        page.fill("#mg-prompt textarea", "typed while it was gone")
        app.start()
        page.wait_for_function("!magi.offline")
        page.locator(".mg-offline").wait_for(state="hidden")
        assert page.locator("#mg-generate").is_enabled()
        page.get_by_text("Interrupted: every finished second is kept").wait_for()
        assert page.input_value("#mg-prompt textarea") == "typed while it was gone"
        watched.reload(page)
        page.wait_for_function("document.querySelector('#mg-prompt textarea').value === 'typed while it was gone'")
        page.wait_for_function("id => magi.state.shown && magi.state.shown.id === id", arg=job)
    finally:
        app.stop()


def test_a_picture_that_is_gone_is_to_be_dropped_again(page: Page, app: App, tmp_path: Path) -> None:
    """Of the start and of a block; in the words of the page, not in those of the command line."""
    picture = tmp_path / "start.png"
    Image.new("RGB", (96, 96), (200, 60, 40)).save(picture)
    drop(page, picture)
    page.wait_for_selector(".so-drop.filled img")
    page.fill("#mg-prompt textarea", "a photograph at night")
    set_length(page, 1)
    shown = unquote(page.locator(".so-drop.filled img").get_attribute("src") or "")
    kept = app.projects / ".uploads" / Path(shown).name
    kept.unlink()
    page.click("#mg-generate")
    sentence = "The picture that the video starts from is gone; drop it into the box again."
    page.locator(".mg-toast.error", has_text=sentence).wait_for()
    client = Client(app.url, verbose=False)
    second = {"start": 1, "end": 2, "prompt": "b", "image": str(kept)}
    blocks = {"segments": [{"start": 0, "end": 1, "prompt": "a"}, second]}
    with pytest.raises(AppError, match="The picture of the block at 1 s is gone; drop it on the block again"):
        client.predict("a", 2, json.dumps(blocks), width=32, height=32, api_name="/generate")
    drop(page, picture)
    page.wait_for_function("document.querySelector('.so-drop.filled img')?.naturalWidth > 0")
    generate(page)
    wait_for(page, "finished")


def test_a_picture_in_the_form_outlives_the_app(watched: Watched, tmp_path: Path) -> None:
    """No job uses it yet; the page shows it again, and a video starts from it."""
    watched.forgiven = lambda text: any(part in text for part in ("ERR_CONNECTION", "Failed to", "INCOMPLETE"))
    picture = tmp_path / "start.png"
    Image.new("RGB", (96, 96), (200, 60, 40)).save(picture)
    app = App(tmp_path).start()
    try:
        page = watched.open(app.url)
        drop(page, picture)
        page.wait_for_selector(".so-drop.filled img")
        page.fill("#mg-prompt textarea", "a photograph at night")
        set_length(page, 1)
        page.wait_for_function("localStorage.getItem('magi-draft')?.includes('at night')")
        app.kill()
        app.start()
        page.wait_for_function("!magi.offline")
        watched.reload(page)
        page.wait_for_function("document.querySelector('.so-drop.filled img')?.naturalWidth > 0")
        generate(page)
        wait_for(page, "finished")
        image = Project.open(app.newest()).request.image
        assert image is not None and Path(image).read_bytes() == picture.read_bytes()
    finally:
        app.stop()


def test_what_became_of_a_damaged_queue_file_is_told_once(watched: Watched, tmp_path: Path) -> None:
    queue = tmp_path / "outputs" / ".queue" / "queue.sqlite"
    queue.parent.mkdir(parents=True)
    queue.write_bytes(b"no database" * 1000)
    app = App(tmp_path).start()
    try:
        page = watched.open(app.url)
        page.locator(".mg-toast.warning", has_text="queue.sqlite.damaged-").wait_for()
        watched.reload(page)
        page.wait_for_function("magi.state && magi.state.notice")
        page.wait_for_timeout(1500)
        assert page.locator(".mg-toast.warning").count() == 0
        page.goto("about:blank")
        closed = watched.open(app.url, script="Storage.prototype.setItem = () => { throw new Error('full'); };")
        closed.locator(".mg-toast.warning").wait_for()
        closed.wait_for_timeout(3000)  # the page has asked for the state again
        assert closed.locator(".mg-toast.warning").count() == 1
        closed.goto("about:blank")
    finally:
        app.stop()
