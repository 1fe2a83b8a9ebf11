"""What writing and decoding beside the steps do to a run without a card: `python benchmarks/overlap.py [--out FILE]`.

The demo model makes the same video three ways in turn: everything between the steps, as a run without a card does it;
writing beside them; decoding and writing beside them. Each round compares them under the same load, and the order
changes from round to round. Seconds are those from the first step to the end; latents must be the same bits. On a
machine that others use, more threads get more of it, and the ratios flatter what runs beside: the processor's own
seconds tell whether there is any more work, and only a quiet machine whether it ends sooner.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.figures import RESULTS, latents, rounded, save
from magi_lite import pipeline
from magi_lite.events import Finished, PhaseStarted
from magi_lite.pipeline.engine import Engine
from magi_lite.request.build import build

WAYS = {"between": (False, False), "writing beside": (True, False), "decoding and writing beside": (True, True)}
"""Whether seconds are written, and whether they are decoded, while the next steps compute."""


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="times each way is measured, beside one to warm up")
    parser.add_argument("--seconds", type=int, default=6, help="of video")
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--out", type=Path, default=RESULTS / "overlap.json", help="the results, as JSON")
    asked = parser.parse_args(arguments)
    if asked.rounds < 1:
        parser.error("--rounds must be at least 1.")
    print(save(asked.out, rounded(measure(asked.rounds, asked.seconds, asked.size))))
    return 0


def measure(rounds: int, seconds: int, size: str) -> dict[str, Any]:
    """All rounds; a ratio is a way's seconds over those of "between" in the same round."""
    torch.set_num_threads(os.cpu_count() or 1)  # as in a run, whatever the environment says
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    worked: dict[str, list[float]] = {way: [] for way in WAYS}
    made: set[bytes] = set()
    for number in range(rounds + 1):
        order = list(WAYS)[:: 1 if number % 2 else -1]
        for way in order:
            took, work, bits = one(way, seconds, size)
            made.add(bits)
            if number:  # the first round reads files and fills caches
                taken[way].append(took)
                worked[way].append(work)
    assert len(made) == 1, "the ways differ in their latents"
    return {
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "size": size,
        "seconds_of_video": seconds,
        "seconds": taken,
        "processor_seconds": worked,
        "median_ratio": against_between(taken),
        "median_processor_ratio": against_between(worked),
    }


def against_between(times: dict[str, list[float]]) -> dict[str, float]:
    """The median over rounds of a way's time over that of "between" in the same round."""
    base = times["between"]
    return {
        way: statistics.median(here / there for here, there in zip(found, base, strict=True))
        for way, found in times.items()
        if way != "between"
    }


def one(way: str, seconds: int, size: str) -> tuple[float, float, bytes]:
    """Seconds of a run's denoising, to its end, those that the processor worked for it, and its latents."""
    writes, decodes = WAYS[way]
    before = Engine.writes_beside, Engine.decodes_beside
    request = build(
        prompt="a large red ball moves right", seconds=seconds, size=size, preset="demo", seed=1, window=1,
        quality="draft",
    )  # fmt: skip
    start, end = (0.0, 0.0), (0.0, 0.0)
    setattr(Engine, "writes_beside", property(lambda self: writes))  # noqa: B010
    setattr(Engine, "decodes_beside", property(lambda self: decodes))  # noqa: B010
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for event in pipeline.generate(request, projects_folder=Path(scratch)):
                if isinstance(event, PhaseStarted) and event.phase == "denoise":
                    start = time.perf_counter(), time.process_time()
                if isinstance(event, Finished):
                    end = time.perf_counter(), time.process_time()
                    bits = b"".join(latents(event.project))
            return end[0] - start[0], end[1] - start[1], bits
    finally:
        setattr(Engine, "writes_beside", before[0])  # noqa: B010
        setattr(Engine, "decodes_beside", before[1])  # noqa: B010


if __name__ == "__main__":
    sys.exit(main())
