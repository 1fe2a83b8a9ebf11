"""The real app in a process of its own, and a real Chromium that counts every error and every request to elsewhere."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "docs" / "screenshots"
PATIENCE = 600_000
"""Milliseconds for anything that computes; generous, since machines may be busy."""
WAIT = 120_000
"""Milliseconds for what a page does by itself; browser, app and worker may share one slow processor."""
expect.set_options(timeout=WAIT)


def heed_ctrl_c() -> None:
    """A shell without job control has what it starts in the background ignore Ctrl-C, and all below it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class App:
    """`python app.py` on a folder of its own, or what else starts it on a machine that is pretended."""

    def __init__(self, folder: Path, *begin: str) -> None:
        self.folder, self.begin = folder, begin or ("app.py",)
        self.projects = folder / "outputs"
        with contextlib.closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.process: subprocess.Popen[bytes] | None = None
        self.extra: list[str] = []

    def start(self) -> App:
        """Start and wait until the page is served."""
        command = [sys.executable, *self.begin, "--port", str(self.port), "--projects", str(self.projects)]
        command += ["--models", str(self.folder / "models"), *self.extra]
        log = (self.folder / "app.log").open("ab")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env=environment, preexec_fn=heed_ctrl_c
        )  # fmt: skip
        log.close()
        return self.wait()

    def wait(self) -> App:
        """Until the page is served."""
        assert self.process
        until = time.monotonic() + PATIENCE / 1000
        while time.monotonic() < until:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url, timeout=5) as answer:
                if answer.status == 200:
                    return self
            time.sleep(0.3)
        raise AssertionError(f"the app did not start:\n{self.log()}")

    def log(self) -> str:
        return (self.folder / "app.log").read_text(errors="replace")[-4000:]

    def kill(self) -> None:
        """The power fails."""
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """As Ctrl-C does, which no app may ignore."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def newest(self) -> Path:
        """The project that was made last."""
        return max(self.projects.glob("*/project.json"), key=lambda path: path.stat().st_mtime).parent


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """One app for all tests that do not kill it."""
    server = App(tmp_path_factory.mktemp("app")).start()
    yield server
    server.stop()


def patient(context: BrowserContext) -> BrowserContext:
    """The context, all pages of which wait as long as a slow machine needs."""
    context.set_default_timeout(WAIT)
    return context


class Watched:
    """Pages whose errors and outside requests are kept."""

    def __init__(self, browser: Browser) -> None:
        self.browser, self.contexts = browser, []
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.forgiven: Callable[[str], bool] = lambda text: False
        self.leaving = False

    def open(self, url: str, *, size: tuple[int, int] = (1440, 900), script: str = "", **options: Any) -> Page:
        """A fresh visitor's page; with `script`, which runs before the page's own, one that is still on its way."""
        context = patient(self.browser.new_context(viewport={"width": size[0], "height": size[1]}, **options))
        self.contexts.append(context)
        context.add_init_script(script)
        context.route(lambda address: not address.startswith(url), self._block)
        page = context.new_page()
        page.on("console", lambda message: self._note(_with_address(message)) if message.type == "error" else None)
        page.on("pageerror", lambda error: self._note(str(error)))
        page.goto(url, wait_until="commit")
        page.wait_for_selector("#mg-generate")
        if script:
            return page
        page.wait_for_function("window.magi && magi.state && document.querySelector('.tl-lane')")
        page.wait_for_function("document.querySelector('#mg-plan').innerText.includes('Needs')")  # all of it has come
        return page

    def _block(self, route: Any) -> None:
        if route.request.url.startswith(("data:", "blob:")):
            route.continue_()
            return
        self.outside.append(route.request.url)
        route.abort()

    def _note(self, text: str) -> None:
        if not (self.forgiven(text) or (self.leaving and re.search("AbortError|Connection errored out", text))):
            self.errors.append(text)

    def reload(self, page: Page) -> None:
        """Reload; what the page was asking for at that moment ends with the browser's own complaint."""
        self.leaving = True
        page.reload(wait_until="commit")
        page.wait_for_selector("#mg-generate")
        page.wait_for_function("window.magi && magi.state && document.querySelector('.tl-lane')")
        self.leaving = False

    def close(self) -> None:
        self.leaving = True
        for context in self.contexts:
            context.close()


