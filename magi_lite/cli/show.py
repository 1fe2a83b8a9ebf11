"""A run on the terminal: progress to stderr, the video's name to stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from magi_lite.events import ChunkFinished, Event, Finished, Notice, PhaseStarted, PlanReady, Progress, Stopped
from magi_lite.machine.cards import GIB
from magi_lite.planner import Plan
from magi_lite.sentences import count
from quant.errors import one_line

if TYPE_CHECKING:
    from tqdm import tqdm

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells know it."""


def show(events: Iterator[Event]) -> int:
    """Print a run: what is decided, a progress bar, finished seconds as they come, the video's name at the end.

    Returns the exit code: 130 for a video that was stopped before its end; an endless one has no other.
    """
    from tqdm import tqdm

    bar, endless = None, False
    try:
        for event in events:
            match event:
                case PlanReady(plan=plan):
                    endless = plan.request.seconds is None
                    print(_plan_sentence(plan), file=sys.stderr)
                case PhaseStarted(detail=detail) if detail:
                    print(one_line(detail), file=sys.stderr)
                case Notice(message=message, level=level):
                    print(f"{level}: {one_line(message)}", file=sys.stderr)
                case Progress():
                    if bar is None:  # a bar without a total is false
                        bar = tqdm(total=None, unit="step", file=sys.stderr, bar_format="{desc} {bar} {elapsed}")
                    _advance(bar, event)
                case ChunkFinished(chunk=chunk, frames=frames, seconds_taken=taken):
                    made = count(len(frames), "frame")
                    tqdm.write(f"{chunk}s-{chunk + 1}s is finished: {made} in {taken:.1f} s", file=sys.stderr)
                case Finished(video=video):
                    print(video)
                case Stopped(video=video, reason=reason, chunks=chunks):
                    print(f"{reason} after {count(chunks, 'finished second')}", file=sys.stderr)
                    if video:
                        print(video)
                    return 0 if endless else INTERRUPTED
    finally:
        if bar is not None:
            bar.close()
    return 0


def _plan_sentence(plan: Plan) -> str:
    """The plan in a line."""
    on_card = plan.execution.device == "cuda"
    used = plan.needed_vram_bytes if on_card else plan.peak_ram_bytes
    where = plan.device.name if on_card else "CPU"
    return (
        f"{plan.model.name}, {plan.request.width}x{plan.request.height}, {plan.execution.scheme}, "
        f"window {plan.window} on {where}: {used / GIB:.1f} GB, "
        f"about {plan.seconds_per_chunk:.1f} s for a second of video"
    )


def _advance(bar: tqdm[Any], progress: Progress) -> None:
    """Move the bar to where the run is, with the time that is left in words."""
    left = "" if progress.eta_seconds is None else f", {clock(progress.eta_seconds)} left"
    of = "" if progress.chunks is None else f"/{progress.chunks}"
    bar.set_description_str(
        f"second {progress.chunk + 1}{of}, step {progress.step}/{progress.steps}{left}", refresh=False
    )
    if progress.fraction is not None:
        bar.total, bar.n = 1000, int(progress.fraction * 1000)
    bar.refresh()


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
