"""How the app bears the death of its workers: `python benchmarks/worker_deaths.py [--kills 24] [--out FILE]`.

A video is made once unbroken. Then it is made again while its worker is killed again and again, at random moments, with
SIGKILL, SIGSEGV and SIGABRT in turn; each time Resume is pressed. All the while another program asks for the status.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import RESULTS, latents, rounded, save
from benchmarks.server import SMALL, Served, served, spread, timed_status, wait
from magi_lite.project import Project

SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)
PROMPT = "a large red ball moves right"
SECONDS = 8
"""Of the video."""
PATIENCE = 120.0
"""Seconds in which the last worker may end after the app."""
ENDED = ("finished", "failed", "stopped", "paused", "interrupted")


class Attack:
    """Jobs that are killed at random moments and resumed, until so many kills are given and all is finished."""

    def __init__(self, app: Served, client: Any, kills: int, latest: float) -> None:
        self.app, self.client, self.kills, self.latest = app, client, kills, latest
        self.given, self.finished, self.lost, self.set_aside = 0, 0, 0, 0
        self.pids: set[int] = set()
        self.sentences: dict[str, int] = {}

    def make(self, job: str) -> str:
        """Make one job to its end; the name of its run."""
        made = 0
        while True:
            shown = wait(self.client, job, "running", *ENDED)
            while shown["state"] == "running" and not self.app.workers():
                time.sleep(0.05)
                shown = timed_status(self.client, job, None)
            if self.given < self.kills and shown["state"] == "running":
                self._kill(job)
            shown = wait(self.client, job, *ENDED)
            if shown["state"] in ("interrupted", "failed"):
                name = next((one.name for one in SIGNALS if one.name in shown["error"]), "other")
                self.sentences[name] = self.sentences.get(name, 0) + 1
                self.set_aside += shown["state"] == "failed"
            if shown["project"]:
                there = Project.open(self.app.projects / shown["project"]).chunks
                self.lost += max(0, made - there)
                made = max(made, there)
            if shown["state"] == "finished":
                return shown["project"]
            self.client.predict(job, api_name="/resume")

    def _kill(self, job: str) -> None:
        time.sleep(random.uniform(0, self.latest))
        running = timed_status(self.client, job, None)["state"] == "running"
        for worker in self.app.workers():
            self.pids.add(worker.pid)
            if running:
                with contextlib.suppress(psutil.Error):
                    worker.send_signal(SIGNALS[self.given % len(SIGNALS)])
                    self.given += 1


def measure(kills: int) -> dict[str, Any]:
    """All figures; `bits_equal`, `in_order`, `seconds_lost` and `orphans` say whether all was well."""
    with served() as app:
        client = app.client()
        ask = {**SMALL, "seed": 5, "api_name": "/generate"}
        unbroken = client.predict(PROMPT, SECONDS, **ask)["job"]
        shown = wait(client, unbroken, *ENDED)
        whole = latents(app.projects / shown["project"])
        answers, asking = list[float](), threading.Event()
        asker = threading.Thread(target=_keep_asking, args=(app, unbroken, answers, asking))
        asker.start()
        attack = Attack(app, client, kills, latest=shown["took"])  # loading, making and saving are all hit
        behind, began = list[str](), time.monotonic()
        equal, rounds = True, 0
        try:
            while attack.given < kills:
                job = client.predict(PROMPT, SECONDS, **ask)["job"]
                behind.append(client.predict(f"behind, {rounds}", 1, **ask)["job"])
                equal &= latents(app.projects / attack.make(job)) == whole
                rounds += 1
            ends = [wait(client, one, *ENDED) for one in behind]
        finally:
            asking.set()
            asker.join()
        took = time.monotonic() - began
        attack.pids |= {worker.pid for worker in app.workers()}
    until = time.monotonic() + PATIENCE
    while (left := [pid for pid in attack.pids if _lives(pid)]) and time.monotonic() < until:
        time.sleep(0.2)
    return {
        "cores": os.cpu_count(), "load_average": os.getloadavg()[0], "kills": attack.given, "videos": rounds,
        "sentences": attack.sentences, "set_aside": attack.set_aside, "seconds_lost": attack.lost, "bits_equal": equal,
        "in_order": _made_in_order(ends), "orphans": len(left), "took_s": took, **spread(answers, "answer"),
    }  # fmt: skip


def _keep_asking(app: Served, job: str, answers: list[float], end: threading.Event) -> None:
    client = app.client()
    while not end.is_set():
        timed_status(client, job, answers)
        time.sleep(0.1)


def _made_in_order(ends: list[dict[str, Any]]) -> bool:
    """Whether jobs that waited were all made, one after the other."""
    moments = [one["started"] for one in ends]
    return all(one["state"] == "finished" for one in ends) and moments == sorted(moments)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--out", type=Path, default=RESULTS / "worker_deaths.json")
    arguments = parser.parse_args()
    print(save(arguments.out, rounded(measure(arguments.kills))))


if __name__ == "__main__":
    main()
