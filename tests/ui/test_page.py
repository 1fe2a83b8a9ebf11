"""The page as a whole: looks, accessibility, and the API."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import Page

from magi_lite.project import Project
from magi_lite.request.request import SpecialTokens
from tests.ui.conftest import ROOT, App, Watched, generate, set_length, set_size, shoot, unfold, wait_for

TABS = ("Create", "Queue", "Gallery", "System")


@pytest.fixture(scope="session")
def axe() -> str:
    """The accessibility checker's script, installed by npm beside the repository's files."""
    script = ROOT / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        npm = shutil.which("npm")
        assert npm, "npm was not found on PATH; install Node.js to check accessibility."
        subprocess.run([npm, "install", "--no-save", "--silent", "axe-core@4"], cwd=ROOT, check=True, timeout=180)
    return script.read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_accessibility_finding(watched: Watched, app: App, axe: str, scheme: str) -> None:
    page = watched.open(app.url, color_scheme=scheme)
    page.evaluate("magi.attached = null")
    page.click("[data-action=add]")
    page.keyboard.type("a block")
    page.keyboard.press("Enter")
    page.click("#mg-size-head button")
    page.click("#mg-advanced-head button")
    page.evaluate(axe)
    found = []
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(700)
        if tab == "System":
            page.wait_for_selector(".sy-model")
        answer = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        found += [
            f"{scheme}, {tab}: {v['id']} ({v['impact']}): {node['html'][:160]} {node.get('failureSummary', '')[:200]}"
            for v in answer["violations"]
            if v["impact"] in ("serious", "critical")
            for node in v["nodes"]
        ]
    assert not found, "\n".join(found)
    shoot(page, f"system-{scheme}")
    page.get_by_role("tab", name="Create").click()
    page.click("#mg-advanced-head button")
    page.click("#mg-size-head button")
    shoot(page, f"create-{scheme}")


def test_a_narrow_screen_needs_no_sideways_scrolling(watched: Watched, app: App) -> None:
    page = watched.open(app.url, size=(390, 850))
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(400)
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 1, tab
    page.get_by_role("tab", name="System").click()
    legend = page.locator(".sy-legend").bounding_box()
    assert legend and legend["x"] >= 0 and legend["x"] + legend["width"] <= 390  # all of it can be read
    page.get_by_role("tab", name="Create").click()
    shoot(page, "narrow")
    for name in ("size", "advanced"):
        unfold(page, name)
    page.wait_for_selector("#mg-attention")
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 1


def test_the_stage_its_dialogs_and_menus_have_no_finding(page: Page, axe: str) -> None:
    set_size(page, 32, 32)
    set_length(page, 1)
    page.fill("#mg-prompt textarea", "a large red ball moves right in a meadow")
    page.click("[data-action=add]")
    page.keyboard.press("Escape")
    generate(page)
    wait_for(page, "finished")
    page.evaluate(axe)
    opened = {
        "stage": lambda: None,
        "menu": lambda: page.locator(".tl-block").click(button="right"),
        "text": lambda: page.click("[data-action=text]"),
        **{name: lambda name=name: page.click(f".wa [data-action={name}]") for name in ("extend", "redo", "export")},
        "keys": lambda: page.click("[data-action=help]"),
    }
    found = []
    for name, show in opened.items():
        show()
        page.wait_for_timeout(400)
        answer = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        found += [f"{name}: {v['id']} {v['nodes'][0]['html'][:160]}" for v in answer["violations"]]
        page.keyboard.press("Escape")
    assert not found, "\n".join(found)
    page.click(".wa [data-action=redo]")
    colours = "[getComputedStyle(node).color, getComputedStyle(node, '::placeholder').color]"
    plain, placeholder = page.locator("dialog[open] textarea").evaluate(f"node => {colours}")
    assert plain != placeholder


@pytest.mark.parametrize("width", [390, 768])
def test_a_stacked_page_is_full_and_shows_every_example(watched: Watched, app: App, width: int) -> None:
    page = watched.open(app.url, size=(width, 850))
    page.evaluate("magi.attached = null; magi.emit('poll')")
    page.locator(".wa-card").first.wait_for()
    whole = page.locator("#mg-create").bounding_box()
    assert whole
    for part in ("#mg-stage-card", "#mg-panel", "#mg-timeline-card"):
        box = page.locator(part).bounding_box()
        assert box and box["width"] > 0.98 * whole["width"], part
    stage = page.locator(".wa-stage").bounding_box()
    assert stage and stage["width"] > 0.85 * whole["width"]
    for card in page.locator(".wa-card").all():
        box = card.bounding_box()
        assert box and stage["y"] <= box["y"] and box["y"] + box["height"] <= stage["y"] + stage["height"]


def test_the_first_video_is_asked_for_once(watched: Watched, tmp_path: Path) -> None:
    own = App(tmp_path).start()
    try:
        page = watched.open(own.url)
        page.locator(".wa-empty", has_text="Make your first video").wait_for()
        page.fill("#mg-prompt textarea", "a red ball in a meadow")
        set_length(page, 1)
        generate(page)
        wait_for(page, "finished")
        page.wait_for_function("magi.state.jobs.every((job) => job.state !== 'running')")
        page.locator(".tb-chip", has_text="Ready").wait_for()
        page.press(".wa [data-action=clear]", "Enter")
        page.locator(".wa-empty", has_text="Make another video").wait_for()
        assert page.locator(".wa-card").first.evaluate("node => node === document.activeElement")
        page.close()
    finally:
        own.stop()


def test_the_stage_of_a_video_that_has_begun_offers_no_other(page: Page, app: App) -> None:
    page.locator(".wa-card").first.wait_for()
    client = Client(app.url, verbose=False)
    client.predict(True, api_name="/hold")
    try:
        page.fill("#mg-prompt textarea", "a video that waits")
        job = generate(page)
        page.locator(".wa-card").first.wait_for(state="hidden")
        page.get_by_text("Waiting for its turn").wait_for()
        page.locator(".wa-status", has_text="the queue is on hold").wait_for()
        client.predict(job, api_name="/remove")
    finally:
        client.predict(False, api_name="/hold")


def box_of(page: Page, where: str) -> dict[str, float]:
    box = page.locator(where).first.bounding_box()
    assert box, where
    return {"left": box["x"], "top": box["y"], "right": box["x"] + box["width"], "bottom": box["y"] + box["height"]}


def test_a_low_timeline_shows_its_blocks_whole(watched: Watched, app: App) -> None:
    """Words do not lie over a block's times, and the text view takes nothing away from the blocks."""
    page = watched.open(app.url, size=(1280, 800))
    page.evaluate("magi.attached = null; magi.emit('poll')")
    page.click("[data-action=add]")
    page.keyboard.type("a small green square that moves up on a yellow background " * 6)
    page.keyboard.press("Enter")
    page.click("[data-action=text]")
    page.wait_for_function("document.querySelector('.tl-shorthand').value.includes('green')")
    words, times, block = (box_of(page, where) for where in (".tl-label", ".tl-time", ".tl-block"))
    assert words["bottom"] <= times["top"] + 1
    room, text, example = (box_of(page, where) for where in (".tl-scroll", ".tl-shorthand", "#mg-example"))
    assert block["bottom"] <= room["bottom"] <= text["top"] and text["bottom"] <= example["top"]


