"""The form keeps what is typed: no answer of the server that was asked for earlier takes a field back."""

from __future__ import annotations

import time

from gradio_client import Client
from playwright.sync_api import Page

from tests.ui.conftest import App, Watched, set_field, set_length, set_size, unfold

SLOW = """(() => {
  window.asked = 0; window.told = []; window.slow = 0;
  const send = window.fetch;
  window.fetch = async (...all) => {
    const address = String(all[0] && all[0].url || all[0]);
    if (window.slow && address.includes("queue/join")) await new Promise((done) => setTimeout(done, window.slow));
    return send(...all);
  };
  let known;
  Object.defineProperty(window, "magi", { get: () => known, set: (magi) => {
    const { ask, answer } = known = magi;
    magi.ask = (...all) => { window.asked += 1; return ask(...all); };
    magi.answer = (...all) => { window.told.push(all[1][0].values); return answer(...all); };
  } });
})();"""
"""Every question to the server is held back on its way for `slow` milliseconds; all answers are kept in `told`."""


def answered(page: Page, least: int) -> None:
    """Until every question has its answer, and there were at least so many."""
    page.wait_for_function("n => asked >= n && told.length === asked", arg=least)


def test_no_late_answer_takes_back_what_is_typed(watched: Watched, app: App) -> None:
    page = watched.open(app.url, script=SLOW)
    page.wait_for_function("document.querySelector('#mg-plan').innerText.includes('Needs')")
    page.evaluate("magi.attached = null; magi.emit('poll')")
    page.evaluate("slow = 3000")
    page.locator("#mg-quality label", has_text="Draft").click()  # brings size, steps and window, three seconds late
    unfold(page, "size")
    page.locator("#mg-shape label", has_text="Tall").click()  # brings a size, too
    set_field(page, "width", 112)
    set_field(page, "height", 80)
    set_field(page, "seed", 4242)
    page.fill("#mg-prompt textarea", "typed while answers are on their way")
    set_length_only(page, 7)
    unfold(page, "advanced")
    page.fill("#mg-steps input", "16")
    page.press("#mg-steps input", "Enter")
    before = {name: page.input_value(f"#mg-{name} input") for name in ("width", "height", "seed", "steps")}
    assert before == {"width": "112", "height": "80", "seed": "4242", "steps": "16"}
    answered(page, 2)
    told = page.evaluate("told")
    assert [96, 96, "Auto", "Auto"] in told and [64, 128] in told, told  # they did come, and would have been wrong
    after = {name: page.input_value(f"#mg-{name} input") for name in before}
    assert after == before
    assert page.input_value("#mg-prompt textarea") == "typed while answers are on their way"
    assert page.input_value("#mg-seconds input[type=number]") == "7"
    assert page.input_value("#mg-window input") == "Auto"
    set_field(page, "width", 130)  # an illegal size is corrected at once, without the server
    assert page.input_value("#mg-width input") == "128"
    page.evaluate("slow = 0")
    page.locator("#mg-shape label", has_text="Square").click()  # what was asked for after the typing is obeyed
    page.wait_for_function("document.querySelector('#mg-width input').value === '96'")


def test_the_last_of_two_quick_choices_holds(watched: Watched, app: App) -> None:
    """The second is made while the first one's answer is on its way."""
    page = watched.open(app.url, script=SLOW)
    page.wait_for_function("document.querySelector('#mg-plan').innerText.includes('Needs')")
    unfold(page, "size")
    page.locator("#mg-shape label", has_text="Square").click()
    page.wait_for_function(
        "document.querySelector('#mg-width input').value === document.querySelector('#mg-height input').value"
    )
    page.evaluate("slow = 1500")
    page.locator("#mg-shape label", has_text="Tall").click()
    page.locator("#mg-shape label", has_text="Wide").click()
    answered(page, 3)
    size = [int(page.input_value(f"#mg-{name} input")) for name in ("width", "height")]
    assert size[0] > size[1], size


def set_length_only(page: Page, seconds: int) -> None:
    """Type the length, and do not wait for the timeline to follow."""
    page.fill("#mg-seconds input[type=number]", str(seconds))
    page.press("#mg-seconds input[type=number]", "Tab")


