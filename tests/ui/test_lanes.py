"""Two cards on the page: each with its job and a picture of its own, and jobs that are tied to one of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client

from tests.ui.conftest import PATIENCE, App, Watched

TWO_CARDS = """
import sys
from magi_lite.cli import main
from magi_lite.machine import devices
from magi_lite.machine.cards import cpu_device, known_card
devices.cards = lambda: [known_card("RTX 4090"), known_card("RTX 3090")]
devices.detect = lambda: cpu_device(devices.ram_bytes(), 1)
sys.exit(main(["app", "--cards", "all", *sys.argv[1:]]))
"""
"""Workers on the processor stand in for them."""
SMALL = {"width": 32, "height": 32, "quality": "draft"}


@pytest.fixture
def two_cards(tmp_path: Path) -> Iterator[App]:
    server = App(tmp_path, "-c", TWO_CARDS).start()
    yield server
    server.stop()


def test_each_card_has_its_job_and_its_picture(two_cards: App, watched: Watched) -> None:
    client = Client(two_cards.url, verbose=False)
    jobs = [client.predict(f"a red ball, {n}", 300, **SMALL, api_name="/generate")["job"] for n in range(3)]
    page = watched.open(two_cards.url)
    page.set_default_timeout(PATIENCE)
    page.get_by_role("tab", name="Queue").click()
    both = page.locator(".qu-card")
    page.wait_for_function("document.querySelectorAll('.qu-card .qu-picture:not([hidden])').length === 2")
    assert [both.nth(n).get_attribute("data-card") for n in range(2)] == ["0", "1"]
    shown = page.evaluate("Object.fromEntries(magi.state.lanes.map(one => [one.card, one.job]))")
    assert sorted(shown.values()) == sorted(jobs[:2])
    sources = page.evaluate("[...document.querySelectorAll('.qu-picture')].map(image => image.src.slice(0, 22))")
    assert sources == ["data:image/jpeg;base64"] * 2
    page.wait_for_function(
        "[...document.querySelectorAll('.qu-memory')].every(node => /GB of RAM/.test(node.innerText))"
    )

    for card, job in shown.items():
        page.locator(f".qu-job[data-job='{job}']", has_text=f"card {card},").wait_for()

    for card in ("1", "0"):  # a look at one, then at the other
        page.get_by_role("tab", name="Queue").click()
        page.locator(f".qu-card[data-card='{card}'] [data-action=watch-card]").click()
        page.wait_for_function("id => magi.state.shown && magi.state.shown.id === id", arg=shown[card])
        page.get_by_role("tab", name="Create", selected=True).wait_for()

    page.get_by_role("tab", name="Queue").click()
    page.locator(f".qu-job[data-job='{jobs[2]}'] select").select_option("1")
    page.wait_for_function("id => magi.state.jobs.find(job => job.id === id).card === '1'", arg=jobs[2])
    client.predict(shown["0"], api_name="/stop")  # the other card is free now, and the tied job waits all the same
    page.wait_for_function("magi.state.lanes[0].job === null")
    page.wait_for_function("document.querySelector(\".qu-card[data-card='0']\").innerText.includes('Ready')")
    assert page.evaluate("id => magi.state.jobs.find(job => job.id === id).state", jobs[2]) == "waiting"
    client.predict(shown["1"], api_name="/stop")
    page.wait_for_function("id => magi.state.lanes[1].job === id", arg=jobs[2])
    client.predict(jobs[2], api_name="/stop")
    page.wait_for_function("magi.state.lanes[1].job === null")


def test_the_bar_on_top_counts_what_is_made_and_leaves_the_tabs_free(two_cards: App, watched: Watched) -> None:
    client = Client(two_cards.url, verbose=False)
    jobs = [client.predict(f"a red ball, {n}", 300, **SMALL, api_name="/generate")["job"] for n in range(3)]
    page = watched.open(two_cards.url, size=(1024, 768))
    page.get_by_text("Making 2 videos, 1 waiting").wait_for()
    for width, all_of_it in ((1000, False), (1024, False), (1440, True)):
        page.set_viewport_size({"width": width, "height": 768})
        tab = page.get_by_role("tab", name="System")
        tab.click(trial=True)  # nothing lies over it
        right = tab.evaluate("tab => tab.getBoundingClientRect().right")
        box = "(n => { const r = n.getBoundingClientRect(), b = n.parentElement.getBoundingClientRect();"
        box += " return [r.left, r.bottom <= b.bottom + 1]; })"
        first, *others = page.evaluate(f"[...document.querySelectorAll('.tb-chip')].map{box}")
        assert first[0] >= right and first[1]
        assert all(whole for _, whole in others) is all_of_it
    for job in (jobs[2], *jobs[:2]):
        client.predict(job, api_name="/stop")


def test_one_card_needs_no_choice(app: App, watched: Watched) -> None:
    page = watched.open(app.url)
    assert page.evaluate("magi.state.lanes") == []
    page.get_by_role("tab", name="Queue").click()
    assert page.locator(".qu-cards").is_hidden()
