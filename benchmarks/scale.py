"""What a finished second costs whoever asked for it: `python benchmarks/scale.py [--size 256] [--out FILE]`.

The demo model makes a video; its files, its events on the wire, and what the server computes for them are counted by
finished second. The desk of a Ray cluster is then given files of that size, and of the size that they have at 720x720
with the published models, to see how many seconds of video it can take in a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import RESULTS, rounded, save
from magi_lite import events, pipeline
from magi_lite.control import RunControl
from magi_lite.jobs import JobQueue
from magi_lite.jobs.job import Job
from magi_lite.request.build import build
from magi_lite.request.json import request_to_json
from magi_lite.workers import wire
from magi_lite.workers.cluster import Desk

LATENT = 16 * 6 * 4 / 64
"""Bytes of a chunk's latents by pixel of the frame: 16 channels, 6 latent frames, an eighth each way, float32."""
WINDOW, KEPT = 4, 4
"""Chunks in the window, and clean ones that a state keeps for keys and values."""
TOKENS, WIDTH = 128, 4096
"""Of a caption: a long prompt's tokens, and the width of T5's embeddings, float32."""
VIDEO_720 = 1_000_000
"""Bytes of a second of ordinary footage at 720x720, H.264 with crf 18; the demo model's plain shapes take a tenth."""
JPEG_720 = 40_000
DELIVERIES = 20


def measure(size: int, seconds: int) -> dict[str, Any]:
    """All figures."""
    request = build(
        prompt="a large red ball moves right", seconds=seconds, size=f"{size}x{size}", preset="demo", seed=1,
        window=WINDOW, quality="draft",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        frames, folder = [], None
        for event in pipeline.generate(request, projects_folder=Path(scratch)):
            if isinstance(event, events.Opened):
                folder = event.project
            if (packed := wire.pack(event)) is not None:
                frames.append(packed)
        assert folder is not None
        files = {
            kind: [path.stat().st_size for path in sorted(folder.glob(pattern))]
            for kind, pattern in (
                ("latents", "chunks/*.safetensors"), ("video", "chunks/*.m4s"), ("picture", "chunks/*.jpg"),
                ("state", "states/*.safetensors"),
            )
        }  # fmt: skip
        sent = sum(len(json.dumps(message)) + len(data) + 8 for message, data in frames)
        previews = [len(data) for message, data in frames if message["event"] == "Preview"]
        here = {kind: max(sizes) for kind, sizes in files.items()}
        large = at_720()
        return {
            "cores": os.cpu_count(), "load_average": os.getloadavg()[0], "size": size, "seconds": seconds,
            "events_per_second_of_video": len(frames) / seconds,
            "wire_bytes_per_second_of_video": sent / seconds,
            "preview_bytes": max(previews, default=0),
            "server_cpu_ms_per_event": server_cost(frames, request, Path(scratch)),
            "bytes": here | {"sum": sum(here.values())},
            "bytes_at_720": large | {"sum": sum(large.values())},
            "desk_ms_per_second": desk_cost(Path(scratch), here),
            "desk_ms_per_second_at_720": desk_cost(Path(scratch), large),
            "desk_ms_per_event": desk_cost(Path(scratch), {}),
        }  # fmt: skip


def at_720() -> dict[str, int]:
    """Bytes of a second's files at 720x720 with T5's captions."""
    latents = int(LATENT * 720 * 720)
    caption = TOKENS * WIDTH * 4
    state = (WINDOW + KEPT) * latents + WINDOW * caption
    return {"latents": latents, "video": VIDEO_720, "picture": JPEG_720, "state": state}


def server_cost(frames: list[tuple[wire.Message, bytes]], request: Any, scratch: Path) -> float:
    """Milliseconds of processor that reading an event off the pipe and keeping the queue takes."""

    def run(job: Job, control: RunControl) -> Iterator[events.Event]:
        for message, data in frames:
            yield wire.unpack(json.loads(json.dumps(message)), data)

    queue = JobQueue(scratch / ".queue", run)
    began = time.process_time()
    queue.start()
    job = queue.add(request)
    while queue.get(job.id).state in ("waiting", "running"):
        time.sleep(0.01)
    spent = time.process_time() - began
    queue.close()
    return 1e3 * spent / len(frames)


def desk_cost(scratch: Path, sizes: dict[str, int]) -> float:
    """Milliseconds in which a cluster's desk takes a second's files and its event; the disk's own pace is in it."""
    desk, took = Desk(str(scratch)), list[float]()
    desk.open("job", request_to_json(build(prompt="x", preset="demo")), None, None)
    name = f"desk-{random.getrandbits(32):x}"
    places = {"latents": "chunks/{:05}.safetensors", "video": "chunks/{:05}.m4s", "picture": "chunks/{:05}.jpg",
              "state": "states/{:05}.safetensors"}  # fmt: skip
    for second in range(DELIVERIES):
        files = {places[kind].format(second): random.randbytes(size) for kind, size in sizes.items()}
        began = time.perf_counter()
        desk.deliver("job", name, files, [], ({"event": "ChunkFinished", "chunk": second}, b""))
        took.append(1e3 * (time.perf_counter() - began))
    desk.close("job")
    return statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS / "scale.json")
    arguments = parser.parse_args()
    print(save(arguments.out, rounded(measure(arguments.size, arguments.seconds))))


if __name__ == "__main__":
    main()