def test_a_page_that_opens_on_a_running_video_keeps_what_is_typed_at_once(watched: Watched, app: App) -> None:
    client = Client(app.url, verbose=False)
    job = client.predict("a small blue box stands still in a town", 0, api_name="/generate")["job"]
    try:
        page = watched.open(app.url, script=SLOW + "window.slow = 2500;")
        page.fill("#mg-prompt textarea", "what comes next")
        assert page.evaluate("told.length") == 0
        answered(page, 1)
        page.wait_for_function("document.querySelector('#mg-endless input').checked")  # the rest is the video's
        assert page.input_value("#mg-prompt textarea") == "what comes next"
    finally:
        client.predict(job, api_name="/stop")
        while client.predict(api_name="/status")["running"]:
            time.sleep(0.2)


def test_field_and_timeline_agree_on_a_length_that_is_typed_before_the_running_video_is_there(
    watched: Watched, app: App
) -> None:
    client = Client(app.url, verbose=False)
    job = client.predict("a small blue box stands still in a town", 600, api_name="/generate")["job"]
    try:
        page = watched.open(app.url, script=SLOW + "window.slow = 4000;")
        page.wait_for_function("(tl => tl && tl.dataset.seconds === '4')(document.querySelector('.tl'))")
        set_length_only(page, 7)
        page.wait_for_function("document.querySelector('.tl').dataset.seconds === '7'")
        answered(page, 1)
        page.wait_for_function("document.querySelector('#mg-prompt textarea').value.startsWith('a small blue box')")
        page.wait_for_timeout(500)
        assert page.input_value("#mg-seconds input[type=number]") == "7"
        assert page.evaluate("document.querySelector('.tl').dataset.seconds") == "7"
    finally:
        client.predict(job, api_name="/stop")
        while client.predict(api_name="/status")["running"]:
            time.sleep(0.2)


def test_the_first_thing_typed_into_a_section_stays(watched: Watched, app: App) -> None:
    """A section's fields are there for good once they can be seen."""
    page = watched.open(app.url)
    set_field(page, "seed", 4321)
    set_length(page, 6)
    page.wait_for_timeout(500)
    assert page.input_value("#mg-seed input") == "4321"
    page.click("#mg-size-head button")
    page.wait_for_selector("#mg-seed input", state="hidden")
    page.click("#mg-size-head button")
    assert page.input_value("#mg-seed input") == "4321"


def test_what_is_on_its_way_to_a_number_is_no_error(page: Page) -> None:
    """7, on the way to 720, and a length beyond the slider's end."""
    unfold(page, "size")
    page.fill("#mg-width input", "7")
    page.fill("#mg-seconds input[type=number]", "4")
    page.wait_for_timeout(700)
    assert page.locator(".mg-toast.error").count() == 0
    page.press("#mg-width input", "Tab")
    assert page.input_value("#mg-width input") == "32"


def test_a_number_of_any_size_leaves_the_page_connected(page: Page) -> None:
    """Whole numbers beyond 64 bits cannot be sent to a page; the nearest legal one takes their place."""
    for name, value, legal in (("width", "9" * 30, "4096"), ("height", "9" * 30, "4096"), ("seed", "9" * 30, "-1")):
        set_field(page, name, value)
        page.wait_for_function(
            "([name, legal]) => document.querySelector(`#mg-${name} input`).value === legal", arg=[name, legal]
        )
    page.fill("#mg-seconds input[type=number]", "9" * 30)
    page.press("#mg-seconds input[type=number]", "Tab")
    page.wait_for_function("document.querySelector('#mg-seconds input[type=number]').value === '1000000'")
    set_size(page, 32, 32)
    set_length(page, 3)
    page.wait_for_function("document.querySelector('#mg-plan').innerText.includes('Needs')")


