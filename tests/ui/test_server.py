"""The server's process: light, without torch, and answering whatever happens to what makes the videos."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from gradio_client import Client

from tests.loopback import has_version_6
from tests.ui.conftest import PATIENCE, App

LARGEST = 300e6
"""Bytes of RAM that the server may take: Gradio alone takes half of it."""
SMALL = {"width": 32, "height": 32, "quality": "draft"}


def worker_of(app: App) -> psutil.Process | None:
    assert app.process
    children = psutil.Process(app.process.pid).children()
    return next((child for child in children if "magi_lite.workers" in " ".join(child.cmdline())), None)


def wait(client: Client, job: str, *states: str) -> dict[str, object]:
    """A job's detail once it is in one of the states."""
    until = time.monotonic() + PATIENCE / 1000
    while (shown := client.predict(job, api_name="/status")["shown"])["state"] not in states:
        assert time.monotonic() < until, shown
        time.sleep(0.1)
    return shown


def test_it_is_light_and_loads_no_torch(app: App) -> None:
    """After plans, looks at the gallery and models, an upload and a video."""
    assert app.process
    client = Client(app.url, verbose=False)
    job = client.predict("a large red ball moves right", 1, **SMALL, api_name="/generate")["job"]
    wait(client, job, "finished")
    for name in ("gallery", "system", "queue"):
        client.predict(api_name=f"/{name}")
    mapped = Path(f"/proc/{app.process.pid}/maps").read_text()
    assert "libtorch" not in mapped and "bitsandbytes" not in mapped
    assert psutil.Process(app.process.pid).memory_info().rss < LARGEST


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_the_page_outlives_its_worker(app: App, sent: signal.Signals) -> None:
    client = Client(app.url, verbose=False)
    job = client.predict("a large red ball moves right", 300, **SMALL, api_name="/generate")["job"]
    wait(client, job, "running")
    time.sleep(random.uniform(0, 8))
    victim = worker_of(app)
    assert victim is not None
    os.kill(victim.pid, sent)
    shown = wait(client, job, "interrupted")
    assert sent.name in str(shown["error"]) and "Press Resume" in str(shown["error"])
    assert client.predict(api_name="/gallery")["videos"] is not None
    client.predict(job, api_name="/resume")
    wait(client, job, "running")
    client.predict(job, api_name="/stop")
    wait(client, job, "stopped", "finished")
    after = worker_of(app)
    assert after is not None and after.pid != victim.pid


@pytest.mark.parametrize("times", [1, 2])
def test_asked_to_end_while_a_model_loads_it_loses_nothing(tmp_path: Path, times: int) -> None:
    """As a service or a container is ended; asked twice, as by an impatient user, it does not wait."""
    app = App(tmp_path).start()
    assert app.process
    client = Client(app.url, verbose=False)
    job = client.predict("a large red ball moves right", 300, **SMALL, api_name="/generate")["job"]
    wait(client, job, "running")
    time.sleep(random.uniform(0, 3))
    worker = worker_of(app)
    for _ in range(times):
        app.process.send_signal(signal.SIGTERM)
        time.sleep(1)
    app.process.wait(PATIENCE / 1000)
    if worker is not None:
        worker.wait(PATIENCE / 1000)
    app.start()
    client = Client(app.url, verbose=False)
    shown = wait(client, job, "paused", "interrupted")
    client.predict(job, api_name="/resume")
    wait(client, job, "running")
    until = time.monotonic() + PATIENCE / 1000
    while client.predict(job, api_name="/status")["shown"]["done"] <= int(str(shown["done"])):
        assert time.monotonic() < until
        time.sleep(0.2)
    app.stop()


@pytest.mark.skipif(not has_version_6(), reason="this machine has no IPv6")
def test_it_listens_on_addresses_of_version_6(tmp_path: Path) -> None:
    own = App(tmp_path)
    own.url, own.extra = f"http://[::1]:{own.port}/", ["--server", "::1"]
    try:
        own.start()
        assert f"The page is {own.url};" in own.log()
        assert Client(own.url, verbose=False).predict(api_name="/queue")["jobs"] == []
    finally:
        own.stop()
