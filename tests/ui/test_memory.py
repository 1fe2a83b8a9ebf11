"""The memory of the server and its worker over many runs: the real app, the real model, the smallest videos."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from gradio_client import Client

from tests.ui.conftest import PATIENCE, App

ALLOWED = 10e6
"""Bytes that 40 runs may add: a quarter of a megabyte each. A kept network, video or page would be more."""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[App]:
    """An app that nobody used before."""
    server = App(tmp_path).start()
    yield server
    server.stop()


def run(client: Client, count: int) -> None:
    """Make so many videos of one second, one after the other, and look at each as a page would."""
    colours = ("red", "blue", "green", "yellow")
    jobs = [
        client.predict(
            f"a large {colours[n % 4]} ball moves right in a meadow", 1, width=32, height=32, seed=n,
            quality="draft", api_name="/generate",
        )["job"]
        for n in range(count)
    ]  # fmt: skip
    until = time.monotonic() + 3 * PATIENCE / 1000
    for job in jobs:
        while (state := client.predict(job, api_name="/status")["shown"]["state"]) in ("waiting", "running"):
            assert time.monotonic() < until, "the runs take too long"
            time.sleep(0.2)
        assert state == "finished"


def at_rest(process: psutil.Process) -> int:
    """Bytes resident, the least of a second: a job says "finished" a moment before its last buffers are let go."""
    readings = []
    for _ in range(20):
        readings.append(process.memory_info().rss)
        time.sleep(0.05)
    return min(readings)


def test_memory_stays_flat_over_50_runs(own: App) -> None:
    assert own.process
    client, process = Client(own.url, verbose=False), psutil.Process(own.process.pid)
    run(client, 10)  # what is loaded once is loaded now
    (worker,) = (child for child in process.children() if "magi_lite.workers" in " ".join(child.cmdline()))
    before, threads = [at_rest(one) for one in (process, worker)], process.num_threads()
    run(client, 40)
    for name, one, held in zip(("app", "worker"), (process, worker), before, strict=True):
        grown = at_rest(one) - held
        assert grown < ALLOWED, f"{grown / 1e6:.1f} MB more in the {name} after 50 runs than after 10"
    assert process.num_threads() <= threads + 2
