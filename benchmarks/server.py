"""The app on an empty folder, as benchmarks start it and ask it for its status."""

from __future__ import annotations

import contextlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from gradio_client import Client

ROOT = Path(__file__).resolve().parents[1]
APP = "import sys; from magi_lite.cli import main; sys.exit(main(['app', *sys.argv[1:]]))"
SMALL = {"width": 32, "height": 32, "quality": "draft"}
"""The demo model at its fastest."""


@dataclass(frozen=True)
class Served:
    """The app while it runs: its address, its process, the seconds until it answered, and its folder of runs."""

    address: str
    process: psutil.Process
    ready: float
    projects: Path

    def client(self) -> Client:
        """One that calls its API."""
        return Client(self.address, verbose=False, httpx_kwargs={"timeout": 120})  # a thread can starve the server

    def workers(self) -> list[psutil.Process]:
        """Its worker processes."""
        children = self.process.children()
        return [child for child in children if "magi_lite.workers" in " ".join(_command(child))]


@contextlib.contextmanager
def served(code: str = APP) -> Iterator[Served]:
    """The app for the block; it is ended afterwards as Ctrl-C ends it.

    Args:
        code: what runs it, in place of the app itself.
    """
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, "--port", str(port), "--projects", f"{folder}/outputs"]
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            address = f"http://127.0.0.1:{port}/"
            while process.poll() is None:
                with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
                    break
                time.sleep(0.05)
            else:
                raise RuntimeError("the app did not start; run `python app.py` to see why")
            yield Served(address, psutil.Process(process.pid), time.monotonic() - began, Path(folder) / "outputs")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def timed_status(client: Client, job: str, times: list[float] | None) -> dict[str, Any]:
    """One status call, its milliseconds added to `times`; what it says of the job."""
    began = time.perf_counter()
    answer: dict[str, Any] = client.predict(job, api_name="/status")
    if times is not None:
        times.append(1e3 * (time.perf_counter() - began))
    return answer.get("shown", {})


def wait(client: Client, job: str, *states: str, patience: float = 600.0) -> dict[str, Any]:
    """What the status says of a job once it is in one of the states."""
    until = time.monotonic() + patience
    while (shown := timed_status(client, job, None)).get("state") not in states:
        if time.monotonic() > until:
            raise TimeoutError(f"a job stayed {shown.get('state')}: {shown.get('error')}")
        time.sleep(0.1)
    return shown


def spread(times: Sequence[float], name: str) -> dict[str, float]:
    """Median, 95th percentile, worst and number of figures in milliseconds."""
    ordered = sorted(times) or [float("nan")]
    return {
        f"{name}_median_ms": statistics.median(ordered), f"{name}_p95_ms": ordered[int(0.95 * len(ordered))],
        f"{name}_worst_ms": ordered[-1], f"{name}_calls": len(times),
    }  # fmt: skip


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
