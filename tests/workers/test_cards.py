"""Several cards: a worker each, jobs to whichever is free. Two workers on the processor stand in for two cards."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from magi_lite.cli import app
from magi_lite.errors import InputError
from magi_lite.machine import devices
from magi_lite.machine.cards import known_card
from magi_lite.planner import learned
from magi_lite.ui.machine import Machine
from magi_lite.ui.machine import _time as spoken
from magi_lite.workers.__main__ import visible
from tests.jobs.test_queue import eventually
from tests.workers.conftest import PATIENCE, Studio, request


def test_two_cards_work_side_by_side_and_one_may_die(studio: Callable[..., Studio]) -> None:
    here = studio(cards=(0, 1))
    queue = here.queue
    queue.set_paused(True)
    jobs = [queue.add(request(f"number {n}", 6, seed=n)).id for n in range(4)]
    tied = queue.add(request("tied", 1)).id
    queue.tie(tied, "0")
    queue.set_paused(False)
    eventually(lambda: len(queue.running_jobs) == 2, PATIENCE)
    eventually(lambda: all(queue.get(job.id).done >= 1 for job in queue.running_jobs.values()), PATIENCE)
    assert here.pid("0") not in (None, here.pid("1"))
    queue.resume(kill_in_the_middle(here, "1"))
    eventually(lambda: all(job.state == "finished" for job in queue.jobs()), 2 * PATIENCE)
    assert len({tuple(here.latents(job)) for job in jobs}) == 4


def kill_in_the_middle(here: Studio, card: str) -> str:
    """Kill a card's worker while it makes a video; which one. One that ended before the signal came was no victim."""
    while True:
        running, pid = here.queue.running_jobs.get(card), here.pid(card)
        if running is None or pid is None:
            time.sleep(0.005)
            continue
        os.kill(pid, signal.SIGKILL)
        ended = functools.partial(lambda job: here.queue.get(job).state in ("interrupted", "finished"), running.id)
        eventually(ended, PATIENCE)
        if here.queue.get(running.id).state == "interrupted":
            return running.id


def test_the_forecast_counts_the_start_of_a_worker_that_is_not_there(
    studio: Callable[..., Studio], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "FILE", tmp_path / "speeds.json")
    here = studio()
    machine = Machine(tmp_path / "models", fleet=here.fleet)

    def said() -> list[str]:
        return [note for note in machine.plan(request())["notes"] if "a worker starts" in note]

    assert said() == ["Before the first picture a worker starts, which takes 3.0 s."]  # as usual
    began = time.monotonic()
    job = here.queue.add(request(seconds=1)).id
    eventually(lambda: here.queue.get(job).state == "finished", PATIENCE)
    assert 0 < learned.start() < time.monotonic() - began and not said()
    eventually(lambda: here.fleet.free() == 1, PATIENCE)  # once it has nothing to do
    monkeypatch.setattr(learned, "USUAL_START", 0.0)
    took = learned.start()
    assert took and said() == [f"Before the first picture a worker starts, which takes {spoken(took)}."]
    with_start = machine.plan(request())["sentence"]
    monkeypatch.setattr(learned, "start", lambda: 600.0)
    assert "first picture after 10 min" in machine.plan(request())["sentence"] != with_start


def test_which_cards_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [known_card("RTX 4090"), known_card("RTX 3090")]
    monkeypatch.setattr(devices, "cards", lambda: cards)
    assert app.chosen_cards(None) == [] and app.chosen_cards("all") == [0, 1] and app.chosen_cards("1,0") == [0, 1]
    for asked, said in (("2", "no card 2; this computer has 0 .*4090.*, 1 .*3090"), ("x", "takes all, or numbers")):
        with pytest.raises(InputError, match=said):
            app.chosen_cards(asked)
    monkeypatch.setattr(devices, "cards", list)
    assert app.chosen_cards("all") == []
    with pytest.raises(InputError, match="has none"):
        app.chosen_cards("0")


def test_a_worker_sees_its_card_alone() -> None:
    assert [visible(card, "") for card in (0, 3)] == ["0", "3"]
    assert [visible(card, "5, GPU-8f") for card in (0, 1)] == ["5", "GPU-8f"]  # numbers count what the user left


def test_a_process_without_torch_is_told_of_cards_by_another(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "from magi_lite.machine import devices\n"
        "devices.cuda_driver = lambda: True\n"  # so that it asks, also where there is no card
        "print(devices.detect().kind, devices.cards() == [], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = devices.detect()
    assert done.stdout.split() == [here.kind, str(here.kind == "cpu"), "False"]
