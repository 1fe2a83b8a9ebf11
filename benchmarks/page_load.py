"""How soon the page can be used, how it answers while a video is made, and how smooth a timeline of 120 blocks is.

`python benchmarks/page_load.py` starts the app on an empty folder and visits it with a Chromium of its own, each time
as a new visitor with an empty cache. Then it asks for a video and for the status all the while, once with the worker
process and once with a thread of the server in its place. Wall times depend on what else the computer does: the load
and the processor time stand beside them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import RESULTS, rounded, save
from benchmarks.server import APP, served, spread, timed_status

RESTING = 40
"""Status calls before anything is made."""
BLOCKS, MOVES = 120, 90
READY = "window.magi && magi.readyAt && (document.querySelector('#mg-plan')?.innerText || '').includes('Needs')"
FRAMES = """() => { window.frames_ms = []; let last = performance.now();
  const next = (now) => { frames_ms.push(now - last); last = now; window.watching && requestAnimationFrame(next); };
  window.watching = true; requestAnimationFrame((now) => { last = now; requestAnimationFrame(next); }); }"""


THREAD = f"""
from magi_lite import pipeline
from magi_lite.workers import fleet
import transformers
_ = transformers.T5EncoderModel, transformers.AutoTokenizer
class InThread(fleet.Fleet):
    def __init__(self, settings, cards=()):
        super().__init__(settings, cards)
        self.projects = settings.projects
    @property
    def runners(self):
        return {{"": lambda job, control: pipeline.generate(
            job.request, control=control, projects_folder=self.projects, resume=job.source, from_chunk=job.from_chunk)}}
fleet.Fleet = InThread
{APP}
"""
"""The app with a thread of the server where a worker process is: what it was before, for comparison."""


def answering(code: str) -> dict[str, float]:
    """Milliseconds of a status call at rest, while a model loads, and while a video is made; the server's memory."""
    with served(code) as app:
        spent = app.process.cpu_times()
        client = app.client()
        calls: dict[str, list[float]] = {"rest": [], "load": [], "denoise": []}
        for _ in range(RESTING):
            timed_status(client, "", calls["rest"])
        options = {"width": 64, "height": 64, "seed": 1}
        job = client.predict("a large red ball moves right", 12, **options, api_name="/generate")["job"]
        while (shown := timed_status(client, job, None))["state"] in ("waiting", "running"):
            timed_status(client, job, calls["denoise" if shown["progress"] else "load"])
        if shown["state"] != "finished":
            raise RuntimeError(f"the video is {shown['state']}: {shown['error']}")
        held = app.process.memory_info().rss / 1e6
    found = {"ready_s": app.ready, "ready_cpu_s": spent.user + spent.system, "server_mb": held}
    return found | {name: figure for kind, times in calls.items() for name, figure in spread(times, kind).items()}


def visit(browser: Browser, address: str) -> dict[str, float]:
    """One new visitor: milliseconds to the first paint, to a living page, to the plan of the settings."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    meter = context.new_cdp_session(page)
    meter.send("Performance.enable")
    page.goto(address, wait_until="commit")
    page.wait_for_function(READY)
    found = page.evaluate(
        """() => { const all = performance.getEntriesByType('resource');
          return { first_paint_ms: performance.getEntriesByName('first-contentful-paint')[0].startTime,
            ready_ms: magi.readyAt, plan_ms: performance.now(), requests: all.length + 1,
            kilobytes: all.reduce((sum, one) => sum + one.encodedBodySize, 0) / 1e3 }; }"""
    )
    spent = {entry["name"]: entry["value"] for entry in meter.send("Performance.getMetrics")["metrics"]}
    context.close()
    return found | {"page_cpu_ms": 1e3 * spent["TaskDuration"]}


def drag_among_blocks(page: Page) -> dict[str, float]:
    """Frame times while one of 120 blocks is dragged through the others with the mouse."""
    page.click("[data-action=text]")
    page.fill(".tl-shorthand", " ".join(f"[{i}s-{i + 1}s: block {i}]" for i in range(BLOCKS)))
    page.wait_for_function(f"document.querySelectorAll('.tl-block').length === {BLOCKS}")
    page.wait_for_timeout(1500)
    block = page.locator(".tl-block").nth(2)
    block.scroll_into_view_if_needed()
    box = block.bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.evaluate(FRAMES)
    for n in range(MOVES):
        page.mouse.move(x + 9 * n, y)
    page.mouse.up()
    frames = sorted(page.evaluate("(watching = false, frames_ms)"))
    return {
        "blocks": BLOCKS, "frames": len(frames), "median_ms": statistics.median(frames),
        "p95_ms": frames[int(0.95 * len(frames))], "worst_ms": frames[-1],
        "share_over_34_ms": sum(one > 34 for one in frames) / len(frames),
    }  # fmt: skip


def measure(visits: int) -> dict[str, Any]:
    """All figures."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    side_by_side = {"worker": answering(APP), "thread": answering(THREAD)}
    with served() as app, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        load = os.getloadavg()[0]
        seen = [visit(browser, app.address) for _ in range(visits)]
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(app.address)
        page.wait_for_function(READY)
        timeline = drag_among_blocks(page)
        browser.close()
    middle = {name: statistics.median(one[name] for one in seen) for name in seen[0]}
    return {
        "cores": os.cpu_count(), "load_average": load, "visits": visits, "median": middle,
        "best_ready_ms": min(one["ready_ms"] for one in seen), "timeline": timeline, "while_working": side_by_side,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--visits", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "page_load.json")
    arguments = parser.parse_args()
    print(save(arguments.out, rounded(measure(arguments.visits))))


if __name__ == "__main__":
    main()