def test_a_number_is_put_right_at_once_and_never_one_typed_since(page: Page) -> None:
    field = "#mg-seconds input[type=number]"
    for wrong, right in (("-3", "1"), ("3.7", "4"), ("0", "1")):
        page.fill(field, wrong)
        page.press(field, "Tab")
        page.wait_for_function(
            "([field, right]) => document.querySelector(field).value === right", arg=[field, right]
        )
    page.fill(field, "-3")
    page.press(field, "Tab")
    page.fill(field, "25")
    page.press(field, "Tab")
    page.wait_for_function("document.querySelector('.tl').dataset.seconds === '25'")
    page.wait_for_timeout(1000)
    assert page.input_value(field) == "25"


def test_what_was_typed_is_there_after_a_reload(page: Page, watched: Watched) -> None:
    page.fill("#mg-prompt textarea", "half a sentence about")
    set_length(page, 9)
    set_field(page, "seed", 99)
    page.locator("#mg-quality label", has_text="Quality").click()
    page.click("[data-action=add]")
    page.keyboard.type("a block")
    page.keyboard.press("Enter")
    page.wait_for_function("localStorage.getItem('magi-draft')?.includes('a block')")
    watched.reload(page)
    page.wait_for_function("document.querySelector('#mg-prompt textarea').value === 'half a sentence about'")
    page.wait_for_function("magi.timeline.segments.length === 1")
    page.wait_for_function("document.querySelector('.tl').dataset.seconds === '9'")
    page.wait_for_function("document.querySelector('#mg-quality input:checked').value === 'Quality'")
    unfold(page, "size")
    page.wait_for_function("document.querySelector('#mg-seed input')?.value === '99'")
    visitor = page.context.new_page()  # another tab of the same browser
    visitor.goto(page.url)
    visitor.wait_for_function("document.querySelector('#mg-prompt textarea')?.value === 'half a sentence about'")


def test_what_is_being_typed_is_there_after_a_reload(page: Page, watched: Watched) -> None:
    """Words in a block that was not left yet, and a text that cannot be read yet."""
    page.click("[data-action=add]")
    page.keyboard.type("half a blo")
    watched.reload(page)
    page.wait_for_function("magi.timeline.segments[0]?.prompt === 'half a blo'")
    page.locator(".tl-block").click()
    page.keyboard.press("Enter")
    page.keyboard.type("no")
    page.keyboard.press("Escape")
    watched.reload(page)
    page.wait_for_function("magi.timeline.segments[0]?.prompt === 'half a blo'")
    page.click("[data-action=text]")
    page.fill(".tl-shorthand", "[0s-2s: a cat walks] [2s")
    page.get_by_text("is not closed").wait_for()
    page.click("[data-action=blendmore]")  # what the timeline does is no reason to lose it
    watched.reload(page)
    page.get_by_text("is not closed").wait_for()
    assert page.input_value(".tl-shorthand") == "[0s-2s: a cat walks] [2s"
    page.press(".tl-shorthand", "Escape")
    page.wait_for_function("document.querySelector('.tl-shorthand').value.includes('half a blo')")


def test_what_two_tabs_held_is_kept_when_both_are_closed(watched: Watched, app: App) -> None:
    page = watched.open(app.url)
    context = page.context
    page.fill("#mg-prompt textarea", "words of the first tab")
    page.wait_for_function("localStorage.getItem('magi-drafts')?.includes('first tab')")
    other = context.new_page()
    other.goto(app.url)
    other.wait_for_function("document.querySelector('#mg-prompt textarea')?.value === 'words of the first tab'")
    other.fill("#mg-prompt textarea", "words of the second tab")
    other.wait_for_function("localStorage.getItem('magi-drafts')?.includes('second tab')")
    third = context.new_page()
    third.goto(app.url)
    third.wait_for_function("document.querySelector('#mg-prompt textarea')?.value === 'words of the second tab'")
    third.wait_for_timeout(1500)
    assert third.locator("[data-action=bring-other]").count() == 0  # both are open
    watched.leaving = True
    for one in (page, other, third):
        one.close()
    page = context.new_page()
    page.goto(app.url)
    page.get_by_text("“words of the first tab”").wait_for()
    assert page.input_value("#mg-prompt textarea") == "words of the second tab"
    page.click("[data-action=bring-other]")
    page.wait_for_function("document.querySelector('#mg-prompt textarea').value === 'words of the first tab'")


