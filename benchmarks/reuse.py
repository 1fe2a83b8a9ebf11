"""What reuse between steps costs and saves with the shipped demo model: `python benchmarks/reuse.py [--out FILE]`.

Videos of 64 steps are made with every step computed, with reuse low and high, and, to compare, with 32 and 16 steps:
who gives up exactness for time may as well take fewer of them. For each: the chunks that went through the transformer
and the processor's seconds, both as shares of those of 64 steps, and how far frames and latents are from theirs. Peak
signal-to-noise ratios say how far a video is from another, not how good either is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.figures import RESULTS, rounded, save
from magi_lite import pipeline
from magi_lite.dit.model import DiT
from magi_lite.events import ChunkFinished, Finished, PhaseStarted
from magi_lite.pipeline.decoding import psnr
from magi_lite.project import Project
from magi_lite.request.build import build

PROMPTS = (
    "a large red ball moves right in a meadow",
    "a small green box falls in a desert",
    "a large blue car moves left in a town",
)
WAYS: dict[str, dict[str, Any]] = {
    "every step": {"steps": 64},
    "reuse low": {"steps": 64, "reuse": "low"},
    "reuse high": {"steps": 64, "reuse": "high"},
    "32 steps": {"steps": 32},
    "16 steps": {"steps": 16},
}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3, help="of each video")
    parser.add_argument("--size", default="96x96")
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 1])
    parser.add_argument("--prompts", type=int, choices=range(1, len(PROMPTS) + 1), default=len(PROMPTS))
    parser.add_argument("--out", type=Path, default=RESULTS / "reuse.json", help="the results, as JSON")
    asked = parser.parse_args(arguments)
    found = {
        "load_average": os.getloadavg()[0], "size": asked.size, "seconds_of_video": asked.seconds,
        "prompts": list(PROMPTS[: asked.prompts]),
        "windows": {str(w): compare(w, asked.seconds, asked.size, asked.prompts) for w in asked.windows},
    }  # fmt: skip
    print(save(asked.out, rounded(found)))
    return 0


def compare(window: int, seconds: int, size: str, prompts: int) -> dict[str, dict[str, float]]:
    """Every way against every step computed, means over prompts."""
    table: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for seed, prompt in enumerate(PROMPTS[:prompts]):
        whole = None
        for way, asked in WAYS.items():
            made = film(prompt=prompt, seconds=seconds, size=size, window=window, seed=seed, **asked)
            whole = whole or made
            row = {"chunks": made.chunks / whole.chunks, "processor": made.processor / whole.processor}
            if made is not whole:
                error = float(np.linalg.norm(made.latents - whole.latents) / np.linalg.norm(whole.latents))
                row |= {"psnr_db": psnr(made.frames, whole.frames), "latent_error": error}
            table[way].append(row)
    return {way: {name: statistics.mean(row[name] for row in rows) for name in rows[0]} for way, rows in table.items()}


class Film:
    """One video: frames (T, H, W, 3) uint8, its latents, and what it took."""

    frames: np.ndarray
    latents: np.ndarray
    chunks: int
    processor: float


def film(**asked: Any) -> Film:
    """Make a video and count."""
    made, frames, began = Film(), [], 0.0
    with tempfile.TemporaryDirectory() as scratch, counted() as chunks:
        for event in pipeline.generate(build(preset="demo", **asked), projects_folder=Path(scratch)):
            if isinstance(event, PhaseStarted) and event.phase == "denoise":
                began = time.process_time()
            if isinstance(event, ChunkFinished):
                frames.append(event.frames)
            if isinstance(event, Finished):
                made.processor = time.process_time() - began
                with Project.open(event.project) as project:
                    made.latents = np.stack([project.read_latents(i).numpy() for i in range(project.chunks)])
    made.frames, made.chunks = np.concatenate(frames), sum(chunks)
    return made


@contextmanager
def counted() -> Iterator[list[int]]:
    """Of every forward of the transformer in the block, how many chunks went through it."""
    chunks: list[int] = []
    forward = DiT.forward

    def counting(self: DiT, latents: Any, timesteps: Any, *rest: Any, **named: Any) -> Any:
        chunks.append(timesteps.shape[1])
        return forward(self, latents, timesteps, *rest, **named)

    setattr(DiT, "forward", counting)  # noqa: B010
    try:
        yield chunks
    finally:
        setattr(DiT, "forward", forward)  # noqa: B010


if __name__ == "__main__":
    sys.exit(main())
