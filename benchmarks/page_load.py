"""How soon the page can be used, and how smooth the timeline is with 120 blocks: `python benchmarks/page_load.py`.

Starts the app on an empty folder and visits it with a Chromium of its own, each time as a new visitor with an empty
cache. Wall times depend on what else the computer does: the load and the page's own processor time stand beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
BLOCKS, MOVES = 120, 90
READY = "window.magi && magi.readyAt && document.querySelector('#mg-plan').innerText.includes('Needs')"
FRAMES = """() => { window.frames_ms = []; let last = performance.now();
  const next = (now) => { frames_ms.push(now - last); last = now; window.watching && requestAnimationFrame(next); };
  window.watching = true; requestAnimationFrame((now) => { last = now; requestAnimationFrame(next); }); }"""


@contextlib.contextmanager
def app() -> Iterator[str]:
    """The app's address while it runs."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "app.py", "--port", str(port), "--projects", f"{folder}/outputs"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            address = f"http://127.0.0.1:{port}/"
            while process.poll() is None:
                with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
                    break
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            process.wait()


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
    with app() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        load = os.getloadavg()[0]
        seen = [visit(browser, address) for _ in range(visits)]
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(address)
        page.wait_for_function(READY)
        timeline = drag_among_blocks(page)
        browser.close()
    middle = {name: statistics.median(one[name] for one in seen) for name in seen[0]}
    return {
        "cores": os.cpu_count(), "load_average": load, "visits": visits, "median": middle,
        "best_ready_ms": min(one["ready_ms"] for one in seen), "timeline": timeline,
    }  # fmt: skip


def rounded(value: Any) -> Any:
    """Figures with as many digits as they deserve."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return round(value, 2) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--visits", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "page_load.json")
    arguments = parser.parse_args()
    text = json.dumps(rounded(measure(arguments.visits)), indent=1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
