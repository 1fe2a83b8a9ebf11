"""The timeline editor, driven as a person would: mouse, keyboard, touch, text. Values are read from the component."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from magi_lite.project import Project
from magi_lite.timeline import Timeline
from magi_lite.timeline.text import parse
from tests.ui.conftest import App, Watched, generate, segments, set_length, set_size, wait_for


@pytest.fixture
def timeline(page: Page) -> Page:
    """The page with an empty timeline of 8 seconds."""
    set_length(page, 8)
    return page


def second(page: Page) -> float:
    """Pixels of one second."""
    style = "parseFloat(getComputedStyle(document.querySelector('.tl-canvas')).getPropertyValue('--second'))"
    return page.evaluate(style)


def block(page: Page, number: int) -> Locator:
    return page.locator(".tl-lane .tl-block").nth(number)


def drag(page: Page, what: Locator, seconds: float, *, steps: int = 8) -> None:
    """Press in the middle of an element, move sideways, release."""
    what.scroll_into_view_if_needed()
    box = what.bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + seconds * second(page), y, steps=steps)
    page.mouse.up()


def write(page: Page, words: str) -> None:
    """Type into the field that is open over a block."""
    page.wait_for_selector(".tl-editor")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(words)
    page.keyboard.press("Enter")


def three_blocks(page: Page) -> None:
    for words in ("one", "two", "three"):
        page.click("[data-action=add]")
        write(page, words)


def test_three_blocks_with_the_mouse(timeline: Page) -> None:
    page = timeline
    page.locator(".tl-lane").scroll_into_view_if_needed()
    lane = page.locator(".tl-lane").bounding_box()
    assert lane
    page.mouse.dblclick(lane["x"] + 5, lane["y"] + 20)  # a new block where one double-clicks
    write(page, "a ball rolls")
    assert segments(page) == [(0, 2, "a ball rolls")]
    drag(page, block(page, 0).locator(".tl-edge-end"), 2)
    assert segments(page) == [(0, 4, "a ball rolls")]
    drag(page, block(page, 0).locator(".tl-edge-end"), -2)
    assert segments(page) == [(0, 2, "a ball rolls")]
    page.click("[data-action=add]")
    write(page, "it jumps")
    page.click("[data-action=add]")
    write(page, "night falls")
    assert segments(page) == [(0, 2, "a ball rolls"), (2, 4, "it jumps"), (4, 6, "night falls")]
    drag(page, block(page, 2), 2)  # into the free seconds, snapped
    assert segments(page)[2] == (6, 8, "night falls")
    drag(page, block(page, 1).locator(".tl-edge-end"), 1.3)  # 1.3 s snap to 1
    assert segments(page)[1] == (2, 5, "it jumps")
    drag(page, block(page, 2).locator(".tl-edge-start"), -1)
    assert segments(page)[2] == (5, 8, "night falls")
    drag(page, block(page, 1).locator(".tl-edge-end"), 2)  # a neighbour in the way gives room
    assert segments(page)[1:] == [(2, 7, "it jumps"), (7, 8, "night falls")]
    drag(page, block(page, 0), 4)  # past the middle of the next one: they change places
    assert [words for _, _, words in segments(page)] == ["it jumps", "a ball rolls", "night falls"]


def test_three_blocks_with_the_keyboard(timeline: Page) -> None:
    page = timeline
    page.focus("[data-action=add]")
    for words in ("one", "two", "three"):
        page.keyboard.press("Enter") if words == "one" else page.keyboard.press("n")
        write(page, words)
    assert segments(page) == [(0, 2, "one"), (2, 4, "two"), (4, 6, "three")]
    page.keyboard.press("Shift+ArrowRight")
    assert segments(page)[2] == (4, 7, "three")
    page.keyboard.press("Alt+ArrowRight")
    assert segments(page)[2] == (5, 8, "three")
    page.keyboard.press("Alt+Shift+ArrowLeft")
    assert segments(page)[2] == (4, 8, "three")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.innerText").split("\n") == ["two", "2–4 s"]
    page.keyboard.press("s")
    assert segments(page)[1:3] == [(2, 3, "two"), (3, 4, "two")]
    page.keyboard.press("m")
    assert segments(page)[1] == (2, 4, "two")
    page.keyboard.press("Home")
    page.keyboard.press("F2")
    write(page, "first")
    assert segments(page)[0] == (0, 2, "first")
    page.keyboard.press("Delete")
    assert [words for *_, words in segments(page)] == ["two", "three"]
    page.keyboard.press("ControlOrMeta+z")
    assert segments(page)[0] == (0, 2, "first")
    page.keyboard.press("ControlOrMeta+y")
    assert [words for *_, words in segments(page)] == ["two", "three"]


def test_duplicate_merge_undo_to_the_beginning_and_redo(timeline: Page) -> None:
    page = timeline
    three_blocks(page)
    block(page, 0).click()
    page.click("[data-action=duplicate]")
    assert segments(page) == [(0, 2, "one"), (2, 4, "two"), (4, 6, "three"), (6, 8, "one")]
    block(page, 1).click()
    page.click("[data-action=merge]")
    assert segments(page)[1] == (2, 6, "two, three")
    end = segments(page)
    steps = 0
    while page.locator("[data-action=undo]").is_enabled():
        page.click("[data-action=undo]")
        steps += 1
    assert segments(page) == []
    for _ in range(steps):
        page.click("[data-action=redo]")
    assert segments(page) == end


def test_text_view_stays_in_step_both_ways(timeline: Page) -> None:
    page = timeline
    three_blocks(page)
    page.click("[data-action=text]")
    page.wait_for_function("document.querySelector('.tl-shorthand').value.includes('[4s-6s: three]')")
    text = page.input_value(".tl-shorthand")
    assert [(s.start, s.end, s.prompt) for s in parse(text).segments] == segments(page)
    page.fill(".tl-shorthand", "[blend: 1] [0s-3s: a cat walks] [3s-8s: it jumps]")
    page.wait_for_function("magi.timeline.segments.length === 2")
    assert segments(page) == [(0, 3, "a cat walks"), (3, 8, "it jumps")]
    assert page.evaluate("magi.timeline.blend") == 1
    page.fill(".tl-shorthand", "[0s-3s: a cat] [2s-8s: it jumps]")
    page.wait_for_function("document.querySelector('.tl-error').textContent.includes('overlaps')")
    assert segments(page) == [(0, 3, "a cat walks"), (3, 8, "it jumps")]  # nothing is lost


def export(page: Page, kind: str, folder: Path) -> Path:
    """Save the timeline as a file."""
    page.click(".tl-bar [data-action=export]")
    page.select_option("dialog[open] [data-field=kind]", kind)
    with page.expect_download() as download:
        page.click("dialog[open] button[type=submit]")
    saved = folder / download.value.suggested_filename
    download.value.save_as(saved)
    return saved


def drop_file(page: Page, path: Path) -> None:
    """Drop a file somewhere on the page."""
    transfer = page.evaluate_handle(
        """([content, name]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([content], name));
          return transfer;
        }""",
        [path.read_text(), path.name],
    )
    page.dispatch_event("#mg-prompt", "drop", {"dataTransfer": transfer})


def test_export_and_import(timeline: Page, tmp_path: Path) -> None:
    page = timeline
    three_blocks(page)
    page.fill("#mg-prompt textarea", "in the fog")
    exported = export(page, "json", tmp_path)
    whole = Timeline.from_json(exported.read_text())
    assert [(s.start, s.end, s.prompt) for s in whole.segments] == segments(page)
    assert whole.global_prompt == "in the fog"
    data = json.loads(exported.read_text()) | {"global_prompt": "in the rain"}
    data["segments"].append({"start": 8, "end": 12, "prompt": "far away"})
    exported.write_text(json.dumps(data))
    page.set_input_files(".tl-bar input[type=file]", exported)
    page.wait_for_function("document.querySelector('#mg-prompt textarea').value === 'in the rain'")
    page.wait_for_function("document.querySelector('#mg-seconds input').value === '12'")
    assert segments(page)[-1] == (8, 12, "far away")
    (tmp_path / "bad.json").write_text('{"segments": [{"start": 2, "end": 1, "prompt": "x"}]}')
    page.set_input_files(".tl-bar input[type=file]", tmp_path / "bad.json")
    page.get_by_text("must end after it starts").first.wait_for()


def length_is(page: Page, seconds: int) -> None:
    page.wait_for_function("n => document.querySelector('#mg-seconds input').value === String(n)", arg=seconds)


def prompt_is(page: Page, words: str) -> None:
    page.wait_for_function("words => document.querySelector('#mg-prompt textarea').value === words", arg=words)


def test_the_undo_of_an_import_takes_back_what_came_with_it(timeline: Page, tmp_path: Path) -> None:
    """Length and prompt, unless somebody changed them since; a redo puts them there again. So with an example."""
    page = timeline
    page.fill("#mg-prompt textarea", "at night")
    subtitles = tmp_path / "story.srt"
    subtitles.write_text("1\n00:00:00,000 --> 00:01:10,000\na cat walks\n")
    story = {"global_prompt": "in the rain", "segments": [{"start": 0, "end": 12, "prompt": "far away"}]}
    (tmp_path / "story.json").write_text(json.dumps(story))
    drop_file(page, subtitles)
    length_is(page, 70)
    drop_file(page, tmp_path / "story.json")
    prompt_is(page, "in the rain")
    page.click("[data-action=undo]")
    prompt_is(page, "at night")
    assert segments(page) == [(0, 70, "a cat walks")]
    page.click("[data-action=undo]")
    length_is(page, 8)
    assert segments(page) == []
    page.click("[data-action=redo]")
    length_is(page, 70)
    set_length(page, 75)
    page.click("[data-action=undo]")
    assert segments(page) == []
    page.click("#mg-example input")
    page.get_by_role("option", name="Landscape").click()
    length_is(page, 8)
    page.click("[data-action=undo]")
    length_is(page, 75)  # what was typed stayed
    prompt_is(page, "at night")


def test_words_are_text_never_markup(timeline: Page) -> None:
    page = timeline
    words = "<img src=x onerror=alert(1)> & ${1+1} {{value}}"
    page.click("[data-action=add]")
    write(page, words)
    assert segments(page)[0][2] == words
    assert page.locator(".tl-label").first.inner_text() == words
    assert page.locator(".tl-block img").count() == 0


def test_examples_load(timeline: Page) -> None:
    page = timeline
    page.click("#mg-example input")
    page.get_by_role("option", name="Landscape").click()
    page.wait_for_function("magi.timeline.segments.length === 3")
    assert "mountain valley" in page.input_value("#mg-prompt textarea")
    assert page.input_value("#mg-seconds input[type=number]") == "8"


def test_a_shorter_length_keeps_all_blocks(timeline: Page, app: App) -> None:
    """What lies beyond the end is hatched, and left out only of the video that is made."""
    page = timeline
    three_blocks(page)
    all_blocks = [(0, 2, "one"), (2, 4, "two"), (4, 6, "three")]
    page.click("#mg-seconds input[type=number]")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("20")  # 2 on the way to 20
    page.keyboard.press("Tab")
    page.wait_for_function("document.querySelector('.tl').dataset.seconds === '20'")
    assert segments(page) == all_blocks
    set_length(page, 3)
    assert segments(page) == all_blocks
    assert page.locator(".tl-block.beyond").count() == 1
    assert page.locator(".tl-beyond").is_visible()
    assert "2 blocks reach beyond second 3" in page.inner_text(".tl-hint")
    set_size(page, 32, 32)
    generate(page)
    page.get_by_text("that part is left out of this video").first.wait_for()
    wait_for(page, "finished")
    made = Project.open(app.newest()).request.timeline.segments
    assert [(s.start, s.end, s.prompt) for s in made] == [(0, 2, "one"), (2, 3, "two")]
    assert segments(page) == all_blocks
    set_length(page, 8)
    assert page.locator(".tl-beyond").is_hidden()


def test_escape_cancels_a_drag(timeline: Page) -> None:
    page = timeline
    three_blocks(page)
    before = segments(page)
    box = block(page, 1).bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 2 * second(page), box["y"] + 20, steps=5)
    page.wait_for_function("document.querySelectorAll('.tl-block')[2].style.left !== ''")
    page.keyboard.press("Escape")
    page.mouse.up()
    assert segments(page) == before
    assert page.locator(".tl-block.dragging").count() == 0


def test_120_blocks_can_be_dragged_where_all_of_them_are_shown(timeline: Page) -> None:
    """At Fit no block is wider than its seconds, and its edges leave room to take hold of it."""
    page = timeline
    page.click("[data-action=text]")
    page.fill(".tl-shorthand", " ".join(f"[{2 * i}s-{2 * i + 1}s: block {i}]" for i in range(120)))
    page.wait_for_function("document.querySelectorAll('.tl-block').length === 120")
    page.wait_for_function("document.querySelector('.tl').dataset.seconds === '239'")
    page.click("[data-action=fit]")
    page.wait_for_function("(s => s.scrollWidth <= s.clientWidth + 1)(document.querySelector('.tl-scroll'))")
    widths = page.evaluate("[...document.querySelectorAll('.tl-block')].map(b => b.getBoundingClientRect().width)")
    assert max(widths) <= second(page)
    drag(page, block(page, 119), -1)
    assert segments(page)[-1] == (237, 238, "block 119")


def test_the_ruler_is_scrubbed_by_dragging(timeline: Page) -> None:
    page = timeline
    times = "window.times = []; addEventListener('magi-seek', (e) => times.push(e.detail.time))"
    page.evaluate(times)
    page.locator(".tl-ruler").scroll_into_view_if_needed()
    ruler = page.locator(".tl-ruler").bounding_box()
    assert ruler
    page.mouse.move(ruler["x"] + 0.5 * second(page), ruler["y"] + 10)
    page.mouse.down()
    page.mouse.move(ruler["x"] + 3 * second(page), ruler["y"] + 60, steps=10)
    page.mouse.up()
    seen = page.evaluate("times")
    assert len(seen) >= 6 and seen == sorted(seen) and abs(seen[-1] - 3) < 0.05


def test_a_message_can_be_answered_over_a_dialog_that_opens_later(timeline: Page) -> None:
    page = timeline
    page.evaluate("magi.toast('before', 'info', {label: 'Do it', name: 'do-it', run: () => { window.done = true; }})")
    page.click("[data-action=help]")
    page.click("[data-action=do-it]")
    assert page.evaluate("done")
    page.keyboard.press("Escape")
    page.evaluate("magi.toast('after')")
    page.get_by_text("after", exact=True).wait_for()


def test_keys_of_the_stage_do_nothing_on_another_tab(timeline: Page) -> None:
    page = timeline
    page.get_by_role("tab", name="Gallery").click()
    page.locator(".ga-count").click()
    page.keyboard.press("f")
    page.wait_for_timeout(300)
    assert not page.evaluate("Boolean(document.fullscreenElement)")


def test_import_keeps_what_was_dragged_beyond(timeline: Page) -> None:
    """Only an import lengthens the video; moving a block never does."""
    page = timeline
    three_blocks(page)
    set_length(page, 4)
    block(page, 0).click()
    page.keyboard.press("Alt+ArrowRight")
    assert page.input_value("#mg-seconds input[type=number]") == "4"


def test_touch(watched: Watched, app: App) -> None:
    page = watched.open(app.url, size=(400, 850), has_touch=True, is_mobile=True)
    page.evaluate("magi.attached = null")
    page.tap("[data-action=add]")
    write(page, "one")
    edge = page.locator(".tl-edge-end").first
    edge.scroll_into_view_if_needed()
    box = edge.bounding_box()
    assert box
    point = {"x": box["x"] + box["width"] / 2, "y": box["y"] + 20}
    touch = page.context.new_cdp_session(page)
    step = second(page)
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    for part in range(1, 9):
        moved = {**point, "x": point["x"] + step * part / 8}
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [moved]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_function("magi.timeline.segments[0].end === 3")


def test_a_drag_among_120_blocks_touches_only_what_it_passes(timeline: Page) -> None:
    """What keeps it smooth; `benchmarks/page_load.py` measures the frames."""
    page = timeline
    page.click("[data-action=text]")
    page.fill(".tl-shorthand", " ".join(f"[{i}s-{i + 1}s: block {i}]" for i in range(120)))
    page.wait_for_function("magi.timeline.segments.length === 120")
    page.wait_for_function("document.querySelectorAll('.tl-block').length === 120")
    page.wait_for_function("document.querySelector('#mg-seconds input[type=number]').value === '120'")
    page.wait_for_function("document.querySelector('.tl').dataset.seconds === '120'")
    assert page.evaluate("(s => s.scrollWidth > s.clientWidth)(document.querySelector('.tl-scroll'))")
    assert page.locator(".mg-toast.error").count() == 0  # longer than the slider, and nothing to complain about
    block(page, 3).click()
    page.keyboard.press("Escape")
    page.evaluate(
        """() => { window.touched = new Set();
          new MutationObserver((all) => all.forEach((one) => touched.add(one.target.dataset.id || one.target)))
            .observe(document.querySelector('.tl-lane'), {subtree: true, attributes: true, childList: true}); }"""
    )
    drag(page, block(page, 3), 5, steps=25)
    assert [words for *_, words in segments(page)][:9] == [f"block {i}" for i in (0, 1, 2, 4, 5, 6, 7, 8, 3)]
    touched = page.evaluate("touched.size")
    assert 6 <= touched < 20, touched


def test_several_blocks_are_moved_copied_and_deleted_together(timeline: Page) -> None:
    page = timeline
    set_length(page, 20)
    three_blocks(page)
    page.keyboard.press("Home")
    block(page, 2).click(modifiers=["Shift"])
    assert page.locator(".tl-block.selected").count() == 3
    block(page, 2).click(modifiers=["ControlOrMeta"])
    assert page.locator(".tl-block.selected").count() == 2
    drag(page, block(page, 0), 2)  # both; the third makes way
    assert segments(page) == [(2, 4, "one"), (4, 6, "two"), (6, 8, "three")]
    page.keyboard.press("Alt+ArrowRight")  # by key the others stay, and are in the way
    assert segments(page) == [(2, 4, "one"), (4, 6, "two"), (6, 8, "three")]
    page.keyboard.press("Alt+ArrowLeft")
    assert segments(page) == [(1, 3, "one"), (3, 5, "two"), (6, 8, "three")]
    page.keyboard.press("ControlOrMeta+c")
    page.keyboard.press("ControlOrMeta+v")  # behind them: in the place of what is there
    assert segments(page) == [(1, 3, "one"), (3, 5, "two"), (5, 7, "one"), (7, 9, "two")]
    page.keyboard.press("ControlOrMeta+z")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.press("Delete")
    assert segments(page) == []
    page.keyboard.press("ControlOrMeta+z")
    assert [words for _, _, words in segments(page)] == ["one", "two", "three"]
    page.fill("#mg-prompt textarea", "text keeps its own keys")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.press("Delete")
    assert page.input_value("#mg-prompt textarea") == "" and len(segments(page)) == 3


def test_ripple_moves_what_is_behind_and_alt_leaves_the_others(timeline: Page) -> None:
    page = timeline
    set_length(page, 20)
    three_blocks(page)
    page.keyboard.press("Home")
    page.keyboard.press("r")
    assert page.get_attribute("[data-action=ripple]", "aria-pressed") == "true"
    drag(page, block(page, 0).locator(".tl-edge-end"), 2)
    assert segments(page) == [(0, 4, "one"), (4, 6, "two"), (6, 8, "three")]
    page.keyboard.press("Shift+ArrowLeft")
    assert segments(page) == [(0, 3, "one"), (3, 5, "two"), (5, 7, "three")]
    block(page, 1).click()
    page.keyboard.press("Escape")
    page.keyboard.press("Delete")
    assert segments(page) == [(0, 3, "one"), (3, 5, "three")]
    page.keyboard.press("r")
    page.keyboard.down("Alt")
    drag(page, block(page, 0).locator(".tl-edge-end"), 1)
    drag(page, block(page, 0), 9)
    page.keyboard.up("Alt")
    assert segments(page) == [(0, 3, "one"), (3, 5, "three")]  # stopped by its neighbour


def test_markers_are_named_moved_and_kept_in_the_settings(timeline: Page, app: App) -> None:
    page = timeline
    set_length(page, 1)
    set_size(page, 32, 32)
    page.fill("#mg-prompt textarea", "a marked video")
    page.focus(".tl-splitter")
    page.keyboard.press("Shift+M")
    page.locator("dialog[open] input[type=text]").fill("the beginning")
    page.locator("dialog[open] button[type=submit]").click()
    page.click(".tl-mark")
    for nowhere in ("", "-1", "1e9"):  # the last one would stand where nobody could see it again
        page.locator("dialog[open] input[type=number]").fill(nowhere)
        page.locator("dialog[open] button[type=submit]").click()
        assert page.locator("dialog[open] input:invalid").count() == 1
        assert page.evaluate("magi.timeline.markers") == [{"at": 0, "name": "the beginning"}]
    page.locator("dialog[open] input[type=number]").fill("0.5")
    page.locator("dialog[open] button[type=submit]").click()
    expect(page.locator(".tl-mark")).to_be_focused()
    assert page.evaluate("magi.timeline.markers") == [{"at": 0.5, "name": "the beginning"}]
    generate(page)
    wait_for(page, "finished")
    made = Project.open(app.newest()).request.timeline
    assert [(mark.at, mark.name) for mark in made.markers] == [(0.5, "the beginning")]
    page.click(".tl-mark")
    page.click("dialog[open] [data-action=remove-marker]")
    assert page.locator(".tl-mark").count() == 0
    page.focus(".tl-splitter")
    page.keyboard.press("ControlOrMeta+z")
    assert page.locator(".tl-mark").count() == 1


def test_a_dropped_file_of_subtitles_becomes_blocks(timeline: Page, tmp_path: Path) -> None:
    page = timeline
    page.fill("#mg-prompt textarea", "at night")
    subtitles = tmp_path / "story.srt"
    cues = "1\n00:00:00,000 --> 00:00:03,900\na cat\nwalks\n\n2\n00:00:04,000 --> 00:01:10,000\nit sleeps\n"
    subtitles.write_text(cues)
    drop_file(page, subtitles)
    page.wait_for_function("magi.timeline.segments.length === 2")
    assert segments(page) == [(0, 4, "a cat walks"), (4, 70, "it sleeps")]
    page.wait_for_function("document.querySelector('#mg-seconds input').value === '70'")
    for kind in ("otio", "srt", "txt"):
        saved = export(page, kind, tmp_path)
        assert saved.suffix == f".{kind}"
        drop_file(page, saved)
        page.get_by_text(f"The timeline of timeline.{kind} is on the page now.").wait_for()
        assert segments(page) == [(0, 4, "a cat walks"), (4, 70, "it sleeps")]
        assert page.input_value("#mg-prompt textarea") == "at night"
    subtitles.write_text("1\n00:00:09,000 --> 00:00:03,900\nback\n")
    drop_file(page, subtitles)
    page.get_by_text("ends before it starts").first.wait_for()
    assert len(segments(page)) == 2