def test_a_refusal_is_shown_as_all_messages_are(watched: Watched, app: App) -> None:
    """And not as Gradio would, under the word "Error" and behind dialogs; it goes by a click or a key."""
    page = watched.open(app.url)
    page.fill("#mg-prompt textarea", "")
    for leave in ("click", "press"):
        page.click("#mg-generate")
        message = page.locator(".mg-toast.error", has_text="Write what you want to see")
        message.wait_for()
        assert page.locator(".toast-title >> visible=true").count() == 0
        dismiss = message.get_by_role("button", name="Dismiss")
        dismiss.click() if leave == "click" else dismiss.press("Enter")
        message.wait_for(state="detached")


def test_marks_and_edges_have_the_colours_that_they_were_given(watched: Watched, app: App) -> None:
    """Gradio rewrites style sheets, and may lose some of them."""
    page = watched.open(app.url, size=(390, 850))
    page.evaluate("magi.toast('news')")
    toast, generate_button = box_of(page, ".mg-toast"), box_of(page, "#mg-generate")
    assert toast["bottom"] <= generate_button["top"]  # and neither lies over the other
    edge = "getComputedStyle(document.querySelector('{}')).borderTopColor"
    assert page.evaluate(edge.format(".mg-toast")) == page.evaluate(edge.format(".tl-scroll"))
    page.get_by_role("tab", name="Gallery").click()
    page.locator(".ga .mg-check").first.check()
    mark, ground, card = page.evaluate(
        "(node => [getComputedStyle(node, '::after').borderBottomColor, getComputedStyle(node).backgroundColor,"
        " getComputedStyle(document.querySelector('.mg-card')).backgroundColor])(document.querySelector('.mg-check'))"
    )
    assert mark == card != ground