def _with_address(message: Any) -> str:
    """A console message with the address that it is about, which its text leaves out."""
    return f"{message.text} ({message.location['url']})"


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    """Opens pages; afterwards no page may have logged an error or asked for anything elsewhere."""
    pages = Watched(browser)
    yield pages
    pages.close()
    assert not pages.errors, pages.errors
    assert not pages.outside, f"{len(pages.outside)} requests to elsewhere: {pages.outside}"


@pytest.fixture
def page(watched: Watched, app: App) -> Page:
    """The app's page, with nothing shown."""
    opened = watched.open(app.url)
    opened.evaluate("magi.attached = null; magi.emit('poll')")
    return opened


def segments(page: Page) -> list[tuple[int, int, str]]:
    """What the timeline holds."""
    return [(s["start"], s["end"], s["prompt"]) for s in page.evaluate("magi.timeline.segments")]


def set_length(page: Page, seconds: int) -> None:
    """Type the video's length and wait until the timeline follows."""
    page.fill("#mg-seconds input[type=number]", str(seconds))
    page.press("#mg-seconds input[type=number]", "Tab")
    page.wait_for_function("n => document.querySelector('.tl').dataset.seconds === String(n)", arg=seconds)


def unfold(page: Page, name: str) -> None:
    """Open a section of the form, once its script is there."""
    head = page.locator(f"#mg-{name}-head button[aria-controls]")
    if head.get_attribute("aria-expanded") != "true":
        head.click()


def set_field(page: Page, name: str, value: object) -> None:
    """Type into a field of "Size and seed" and leave it."""
    unfold(page, "size")
    page.fill(f"#mg-{name} input", str(value))
    page.press(f"#mg-{name} input", "Tab")


def set_size(page: Page, width: int, height: int) -> None:
    """Type the video's size."""
    set_field(page, "width", width)
    set_field(page, "height", height)


def set_seed(page: Page, seed: int) -> None:
    """Type the seed."""
    set_field(page, "seed", seed)


def slowly(page: Page) -> None:
    """Twice the steps, so that there is time to steer the small model."""
    page.locator("#mg-quality label", has_text="Quality").click()
    page.wait_for_function("document.querySelector('#mg-quality input:checked').value === 'Quality'")


def generate(page: Page) -> str:
    """Press Generate; the id of the job that the page then shows."""
    before = page.evaluate("magi.attached")
    page.click("#mg-generate")
    return wait_for_another(page, before)


def wait_for_another(page: Page, before: str | None) -> str:
    """Until the page shows another job than `before`; its id."""
    shows = "magi.attached && magi.attached !== before && magi.state.shown && magi.state.shown.id === magi.attached"
    page.wait_for_function(f"before => {shows}", arg=before)
    return page.evaluate("magi.attached")


def wait_for(page: Page, state: str) -> None:
    """Until the shown job is in `state`; fails early if it ends otherwise."""
    page.wait_for_function(
        "s => magi.state.shown && (magi.state.shown.state === s ||"
        " ['finished', 'failed', 'stopped', 'paused', 'interrupted'].includes(magi.state.shown.state))",
        arg=state,
        timeout=PATIENCE,
    )
    shown = page.evaluate("({state: magi.state.shown.state, error: magi.state.shown.error})")
    assert shown["state"] == state, shown


def wait_done(page: Page, seconds: int) -> None:
    """Until that many seconds of the shown job are finished."""
    page.wait_for_function("n => magi.state.shown && magi.state.shown.done >= n", arg=seconds, timeout=PATIENCE)


NO_MACHINE = r"""() => {
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const text = texts.currentNode, told = text.data;
        const kept = told.replace(/[/]\S*[/](models|outputs)\b/g, '$1').replace(/(Linux [\d.]+)-[^,\s]*/, '$1');
        if (kept !== told) text.data = kept;
    } }"""
"""Pictures for readers show a folder's name, not where the tests put it, and no system's own build."""


def shoot(page: Page, name: str) -> None:
    """Keep a screenshot for the README."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    whole = page.locator("dialog[open]").count() == 0
    page.evaluate(NO_MACHINE)
    page.screenshot(path=SHOTS / f"{name}.jpg", type="jpeg", quality=80, full_page=whole)