def test_an_example_in_the_place_of_what_was_typed_can_be_taken_back(page: Page) -> None:
    page.fill("#mg-prompt textarea", "my own words")
    page.click("#mg-example input")
    page.get_by_role("option").nth(1).click()
    page.wait_for_function("document.querySelector('#mg-prompt textarea').value !== 'my own words'")
    page.get_by_text("What you had typed was replaced.").wait_for()
    page.click("[data-action=bring-back]")
    page.wait_for_function("document.querySelector('#mg-prompt textarea').value === 'my own words'")


def test_a_damaged_store_keeps_nobody_from_working(watched: Watched, app: App) -> None:
    damage = "for (const name of ['magi-gallery', 'magi-draft', 'magi-blocks', 'magi-dock', 'magi-shown'])"
    page = watched.open(app.url, script=damage + " { localStorage[name] = '{'; sessionStorage[name] = '{'; }")
    page.wait_for_function("window.magi && magi.state && document.querySelector('.tl-lane')")
    page.get_by_role("tab", name="Gallery").click()
    page.get_by_label("Search prompts").wait_for()
    page.get_by_role("tab", name="Create").click()
    page.click("[data-action=add]")
    page.keyboard.type("a block")
    page.keyboard.press("Enter")
    page.keyboard.press("ControlOrMeta+v")
    page.wait_for_function("magi.timeline.segments.length === 1")


def test_what_is_typed_before_the_draft_came_back_stays(watched: Watched, app: App) -> None:
    page = watched.open(app.url)
    page.fill("#mg-prompt textarea", "yesterday's")
    page.wait_for_function("localStorage.getItem('magi-draft')?.includes('yesterday')")
    late = "let go; const held = new Promise((done) => { go = done; }); window.go = () => go();"
    page.context.add_init_script(
        late + "let kept; Object.defineProperty(window, 'magiReady', {set(v) { kept = held.then(() => v); },"
        " get: () => kept});"
    )
    page.reload(wait_until="commit")
    page.wait_for_selector("#mg-generate")
    page.fill("#mg-prompt textarea", "today's")
    page.evaluate("go()")
    page.wait_for_function("window.magi && magi.state")
    page.wait_for_function("document.querySelector('#mg-plan').innerText.includes('Needs')")
    assert page.input_value("#mg-prompt textarea") == "today's"


def test_no_click_on_generate_is_lost_and_a_double_click_is_one(watched: Watched, app: App) -> None:
    """The second comes while the first is being answered; a key that is held down is one press."""
    page = watched.open(app.url, script=SLOW)
    page.wait_for_function("document.querySelector('#mg-plan').innerText.includes('Needs')")
    client = Client(app.url, verbose=False)
    client.predict(True, api_name="/hold")
    try:
        mine = "magi.state.jobs.filter(job => job.title.startsWith('asked')).map(job => job.title)"
        page.evaluate("slow = 1500")
        for words in ("asked first", "asked second"):
            page.fill("#mg-prompt textarea", words)
            page.click("#mg-generate")
        page.wait_for_function(f"{mine}.length === 2")
        assert page.evaluate(mine) == ["asked first", "asked second"]
        page.evaluate("slow = 0")
        page.fill("#mg-prompt textarea", "asked third")
        page.dblclick("#mg-generate")
        page.fill("#mg-prompt textarea", "asked last")
        page.keyboard.down("Control")
        for _ in range(3):
            page.keyboard.down("Enter")  # repeated, as a keyboard does
        page.keyboard.up("Enter")
        page.keyboard.up("Control")
        page.wait_for_function(f"{mine}.length === 4")
        assert page.evaluate(mine) == ["asked first", "asked second", "asked third", "asked last"]
    finally:
        for job in client.predict(api_name="/queue")["jobs"]:
            if job["state"] == "waiting":
                client.predict(job["id"], api_name="/remove")
        client.predict(False, api_name="/hold")
