"""What this machine did, against what plans promised: a factor for each device, model, precision and size.

Beside them: the same of loading, and how long a worker took to start. Kept as one small JSON file in the user's folder.
It says nothing about choices, only how long what was chosen took: a plan made here then promises that. What cannot be
read is as if it were not there, and is written anew.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from magi_lite.clock import Clock
from magi_lite.kept import data_file, read_entries, write_entries
from magi_lite.planner.plan import Plan
from magi_lite.planner.speed import tokens_per_chunk

FILE: Path | None = None
"""Where it is kept; None: in the user's folder for this program's data."""
MOST = 256
"""Entries that are kept, the newest."""
SLOWEST = 1000.0
"""A factor beyond this, or below its inverse, is a mistake of somebody's clock."""

START = "start of a worker, seconds"
"""The key of the one entry that is no factor."""
USUAL_START = 3.0
"""Seconds in which Python and torch are loaded, where it was not measured yet."""


def file() -> Path | None:
    """The file, or None where the user has no folder."""
    return FILE or data_file("speeds.json")


def learn(plan: Plan, clock: Clock) -> None:
    """Remember how long a second of a run's video took; a run of less than a second says nothing.

    Args:
        plan: what the run followed.
        clock: of its denoising steps, which sees decoding and writing pass between them.
    """
    per_chunk = plan.request.steps // max(1, plan.window)
    if plan.request.reuse != "off":  # steps that compute nothing say nothing of others
        return
    if clock.steps_measured < per_chunk or clock.seconds_per_step is None:
        return
    _remember(_key(plan), clock.seconds_per_step * per_chunk / (plan.seconds_per_chunk / plan.measured))


def learn_load(plan: Plan, seconds: float) -> None:
    """Remember how long it took until a run's prompts were encoded and its weights were in place.

    Args:
        plan: what the run followed.
        seconds: all of it; a run whose prompts were encoded before says nothing.
    """
    _remember(_load_key(plan), seconds / (plan.time_to_load / plan.measured_load))


def _remember(key: str, factor: float) -> None:
    path = file()
    if path is None or not 1 / SLOWEST < factor < SLOWEST:
        return
    known = _known()
    before = known.pop(key, factor)
    known[key] = math.sqrt(before * factor)  # neither one slow afternoon nor the first run decides alone
    write_entries(path, known, MOST)


def learn_start(seconds: float) -> None:
    """Remember how long a worker took from its start until it could take a job."""
    if (path := file()) is not None and 1 / SLOWEST < seconds < SLOWEST:
        known = _known()
        known.pop(START, None)
        write_entries(path, known | {START: seconds}, MOST)


def start() -> float:
    """Seconds that a worker will take to start: as long as the last one."""
    return _known().get(START, USUAL_START)


def applied(plan: Plan) -> Plan:
    """A plan for this machine with the times that it has shown, if it has made anything of the kind."""
    known = _known()
    pace, load = known.get(_key(plan)), known.get(_load_key(plan), 1.0)
    steps = plan.time_to_first_chunk - plan.time_to_load
    plan = replace(
        plan,
        time_to_first_chunk=plan.time_to_load * load + steps * (pace or 1.0),
        time_to_load=plan.time_to_load * load,
        measured_load=load,
    )
    if pace is None:
        return plan
    return replace(
        plan,
        seconds_per_chunk=plan.seconds_per_chunk * pace,
        measured=pace,
        notes=(*plan.notes, "The time for a second of video was measured here."),
    )


def _key(plan: Plan) -> str:
    """What runs of equal pace have in common; sizes count in steps of half an octave."""
    tokens = tokens_per_chunk(plan.model, plan.request.width, plan.request.height)
    size = round(2 * math.log2(max(1, tokens)))
    execution = plan.execution
    made = f"{plan.device.name}, {plan.model.name}, {execution.scheme} {execution.layers}, {size}, {plan.window}"
    made += "" if plan.device.kernels else ", without kernels"
    return f"{made}, {plan.device.bf16_tflops:.3g} TFLOP/s"  # a factor is against what was promised at that rate


def _load_key(plan: Plan) -> str:
    """What runs have in common that read the same weights in the same way."""
    execution = plan.execution
    return (
        f"loading on {plan.device.name}, {plan.model.name}, {execution.scheme} {execution.layers}, "
        f"text encoder {execution.t5} on {execution.t5_device}"
    )


def _known() -> dict[str, float]:
    return {
        key: float(value)
        for key, value in read_entries(file()).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and 1 / SLOWEST < value < SLOWEST
    }