def test_light_and_dark_are_kept(watched: Watched, app: App) -> None:
    page = watched.open(app.url, color_scheme="light")
    assert not page.evaluate("document.body.classList.contains('dark')")
    page.click(".tb-theme")
    watched.reload(page)
    page.wait_for_function("document.body.classList.contains('dark')")


def test_the_plan_follows_the_settings_before_anything_is_made(page: Page) -> None:
    plan = page.locator("#mg-plan")
    plan.get_by_text("Needs").wait_for()
    before = plan.inner_text()
    set_size(page, 1024, 1024)
    page.wait_for_function("before => document.querySelector('#mg-plan').innerText !== before", arg=before)
    page.get_by_role("tab", name="System").click()
    page.wait_for_selector(".sy-picture svg rect")


def test_every_action_has_a_name_and_an_explanation(app: App, tmp_path: Path) -> None:
    client = Client(app.url, verbose=False, download_files=str(tmp_path))
    info = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    from magi_lite.ui.page import API

    assert {f"/{name}" for name in API} <= set(info)
    bare = [name for name, endpoint in info.items() if not endpoint.get("description")]
    assert not bare, f"without an explanation: {bare}"
    words = "a large red ball falls in a meadow"
    started = client.predict(words, 1, width=32, height=32, seed=3, api_name="/generate")
    assert started["seed"] == 3
    for _ in range(600):
        shown = client.predict(started["job"], api_name="/status")["shown"]
        if shown["state"] in ("finished", "failed"):
            break
        time.sleep(0.2)
    assert shown["state"] == "finished", shown
    with pytest.raises(Exception, match="There is no job"):
        client.predict("nobody", api_name="/stop")


def test_a_program_uploads_its_own_files(app: App, tmp_path: Path) -> None:
    picture, notes = tmp_path / "from me.png", tmp_path / "notes.png"
    Image.fromarray(np.random.default_rng().integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(picture)
    notes.write_text("this is no picture")
    client = Client(app.url, verbose=False)
    started = client.predict(
        "a red ball", 1, image=handle_file(str(picture)), width=64, height=48, quality="draft", styles=["anime"],
        quality_token=False, api_name="/generate",
    )  # fmt: skip
    while (shown := client.predict(started["job"], api_name="/status")["shown"])["state"] in ("waiting", "running"):
        time.sleep(0.2)
    assert shown["state"] == "finished", shown
    project = Project.open(app.projects / shown["project"])
    assert project.request.image is not None and project.request.image.read_bytes() == picture.read_bytes()
    assert project.request.tokens == SpecialTokens(quality=False, duration=True, styles=("anime",))
    clip = handle_file(str(project.video))
    with pytest.raises(Exception, match="is no image; give it as video"):
        client.predict("x", 1, image=clip, api_name="/generate")
    with pytest.raises(Exception, match=r"notes.png"):
        client.predict("x", 1, image=handle_file(str(notes)), api_name="/generate")
    with pytest.raises(Exception, match="is no file of the projects folder"):
        client.predict("x", 1, image="/etc/hostname", api_name="/generate")


@pytest.mark.parametrize("path", ["/etc/passwd", "app.py", "../app.py", ".queue/queue.sqlite"])
def test_only_outputs_are_served(page: Page, app: App, path: str) -> None:
    target = path if path.startswith("/") else str((app.projects / path) if path.startswith(".queue") else ROOT / path)
    answer = page.request.get(f"{app.url}gradio_api/file={target}")
    assert answer.status in (403, 404)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_the_browser_draws_itself_is_light_or_dark_as_the_page(watched: Watched, app: App, scheme: str) -> None:
    """Scroll bars, file buttons, lists of choices."""
    page = watched.open(app.url, color_scheme=scheme)
    own = "getComputedStyle(document.querySelector('{}')).colorScheme"
    assert [page.evaluate(own.format(part)) for part in ("html", "#mg-settings")] == [scheme, scheme]
    page.click(".tb-theme")
    other = "dark" if scheme == "light" else "light"
    assert [page.evaluate(own.format(part)) for part in ("html", "#mg-settings")] == [other, other]


def test_the_focus_is_seen_on_ticks_and_on_what_is_dragged(page: Page) -> None:
    outline = "(style => style.outlineStyle + style.outlineWidth)(getComputedStyle(document.activeElement))"
    page.locator("#mg-seconds input").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "checkbox" and page.evaluate(outline) == "solid3px"
    page.locator("[data-action=add]").focus()
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.className") == "tl-splitter" and page.evaluate(outline) == "solid3px"
