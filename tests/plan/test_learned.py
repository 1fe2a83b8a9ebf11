"""Times of this machine, learned from what it did; and the RAM that a processor's plan may take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from magi_lite import planner
from magi_lite.clock import Clock
from magi_lite.errors import PlanError
from magi_lite.machine import devices
from magi_lite.machine.cards import GIB, cpu_device
from magi_lite.planner import learned
from magi_lite.planner.plan import Plan
from magi_lite.request.request import GenerationRequest, Overrides
from magi_lite.timeline.text import parse

REQUEST = GenerationRequest(parse("[0s-4s: a]"), 4, width=256, height=256, steps=8, window=1, model="4.5B-distill")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 GiB, of which all is free, that has done nothing yet."""
    monkeypatch.setattr(learned, "FILE", tmp_path / "data" / "speeds.json")
    machine = replace(cpu_device(64 * GIB), free_bytes=64 * GIB)
    monkeypatch.setattr(devices, "detect", lambda: machine)


def made(request: GenerationRequest = REQUEST) -> Plan:
    return planner.plan(request, "auto")


def ran(plan: Plan, seconds_per_step: float, steps: int = 17) -> None:
    """A run of so many steps by a clock that shows what it is told to."""
    now = [0.0]
    clock = Clock(now=lambda: now[0])
    for step in range(1, steps + 1):
        now[0] += seconds_per_step if step > 1 else 1000  # the first one is slow, and does not count
        clock.step(step)
    learned.learn(plan, clock)


def test_a_plan_promises_what_the_machine_has_shown() -> None:
    before = made()
    assert before.measured == 1 and not any("measured here" in note for note in before.notes)
    ran(before, 3.0)
    after = made()
    assert after.seconds_per_chunk == pytest.approx(8 * 3.0)
    assert after.measured == pytest.approx(24 / before.seconds_per_chunk)
    assert "The time for a second of video was measured here." in after.notes
    ran(after, 12.0)  # a slow afternoon: half way, in factors
    assert made().seconds_per_chunk == pytest.approx(8 * 6.0)
    assert made(replace(REQUEST, width=1024, height=512)).measured == 1, "another size is not known"
    assert made(replace(REQUEST, seconds=9, seed=4)).measured == pytest.approx(made().measured)
    another = cpu_device(64 * GIB)
    assert planner.plan(REQUEST, "auto", another).measured == 1, "another machine"
    assert planner.plan(REQUEST, "auto", another, here=True).measured == made().measured, "this one, found before"


def test_a_plan_promises_the_loading_that_the_machine_has_shown() -> None:
    before = made()
    assert 0 < before.time_to_load < before.time_to_first_chunk and before.measured_load == 1
    learned.learn_load(before, 60.0)
    after = made()
    assert after.time_to_load == pytest.approx(60)
    assert after.measured_load == pytest.approx(60 / before.time_to_load)
    steps = before.time_to_first_chunk - before.time_to_load
    assert after.time_to_first_chunk == pytest.approx(60 + steps)
    assert after.measured == 1 and after.seconds_per_chunk == before.seconds_per_chunk, "the pace is not known by it"
    learned.learn_load(after, 15.0)  # the system still had the files in memory: half way, in factors
    assert made().time_to_load == pytest.approx(30)
    other = made(replace(REQUEST, width=512, height=512, steps=16))
    assert other.time_to_load == pytest.approx(30), "the same weights, whatever is made of them"
    in_four_bits = made(replace(REQUEST, overrides=Overrides(scheme="nf4")))
    assert in_four_bits.measured_load == 1, "which are read and converted"


def test_pace_and_loading_are_learned_apart() -> None:
    before = made()
    ran(before, 3.0)
    learned.learn_load(made(), 7.0)
    after = made()
    steps = (before.time_to_first_chunk - before.time_to_load) * after.measured
    assert after.time_to_first_chunk == pytest.approx(7 + steps)
    learned.learn_load(after, 0.0)
    learned.learn_load(after, 1e9)
    assert made() == after, "a broken clock says nothing"


def test_a_worker_starts_as_the_last_one_did() -> None:
    assert learned.start() == learned.USUAL_START
    ran(made(), 3.0)
    for seconds in (4.0, 7.5, -1.0, 1e9, float("nan")):
        learned.learn_start(seconds)
    assert learned.start() == 7.5
    assert made().seconds_per_chunk == pytest.approx(24), "and nothing else is forgotten"


def test_too_little_work_and_broken_clocks_teach_nothing() -> None:
    ran(made(), 3.0, steps=8)
    ran(made(), 0.0)
    ran(made(), 1e9)
    assert made().measured == 1 and not learned.file().exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"a": "b"}', b'{"a": NaN, "b": -1, "c": 1e300, "d": true}', b"[" * 9999],
)
def test_a_damaged_file_is_ignored_and_written_anew(content: bytes) -> None:
    learned.file().parent.mkdir()
    learned.file().write_bytes(content)
    assert made().measured == 1
    ran(made(), 3.0)
    assert made().seconds_per_chunk == pytest.approx(24)
    assert len(json.loads(learned.file().read_bytes())) == 1


def test_a_folder_that_cannot_be_written_costs_nothing() -> None:
    learned.file().parent.write_bytes(b"a file")
    ran(made(), 3.0)
    assert made().measured == 1


def test_old_entries_go() -> None:
    learned.file().parent.mkdir()
    learned.file().write_text(json.dumps({str(n): 2.0 for n in range(400)}))
    ran(made(), 3.0)
    kept = list(json.loads(learned.file().read_text()))
    assert len(kept) == learned.MOST and kept[0] == "145" and kept[-1].startswith("CPU, 4.5B-distill, ")


def test_a_processor_plans_with_the_ram_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = made().peak_ram_bytes
    scheme = made().execution.scheme
    tight = replace(cpu_device(64 * GIB), free_bytes=needed - 1)
    smaller = planner.plan(REQUEST, "auto", tight)
    assert smaller.peak_ram_bytes < needed and smaller.execution != made().execution, scheme
    with pytest.raises(PlanError, match=r"of RAM, of 64\.0 GB 1\.0 GB are free now"):
        planner.plan(REQUEST, "auto", replace(tight, free_bytes=GIB))


def test_a_run_that_left_out_steps_teaches_no_pace() -> None:
    ran(made(replace(REQUEST, steps=16, reuse="low")), 0.001, steps=40)
    assert made(replace(REQUEST, steps=16)).measured == 1
    ran(made(replace(REQUEST, steps=16)), 3.0, steps=40)
    assert made(replace(REQUEST, steps=16)).measured != 1
