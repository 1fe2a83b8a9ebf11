"""The System tab: plans for other machines, the report for a bug, the models' folder; settings under a name."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page

from magi_lite.attention_choice import question
from magi_lite.cli import app as app_command
from magi_lite.errors import InputError
from magi_lite.machine import findings
from magi_lite.machine.cards import known_card
from magi_lite.ui.guard import Hosts
from magi_lite.ui.machine import Machine
from tests.ui.conftest import App, Watched, set_length, unfold


def test_the_plan_of_another_machine(page: Page) -> None:
    set_length(page, 6)
    page.get_by_role("tab", name="System").click()
    page.wait_for_selector("[aria-label='Plan for'] option:nth-child(10)", state="attached")
    page.select_option("[aria-label='Plan for']", "RTX 4090")
    page.wait_for_function("document.querySelector('.sy-picture').innerText.includes('on RTX 4090. Needs')")
    page.select_option("[aria-label='Model']", "24B-base")
    page.wait_for_function("/24B-base|does not fit|needs/.test(document.querySelector('.sy-picture').innerText)")
    page.fill("[aria-label='RAM in GB']", "1")
    page.press("[aria-label='RAM in GB']", "Tab")
    page.wait_for_selector(".sy-picture .mg-note.warning")  # so little that nothing fits
    page.select_option("[aria-label='Plan for']", "")
    page.wait_for_function("document.querySelector('.sy-picture').innerText.startsWith('Needs')")


def test_the_report_has_no_paths_unless_asked_for(page: Page, app: App) -> None:
    page.get_by_role("tab", name="System").click()
    page.click("[data-action=report]")
    page.wait_for_function("document.querySelector('.sy-report').value.includes('--- console ---')")
    text = page.input_value(".sy-report")
    assert "The page is http:" in text and "public link" not in text and "gradio: " in text
    assert str(app.folder) not in text and str(Path.home()) not in text
    page.check("[data-action=with-paths]")
    page.wait_for_function("document.querySelector('.sy-report').value.length > 0")
    page.evaluate("window.before = document.querySelector('[data-action=report]')")
    page.wait_for_function("!before.isConnected")  # the tab was drawn anew under the dialog
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="detached")
    page.wait_for_function("document.activeElement.dataset.action === 'report'")


def test_another_folder_of_models_is_used_and_remembered(watched: Watched, tmp_path: Path) -> None:
    server = App(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    server.start()
    try:
        page = watched.open(server.url)
        page.get_by_role("tab", name="System").click()
        page.click("[data-action=models-folder]")
        page.locator("dialog[open] input").fill(str(tmp_path / "nowhere"))
        page.locator("dialog[open] button[type=submit]").click()
        page.get_by_text("There is no folder").wait_for()
        page.locator("dialog[open] input").fill(str(elsewhere))
        page.locator("dialog[open] button[type=submit]").click()
        page.wait_for_function(
            "folder => document.querySelector('.sy-place').textContent.includes(folder)", arg=str(elsewhere)
        )
        watched.leaving = True
        page.close()
        watched.leaving = False
    finally:
        server.stop()
    from magi_lite.jobs import JobQueue

    assert JobQueue(server.projects / ".queue", [], list).setting("models_folder") == str(elsewhere)


def test_settings_are_kept_renamed_and_deleted_with_a_question(page: Page, watched: Watched, app: App) -> None:
    unfold(page, "advanced")
    unfold(page, "mine")

    def name(text: str) -> None:
        page.fill("#mg-saved-name input, #mg-saved-name textarea", text)

    def chosen(text: str) -> None:
        page.wait_for_function("text => document.querySelector('#mg-saved input').value === text", arg=text)

    def begins_with() -> str:
        other = watched.open(app.url)
        length = other.input_value("#mg-seconds input[type=number]")
        other.context.close()
        watched.contexts.remove(other.context)
        return length

    usual = begins_with()
    assert usual != "7"
    set_length(page, 7)
    name("mine")
    page.click("#mg-save")
    chosen("mine")
    page.click("#mg-at-start")
    page.get_by_text("The page opens with “mine” from now on.").wait_for()
    assert begins_with() == "7"
    name("mine")
    page.click("#mg-save")  # there already: asks
    page.get_by_role("dialog", name="Replace settings").get_by_role("button", name="Cancel").click()
    name("yours")
    page.click("#mg-rename-saved")
    chosen("yours")
    page.click("#mg-delete-saved")
    page.get_by_role("dialog", name="Delete settings").get_by_role("button", name="Cancel").click()
    chosen("yours")
    page.click("#mg-delete-saved")
    page.click("dialog[open] [data-action=sure]")
    chosen("")
    assert page.locator(".mg-toast", has_text="is not in the list").count() == 0  # of the deletion that was cancelled
    assert begins_with() == usual


def test_a_sign_at_the_end_of_a_video_is_given_where_it_is_wanted(watched: Watched, app: App) -> None:
    told = """window.told = []; window.rung = 0;
      window.Notification = class { constructor(text) { told.push(text); }
        static permission = "granted"; static async requestPermission() { return "granted"; } };
      const real = window.AudioContext;
      window.AudioContext = class extends real { constructor() { super(); window.rung += 1; } };"""
    page = watched.open(app.url, script=told)
    page.wait_for_function("window.magi && magi.state")
    run = """wanted => { const jobs = (state) => ({...magi.state, jobs: [{id: "x", title: "a ball", state}]});
      magi.emit("state", jobs("running")); magi.emit("state", jobs("finished")); return [told.length, rung]; }"""
    assert page.evaluate(run) == [0, 0]
    page.click(".tb-notify")
    assert page.get_attribute(".tb-notify", "aria-pressed") == "true"
    assert page.evaluate(run) == [1, 2]  # once when it was switched on
    assert "“a ball” is finished" in page.evaluate("told[0]")


@pytest.mark.parametrize(("server", "local"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_tools_are_offered_to_this_computer_alone(server: str, local: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    if local and Hosts(server).loopback:
        app_command._check_mcp(Hosts(server).loopback)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="not installed" if local else "this computer only"):
        app_command._check_mcp(Hosts(server).loopback)


def test_the_attention_kernel_is_shown_as_its_trial_found_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers try the kernels; the server, which has no torch, reads what they found."""
    monkeypatch.setattr(findings, "FILE", tmp_path / "findings.json")
    monkeypatch.setattr("magi_lite.ui.machine.devices.detect", lambda: known_card("RTX 4090"))
    monkeypatch.setattr("magi_lite.ui.machine.devices.ram_bytes", lambda: 64 << 30)
    machine = Machine(tmp_path)
    assert machine.backend == "RTX 4090" and "first video" in dict(machine.report()["machine"])["Attention"]
    card = "RTX 4090, 8.9, driver 570.86, torch 2.8.0"
    for name, found in (("sage", {"speedup": 2.4}), ("flash", {"fault": "it does not load: undefined symbol"})):
        findings.find(question(name, "2.2.0", "bfloat16", card), lambda found=found: found)
    assert machine.backend == "RTX 4090, SageAttention, 2.4 times as fast as PyTorch's own"
    assert dict(machine.report()["machine"])["Attention"] == (
        "SageAttention, 2.4 times as fast as PyTorch's own; not flash-attn: it does not load: undefined symbol"
    )
