"""What `gpu.py` asks of copies from host memory: do streamed layers, and pinned keys and values, hide behind work?"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.gpu_models import NO_CARD, slots_of, stage_inputs
from benchmarks.gpu_setup import Setup
from magi_lite.machine import cards, devices
from magi_lite.sampling.kv_store import KVRing
from magi_lite.weights.residency import Residency
from magi_lite.weights.streaming import PinnedMemory

SIZES = (0, 2)
"""Which of the sizes: where copies take longer than the pass, and where they should be hidden."""
COPYING_SECONDS = 3.0
"""What copies and pinning take besides the passes."""


def streaming(s: Setup) -> list[dict[str, Any]]:
    """Passes of window 1 with keys and values, then with layers, on the card and in pinned memory.

    `overlap`: the part of the shorter of pass and copies that ran beside the other; 1 is fully hidden.
    """
    dit = s.build(s.schemes[1])
    sizes = [s.sizes[number] for number in SIZES if number < len(s.sizes)]
    rows = []
    for size in sizes:
        expected = COPYING_SECONDS + 8 * _pass_seconds(s, size)
        for kind in ("bf16", "fp8"):
            row = {"what": "keys and values", "size": list(size), "kv_dtype": kind}
            rows.append(s.attempt(row, expected, partial(keys_and_values, s, dit, size, kind)))
            devices.free_memory()
        row = {"what": "layers", "size": list(size), "scheme": s.schemes[1]}
        rows.append(s.attempt(row, expected, partial(layers, s, dit, size)))
        devices.free_memory()
    return rows


def _pass_seconds(s: Setup, size: tuple[int, int]) -> float:
    return s.forward_seconds(s.plan(size, 1, s.execution(s.schemes[1])))


def keys_and_values(s: Setup, dit: Any, size: tuple[int, int], kind: str) -> dict[str, Any]:
    """The same keys and values on the card and in pinned memory: bits, times and overlap."""
    stored: Any = "float32" if s.dry and kind == "bf16" else kind
    on_card = KVRing(slots_of(1), dtype=stored, device=s.kind)
    given = stage_inputs(dit, size, 1, s.kind, s.dtype, store=on_card)
    wanted = dit(**given)
    resident = s.timed(lambda: dit(**given))
    pinned = KVRing(
        on_card.slots, dtype=stored, place="pinned", device=s.kind, streams=devices,
        host=PinnedMemory(int(cards.PINNED_SHARE * devices.ram_bytes())), layers=dit.config.num_layers,
    )  # fmt: skip
    for layer in range(dit.config.num_layers):
        for chunk in range(on_card.slots):
            pinned.write(layer, chunk, *on_card.read(layer, chunk, chunk + 1))
    given["store"] = pinned
    equal = torch.equal(dit(**given), wanted)
    together = s.timed(lambda: dit(**given))
    copying = s.timed(lambda: _copy(pinned))
    return {"equal_bits": equal, **_overlap(s, resident, copying, together, pinned.host_bytes())}


def _copy(store: KVRing) -> None:
    """All keys and values of a pinned store to the card, one layer after the other."""
    for slots in store._layers.values():
        for target, origin in zip(store._stage[0].tensors(), slots.tensors(), strict=True):
            target.copy_(origin, non_blocking=True)


def layers(s: Setup, dit: Any, size: tuple[int, int]) -> dict[str, Any]:
    """The same layers on the card and streamed to it: bits, times and overlap; they are back on the card afterwards."""
    given = stage_inputs(dit, size, 1, s.kind, s.dtype)
    wanted = dit(**given)
    resident = s.timed(lambda: dit(**given))
    try:
        with Residency(s.execution(s.schemes[1], layers="streamed"), device=s.kind) as home:
            with torch.inference_mode(False):
                home.place_dit(dit)
            devices.free_memory()
            equal = torch.equal(dit(**given), wanted)
            together = s.timed(lambda: dit(**given))
            assert home._streamer is not None
            packed, moved = home._streamer._packed, home._streamer.host_bytes
            buffer = torch.empty(max(part.size for part in packed), dtype=torch.uint8, device=s.kind)
            copying = s.timed(lambda: [part.copy_to(buffer) for part in packed])
    finally:
        with torch.inference_mode(False):
            Residency(s.execution(s.schemes[1]), device=s.kind).place_dit(dit)
    return {"equal_bits": equal, **_overlap(s, resident, copying, together, moved)}


def _overlap(
    s: Setup, resident: dict[str, Any], copying: dict[str, Any], together: dict[str, Any], moved: int
) -> dict[str, Any]:
    """`seconds` of the pass with its copies beside those of either alone."""
    alone, copies, both = resident["seconds"], copying["seconds"], together["seconds"]
    hidden = (alone + copies - both) / min(alone, copies)
    return {
        **together, "resident": alone, "copying": copies, "overlap": NO_CARD if s.dry else hidden,
        "gbs": moved / copies / 1e9,
    }  # fmt: skip
