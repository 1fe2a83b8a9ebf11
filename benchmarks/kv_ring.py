"""What the ring of clean chunks saves against keeping every chunk's keys and values in host memory.

`python benchmarks/kv_ring.py [--out FILE]`

Counted, not timed: bytes at the published 4.5B size in bf16, 720x720, and bytes copied to the device per forward,
where the published program copies all past chunks in every layer of every pass. Then measured, with small stores: the
CPU time of a layer's read from the ring, and of gathering a range out of a store that keeps all, at second 100.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.figures import RESULTS, save
from magi_lite.models import CHUNK_LATENT_FRAMES, DIT_4_5B, PIXELS_PER_LATENT, SamplerSettings
from magi_lite.sampling.kv_store import KVRing
from magi_lite.sampling.schedule import Schedule

SIDE = 720
SECONDS = (10, 100, 10_000)
PAST, TOKENS, LAYERS = 100, 216, 2
"""Chunks kept, tokens of a chunk (96x96 pixels) and layers of the measured stores."""


def chunk_bytes(side: int = SIDE, bytes_per_number: int = 2) -> int:
    """Keys and values of one chunk in all layers of the 4.5B model."""
    tokens = CHUNK_LATENT_FRAMES * (side // PIXELS_PER_LATENT // DIT_4_5B.patch_size) ** 2
    return tokens * 2 * DIT_4_5B.num_query_groups * DIT_4_5B.head_dim * DIT_4_5B.num_layers * bytes_per_number


def counted() -> list[dict[str, Any]]:
    """Gigabytes held, and moved to the device for one forward, by window and length."""
    rows = []
    for window in (1, 2, 4):
        slots = Schedule(SamplerSettings(window=window)).reach
        for seconds in SECONDS:
            rows.append(
                {
                    "window": window,
                    "seconds": seconds,
                    "ring_gb": round(slots * chunk_bytes() / 1e9, 3),
                    "everything_gb": round(seconds * chunk_bytes() / 1e9, 3),
                    "ratio": round(seconds / slots, 1),
                    "copied_per_forward_gb": {
                        "ring on the device": 0.0,
                        "ring in host memory": round(slots * chunk_bytes() / 1e9, 3),
                        "everything in host memory": round((seconds - 1) * chunk_bytes() / 1e9, 3),
                    },
                }
            )
    return rows


class KeepsAll:
    """Every chunk of every layer; a read gathers its range, as from a store indexed by chunk."""

    def __init__(self) -> None:
        self.chunks: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, chunk: int, key: Tensor, value: Tensor) -> None:
        self.chunks[layer, chunk] = (key.clone(), value.clone())

    def read(self, layer: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        pairs = [self.chunks[layer, chunk] for chunk in range(first, last)]
        return torch.cat([pair[0] for pair in pairs], 1), torch.cat([pair[1] for pair in pairs], 1)

    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for pair in self.chunks.values() for t in pair)


def seconds_of(work: Callable[[], Any]) -> float:
    """CPU seconds of this thread."""
    began = time.thread_time()
    work()
    return time.thread_time() - began


def measured(repeats: int) -> dict[str, Any]:
    """Reads of the last four chunks after `PAST` seconds, ring and full store taking turns."""
    ring, everything = KVRing(4), KeepsAll()
    shape = (1, TOKENS, DIT_4_5B.num_query_groups, DIT_4_5B.head_dim)
    for chunk in range(PAST):
        pair = (torch.full(shape, float(chunk)), torch.full(shape, -float(chunk)))
        for layer in range(LAYERS):
            for store in (ring, everything):
                store.write(layer, chunk, *pair)

    def read(store: KVRing | KeepsAll) -> None:
        for layer in range(LAYERS):
            store.read(layer, PAST - 4, PAST)

    turns = [(seconds_of(lambda: read(ring)), seconds_of(lambda: read(everything))) for _ in range(repeats + 1)][1:]
    ring_ms, full_ms = (1000 * statistics.median(turn[i] for turn in turns) / LAYERS for i in (0, 1))
    return {
        "past_chunks": PAST,
        "bytes_ratio": round(everything.bytes() / ring.bytes(), 1),
        "read_ms_per_layer": {"ring": round(ring_ms, 4), "everything": round(full_ms, 4)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "kv_ring.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {
        "machine": f"{platform.machine()} CPU, one thread, torch {torch.__version__}",
        "counted": {"size": f"{SIDE}x{SIDE}, 4.5B, bf16", "rows": counted()},
        "measured": measured(arguments.repeats),
    }
    save(arguments.out, result)
    print(json.dumps(result["measured"], indent=1))


if __name__ == "__main__":
    main()
