"""What hands do that edit all day: drags that scroll, keys wherever the focus is, Generate from any field."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page

from magi_lite.project import Project
from tests.ui.conftest import App, Watched, generate, segments, set_length, set_size, wait_for, wait_for_another
from tests.ui.test_timeline import block, second, three_blocks

PLAYED = "(v => ({time: v.currentTime, paused: v.paused, rate: v.playbackRate}))(document.querySelector('.wa-video'))"


@pytest.fixture
def timeline(page: Page) -> Page:
    """The page with an empty timeline of 8 seconds."""
    set_length(page, 8)
    return page


@pytest.fixture
def finished(timeline: Page) -> Page:
    """Three blocks of a video of six seconds, which is on the stage and does not play."""
    page = timeline
    set_length(page, 6)
    three_blocks(page)
    set_size(page, 32, 32)
    generate(page)
    wait_for(page, "finished")
    page.wait_for_function("document.querySelector('.wa-video').duration === 6")
    page.focus(".tl-splitter")
    page.keyboard.press("k")
    page.wait_for_function("document.querySelector('.wa-video').paused")
    return page


def many_blocks(page: Page, count: int) -> None:
    page.click("[data-action=text]")
    page.fill(".tl-shorthand", " ".join(f"[{2 * i}s-{2 * i + 1}s: block {i}]" for i in range(count)))
    page.wait_for_function("n => document.querySelectorAll('.tl-block').length === n", arg=count)
    page.wait_for_function("n => document.querySelector('.tl').dataset.seconds === n", arg=str(2 * count - 1))
    page.click("[data-action=text]")


def seek(page: Page, to: float) -> None:
    """Press the ruler there, and wait until the video shows it."""
    box = page.locator(".tl-ruler").bounding_box()
    assert box
    page.mouse.click(box["x"] + to * second(page), box["y"] + 12)
    page.wait_for_function(
        "to => (v => !v.seeking && Math.abs(v.currentTime - to) < 0.05)(document.querySelector('.wa-video'))", arg=to
    )


def test_a_click_with_a_trembling_hand_moves_nothing(timeline: Page) -> None:
    """Also where a second is narrower than the tremble."""
    page = timeline
    many_blocks(page, 120)
    page.click("[data-action=fit]")
    page.wait_for_function("(s => s.scrollWidth <= s.clientWidth + 1)(document.querySelector('.tl-scroll'))")
    assert second(page) < 8
    before = segments(page)
    box = block(page, 50).bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + 20)
    page.mouse.up()
    assert segments(page) == before
    assert page.locator(".tl-block.selected").count() == 1


def test_a_block_stays_under_the_pointer_while_the_timeline_scrolls(timeline: Page) -> None:
    """Which it does for as long as the pointer is held at its border, and back again."""
    page = timeline
    many_blocks(page, 20)
    for _ in range(3):
        page.click("[data-action=zoomin]")
    scroller = "document.querySelector('.tl-scroll')"
    page.evaluate(f"{scroller}.scrollLeft = 0")
    view = page.locator(".tl-scroll").bounding_box()
    box = block(page, 0).bounding_box()
    assert view and box
    y, border = box["y"] + 20, view["x"] + view["width"] - 8
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(border, y, steps=6)
    page.wait_for_function(f"{scroller}.scrollLeft > 300")  # held still
    page.mouse.move(border - 200, y, steps=3)
    held = "document.querySelector('.tl-block.dragging').getBoundingClientRect()"
    near = f"([x, second]) => (r => r.left - second <= x && x <= r.right + second)({held})"  # it goes by whole seconds
    page.wait_for_function(near, arg=[border - 200, second(page)])
    page.keyboard.press("Delete")  # an edit in the midst of a drag waits for its end
    page.keyboard.press("ControlOrMeta+z")
    page.mouse.up()
    moved = [words for *_, words in segments(page)]
    assert len(moved) == 20 and moved[0] == "block 1"
    page.keyboard.press("ControlOrMeta+z")
    assert [words for *_, words in segments(page)][:2] == ["block 0", "block 1"]


def test_keys_move_the_video_while_its_slider_has_the_focus(finished: Page) -> None:
    page = finished
    seek(page, 1)
    page.focus(".wa-slider")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("Math.floor(document.querySelector('.wa-video').currentTime * 24 + 0.001) === 25")
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_function("Math.floor(document.querySelector('.wa-video').currentTime * 24 + 0.001) === 49")
    page.keyboard.press("Home")
    page.wait_for_function("document.querySelector('.wa-video').currentTime === 0")
    page.keyboard.press("Space")
    page.wait_for_function("!document.querySelector('.wa-video').paused")
    page.keyboard.press("k")
    page.wait_for_function("document.querySelector('.wa-video').paused")


def test_j_and_l_are_faster_until_they_stop(finished: Page) -> None:
    page = finished
    for expected in (1, 2, 4, 4):
        page.keyboard.press("l")
        assert page.evaluate(PLAYED)["rate"] == expected
    page.keyboard.press("k")
    page.keyboard.press("l")
    assert page.evaluate(PLAYED)["rate"] == 1 and page.inner_text("[data-action=speed]") == "1×"
    page.keyboard.press("k")
    page.click("[data-action=speed]")  # what the button chooses stays
    page.keyboard.press("Space")  # the button's own key
    assert page.evaluate(PLAYED)["rate"] == 4
    page.focus(".tl-splitter")
    page.keyboard.press("Space")
    page.keyboard.press("k")
    assert page.evaluate(PLAYED)["rate"] == 4
    for _ in range(3):
        page.click("[data-action=speed]")
    assert page.evaluate(PLAYED)["rate"] == 1


def test_the_range_of_the_loop_stands_on_the_ruler(finished: Page) -> None:
    page = finished
    band = page.locator(".tl-range")
    assert band.is_hidden()
    seek(page, 1)
    page.keyboard.press("i")
    seek(page, 3)
    page.keyboard.press("o")
    shows = """(r => Math.abs(r.offsetLeft / r.parentElement.offsetWidth * 6 - 1) < 0.1 &&
        Math.abs(r.offsetWidth / r.parentElement.offsetWidth * 6 - 2) < 0.1)(document.querySelector('.tl-range'))"""
    page.wait_for_function(shows)
    page.click("[data-action=zoomin]")
    page.wait_for_function(shows)
    page.click(".wa [data-action=export]")  # which begins with that part
    dialog = page.get_by_role("dialog", name="Export")
    assert [round(float(dialog.get_by_label(f"{end} second").input_value())) for end in ("From", "To")] == [1, 3]
    dialog.locator("[data-field=format]").select_option("frame")  # and a frame is the one that is shown
    assert round(float(dialog.get_by_label("Moment in seconds").input_value())) == 3
    dialog.get_by_role("button", name="Close").click()
    page.focus(".tl-splitter")
    page.keyboard.press("Alt+x")
    band.wait_for(state="hidden")
    assert page.get_attribute("[data-action=loop]", "aria-pressed") == "true"


@pytest.mark.parametrize("keys, paused", [(["k"], True), (["Space"], True), (["k", "Space"], False)])
def test_play_and_pause_count_while_the_finished_file_takes_the_place_of_the_growing_one(
    timeline: Page, keys: list[str], paused: bool
) -> None:
    page, held, pressed = timeline, [], []
    file = re.compile(r"[?&]v=\d+$")
    page.route(file, lambda request: request.continue_() if pressed else held.append(request))
    set_length(page, 2)
    set_size(page, 32, 32)
    generate(page)
    page.focus(".tl-splitter")
    wait_for(page, "finished")
    while not held:
        page.wait_for_timeout(50)
    for key in keys:
        page.keyboard.press(key)
        pressed.append(key)
    for request in held:
        request.continue_()
    page.wait_for_function("(v => v.readyState > 1 && v.duration === 2)(document.querySelector('.wa-video'))")
    assert page.evaluate(PLAYED)["paused"] is paused


def test_nothing_of_a_video_stays_on_an_empty_stage(finished: Page) -> None:
    page = finished
    button = page.locator("[data-action=play]")
    still = button.inner_html()
    button.click()
    page.wait_for_function("still => document.querySelector('[data-action=play]').innerHTML !== still", arg=still)
    assert page.locator(".tl-playhead").is_visible()
    page.click("[data-action=clear]")
    page.locator(".tl-playhead").wait_for(state="hidden")
    page.wait_for_function("still => document.querySelector('[data-action=play]').innerHTML === still", arg=still)


def test_a_split_needs_no_selection(finished: Page) -> None:
    page = finished
    box = page.locator(".tl-lane").bounding_box()
    assert box
    page.click("[data-action=fit]")
    page.evaluate("document.querySelector('.tl-lane').dispatchEvent(new PointerEvent('pointerdown', {bubbles: true}))")
    assert page.locator(".tl-block.selected").count() == 0
    seek(page, 2)
    split = page.locator("[data-action=split]")
    page.wait_for_function("document.querySelector('[data-action=split]').disabled")  # between two blocks
    seek(page, 3.2)
    page.wait_for_function("!document.querySelector('[data-action=split]').disabled")
    page.focus(".tl-splitter")
    page.keyboard.press("b")
    assert segments(page) == [(0, 2, "one"), (2, 3, "two"), (3, 4, "two"), (4, 6, "three")]
    page.keyboard.press("ControlOrMeta+z")
    block(page, 0).click()
    page.keyboard.press("s")  # the selected one, wherever the playhead is
    assert segments(page)[:2] == [(0, 1, "one"), (1, 2, "one")]
    assert split.is_disabled()


def test_keys_of_another_script_are_where_they_are(timeline: Page) -> None:
    page = timeline
    three_blocks(page)
    press = """([key, code, ctrlKey]) => document.activeElement.dispatchEvent(
        new KeyboardEvent('keydown', {key, code, ctrlKey, bubbles: true, cancelable: true}))"""
    page.evaluate(press, ["ы", "KeyS", False])
    assert len(segments(page)) == 4
    page.evaluate(press, ["я", "KeyZ", True])
    assert len(segments(page)) == 3
    page.evaluate(press, ["z", "KeyY", True])  # a Latin letter is what it says, wherever it stands
    assert segments(page)[2] == (4, 6, "")


def test_generate_makes_what_was_typed_last(timeline: Page, app: App) -> None:
    """In a block or in the text, by key and by mouse, however soon."""
    page = timeline
    set_length(page, 1)
    set_size(page, 32, 32)

    def made() -> list[tuple[int, int, str]]:
        wait_for(page, "finished")
        request = Project.open(app.newest()).request
        return [(s.start, s.end, s.prompt) for s in request.timeline.segments]

    page.click("[data-action=add]")
    page.wait_for_selector(".tl-editor")
    page.keyboard.type("a red ball")
    before = page.evaluate("magi.attached")
    page.keyboard.press("ControlOrMeta+Enter")
    wait_for_another(page, before)
    assert made() == [(0, 1, "a red ball")]

    page.click("[data-action=text]")
    page.wait_for_function("document.querySelector('.tl-shorthand').value.includes('a red ball')")
    before = page.evaluate("magi.attached")
    page.fill(".tl-shorthand", "[0s-2s: a blue square]")
    page.keyboard.press("ControlOrMeta+Enter")
    wait_for_another(page, before)
    assert made() == [(0, 2, "a blue square")]  # with the length that it needs

    before = page.evaluate("magi.attached")
    page.fill(".tl-shorthand", "[0s-2s: a green ball]")
    page.click("#mg-generate")
    wait_for_another(page, before)
    assert made() == [(0, 2, "a green ball")]

    before = page.evaluate("magi.state.jobs.length")
    page.fill(".tl-shorthand", "[0s-2s: a green")
    page.click("#mg-generate")
    page.locator(".mg-toast.error").get_by_text("Correct the timeline's text first").wait_for()
    page.focus(".tl-shorthand")
    page.keyboard.press("Escape")
    assert page.evaluate("magi.state.jobs.length") == before


def test_the_sheet_of_keys_can_be_read_on_a_phone_and_at_a_glance(watched: Watched, app: App) -> None:
    for size, columns in (((390, 844), 1), ((1440, 900), 3)):
        page = watched.open(app.url, size=size)
        page.focus(".tl-splitter")
        page.keyboard.press("?")
        page.wait_for_selector(".mg-keys[open]")
        lefts = page.evaluate("[...document.querySelectorAll('.mg-keys h4')].map(h => h.getBoundingClientRect().left)")
        assert len(set(lefts)) == columns
        widths = page.evaluate("[...document.querySelectorAll('.mg-keys dd')].map(d => d.clientWidth)")
        assert min(widths) > 130, widths
