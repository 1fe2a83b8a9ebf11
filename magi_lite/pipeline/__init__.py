"""From a request to a growing video: `generate` yields the whole run as a stream of events.

Every finished second and the sampler's state at every stage boundary come to the disk in the order in which they are
made, so a run that dies at any moment continues to the same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from magi_lite import planner
from magi_lite.control import RunControl
from magi_lite.errors import OutOfMemory, OutputError
from magi_lite.events import Event, Notice, Opened, PhaseStarted
from magi_lite.files import check_writable
from magi_lite.machine import devices
from magi_lite.request.request import GenerationRequest

if TYPE_CHECKING:
    from magi_lite.pipeline.run import Run

__all__ = ["DEFAULT_PROJECTS", "generate"]

DEFAULT_PROJECTS = Path("outputs")


def generate(
    request: GenerationRequest | None,
    *,
    control: RunControl | None = None,
    projects_folder: Path | None = None,
    resume: Path | None = None,
    from_chunk: int | None = None,
    record: Path | None = None,
) -> Iterator[Event]:
    """Make a video.

    Args:
        request: what to make. With `resume` it may be None (go on as asked for then), or a changed one: more seconds,
            other prompts for seconds not started, or another `out`.
        control: to stop, pause and redirect from another thread.
        projects_folder: where a new run's folder is made.
        resume: the folder of an earlier run, to go on with.
        from_chunk: with `resume`: keep the seconds before this one and make the rest again, in a new project.
        record: a file for what the linears see, to calibrate static FP8 with (`python -m quant --calibration`).

    Yields:
        `events.Event`s; the last one is `Finished` or `Stopped`.

    Raises:
        MagiLiteError: the request, the weights, the memory or the disk do not allow it. Finished seconds are kept.
    """
    from magi_lite.pipeline.prepare import prepare_project  # torch, which a copy of finished seconds needs not wait for
    from magi_lite.pipeline.run import Run

    control = control or RunControl()
    yield PhaseStarted("check", "")
    if record is not None:
        check_writable(record)
    with prepare_project(request, projects_folder or DEFAULT_PROJECTS, resume, from_chunk) as project:
        yield Opened(project.folder, project.video)
        if project.moved and project.chunks:
            yield Notice("Precision or placement differ from those the run began with; a seam may be visible.")
        for sentence in project.notices:
            yield Notice(sentence, "warning")
        try:
            run = Run(project, control, record)
            if sentence := project.free_frames(appending=not run.complete):
                yield Notice(sentence, "warning")
            if run.complete:
                yield run.finished()
                return
            project.set_status("running")
            yield from _with_smaller_plans(run)
        except Exception as error:
            with contextlib.suppress(OutputError):  # on a full disk, that it is full is the error to raise
                project.log(f"failed: {type(error).__name__}: {error}")
                if project.status == "running":  # a finished video stays one, whatever came after it
                    project.set_status("failed", str(error))
            raise


def _with_smaller_plans(run: Run) -> Iterator[Event]:
    """Run; where memory runs out, free it and try the next smaller plan once, from the last stage boundary."""
    from magi_lite.pipeline.engine import meets_a_new_card

    if meets_a_new_card():
        yield PhaseStarted("check", "Trying the attention kernels on this card, once")
    plan = run.make_plan()
    try:
        yield from run.execute(plan)
        return
    except Exception as error:
        place = devices.ran_out(error)
        if place is None:
            raise
        reason = str(error) or type(error).__name__
    run.project.log(f"memory ran out: {reason}")
    devices.free_memory()
    smaller = planner.next_smaller(plan, run.phase, place)
    how = "once more, with memory freed" if smaller is None else "with a smaller plan"
    yield Notice(f"Memory ran out; going on {how}. Finished seconds are kept.", "warning")
    try:
        yield from run.execute(smaller or plan)
        return
    except Exception as error:
        if not devices.is_out_of_memory(error):
            raise
        reason = str(error) or type(error).__name__
    # Raised out here and not from `error`, whose frames would keep what the run held for as long as ours is kept.
    run.project.log(f"memory ran out again: {reason}")
    devices.free_memory()
    raise OutOfMemory("Memory ran out twice; close other programs, or choose a smaller size or window, then resume.")
