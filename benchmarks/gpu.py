"""All that only a GPU can show, in one command: `python benchmarks/gpu.py --out FILE`.

Needs torch, triton, transformers, safetensors, numpy, psutil and this repository (bitsandbytes for NF4); no network
and no weights: the full-size 4.5B is built with random ones. First what a report needs (`gpu_first.py`):
versions, every fast path as works or not and why, and a reference on the processor. Then the planned pass at 720x720
with its dearest kernels, against the plan and the priced operations (`gpu_planned.py`); one generation with decoding,
between the steps and beside them; every attention kernel and fast path against the plain one (`gpu_checks.py`);
streamed layers and pinned keys and values with their overlap (`gpu_overlap.py`); Windows's paths (`gpu_windows.py`);
slices; text encoder and autoencoder (`gpu_coders.py`); the processor's share of a small pass; and passes in every
scheme and at other sizes. Ends in less than 8 minutes: what no longer fits is listed as skipped, and what hangs is cut
off. The file is written after every section, so that whatever happens later, what was measured is there.

`--dry` runs every section with tiny models on the CPU, to keep this file honest where there is no card.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import gpu_checks, gpu_coders, gpu_first, gpu_overlap, gpu_planned, gpu_windows
from benchmarks.gpu_models import RANGES, key_chunks, stage_inputs
from benchmarks.gpu_setup import LAST_SECOND, TIME_LIMIT, Setup, pass_bytes, setup
from magi_lite.attention import available, choose
from magi_lite.machine import devices
from magi_lite.models import SamplerSettings
from magi_lite.pipeline.background import InOrder
from magi_lite.pipeline.engine import Engine
from magi_lite.planner.execution import Execution
from magi_lite.planner.speed import forward_flops, tokens_per_chunk
from magi_lite.sampling.kv_store import KVRing
from magi_lite.sampling.results import Caption, CleanChunk
from magi_lite.sampling.sampler import Sampler
from magi_lite.weights.residency import Residency

ROWS, CHUNKS = 3, 3
"""Of the generation: ways, and seconds of video of each."""
GENERATION_SECONDS = 60.0
"""What it may take: decides its size."""

# --- sections -------------------------------------------------------------------------------------------------------


def machine(s: Setup) -> dict[str, Any]:
    """The card and its measured rates: matrix products in every type, memory, host-to-device copies."""
    n = 8192 if not s.dry else 256

    def measure(work: Callable[[], Any]) -> float:
        return s.timed(work)["seconds"]

    a, b = (torch.randn(n, n, device=s.kind).to(s.dtype) for _ in range(2))
    rates = {str(s.dtype).removeprefix("torch."): 2 * n**3 / measure(lambda: a @ b) / 1e12}
    if s.device.has_fp8:
        x, w, one = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn), torch.ones(1, device=s.kind)
        rates["fp8"] = 2 * n**3 / measure(
            lambda: torch._scaled_mm(x, w.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
        ) / 1e12
    if not s.dry:
        x, w = (t.to(torch.int8) for t in (a, b))
        rates["int8"] = 2 * n**3 / measure(lambda: torch._int_mm(x, w.t())) / 1e12
    host = torch.empty(n * n * 2, dtype=torch.uint8, pin_memory=not s.dry)
    there = torch.empty_like(host, device=s.kind)
    return {
        "device": s.device.name,
        "vram_gb": round(s.device.vram_gb, 2),
        "capability": list(s.device.capability),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "attention_backends": list(available(s.kind, s.dtype)),
        "measured_tflops": rates,
        "data_sheet_tflops": {"bf16": s.device.bf16_tflops, "fp8": s.device.fp8_tflops, "int8": s.device.int8_tops},
        "memory_gbs": 2 * a.numel() * a.element_size() / measure(lambda: b.copy_(a)) / 1e9,
        "host_to_device_gbs": host.numel() / measure(lambda: there.copy_(host, non_blocking=True)) / 1e9,
    }


def passes(s: Setup) -> list[dict[str, Any]]:
    """The window passes that matter most: the largest size, windows 4 and 1, every scheme, one after the other."""
    return _forwards(s, [s.sizes[-1]], ["auto"])


def more_passes(s: Setup) -> list[dict[str, Any]]:
    """The other sizes, and the other attention kernels."""
    others = [name for name in available(s.kind, s.dtype) if name != choose("auto", s.kind, s.dtype).name]
    if s.dry:
        return _forwards(s, list(s.sizes), ["sdpa"], s.schemes[:1])
    rows = _forwards(s, list(s.sizes[:-1]), ["auto"])
    return rows + (_forwards(s, [s.sizes[0], s.sizes[-1]], others, s.schemes[1:2]) if others else [])


def _forwards(
    s: Setup, sizes: list[tuple[int, int]], backends: list[str], schemes: tuple[str, ...] | None = None
) -> list[dict[str, Any]]:
    """Seconds, TFLOP/s, share of the roofline and peak memory of one window pass each."""
    rows: list[dict[str, Any]] = []
    for scheme in schemes or s.schemes:
        built: list[Any] = []  # the transformer, once a pass needs it
        for size in reversed(sizes):
            for window in (4, 1):
                for name in backends:
                    row = {"scheme": scheme, "size": list(size), "window": window}
                    if s.fits(scheme, size, window):
                        runs = 4 if window == 4 else 12
                        expected = runs * s.forward_seconds(s.plan(size, window, s.execution(scheme)))
                        work = partial(_forward, s, built, scheme, size, window, name)
                        rows.append(s.attempt(row, expected, work))
                    else:
                        rows.append({**row, "skipped": "does not fit this card"})
                    devices.free_memory()
        built.clear()
        devices.free_memory()
    return rows


def _forward(
    s: Setup, built: list[Any], scheme: str, size: tuple[int, int], window: int, kernel: str
) -> dict[str, Any]:
    dit = built[0] if built else s.build(scheme)
    built[:] = [dit]
    dit.backend = choose(kernel, s.kind, s.dtype)
    plan = s.plan(size, window, s.execution(scheme, attention=dit.backend.name))
    with devices.peak_memory() as peak:
        given = stage_inputs(dit, size, window, s.kind, s.dtype)
        dit(**given)
    spread = s.timed(lambda: dit(**given), budget=6.0, most=6)
    taken = spread["seconds"]
    tokens = tokens_per_chunk(s.model(), *size)
    linear, attention = forward_flops(s.dit, window * tokens, key_chunks(given) * tokens)
    peak_rate = {"fp8": s.device.fp8_tflops, "int8": s.device.int8_tops}.get(scheme) or s.device.bf16_tflops
    ideal = linear / (peak_rate * 1e12) + attention / (s.device.bf16_tflops * 1e12)
    return {
        "attention": dit.backend.name,
        **spread,
        "steps_seconds_per_chunk": plan.request.steps / len(RANGES) * _all_ranges(s, dit, given, window, taken),
        "planned_seconds_per_chunk": plan.seconds_per_chunk,
        "roofline_seconds": ideal,
        "tflops": (linear + attention) / taken / 1e12,
        "share_of_roofline": ideal / taken,
        "peak_gb": peak["peak_bytes"] / 1e9,
        "reserved_gb": peak["reserved_bytes"] / 1e9,
        "planned_gb": pass_bytes(plan) / 1e9,
    }


def _all_ranges(s: Setup, dit: Any, given: dict[str, Any], window: int, taken: float) -> float:
    """Seconds of the passes that take a chunk once through all ranges: one of window 4, or four of window 1."""
    if window == len(RANGES):
        return taken
    end = given["kv_ranges"][0][1]
    reaches = [((max(0, end - back), end),) for back in RANGES]
    return sum(s.timed(lambda r=r: dit(**{**given, "kv_ranges": r}), budget=1.0, most=4)["seconds"] for r in reaches)


def generation(s: Setup) -> list[dict[str, Any]]:
    """Three seconds of (meaningless) video, sampler and decoder together, against the plan's promise.

    In window 4 with decoding between the steps and beside them, which must give the same frames; then in window 1.
    """
    scheme = s.schemes[1]
    for size in reversed(s.sizes):
        if ROWS * CHUNKS * s.chunk_seconds(s.plan(size, 4, s.execution(scheme))) < GENERATION_SECONDS:
            break
    dit, vae = s.build(scheme), s.build_vae()
    rows: list[dict[str, Any]] = []
    for window, beside in ((4, False), (4, True), (1, False)):
        execution = s.execution(scheme, decode_beside=beside)
        expected = (CHUNKS + 1) * s.chunk_seconds(s.plan(size, window, execution))
        row = {"size": list(size), "window": window}
        rows.append(s.attempt(row, expected, partial(_generation, s, dit, vae, execution, size, window)))
        devices.free_memory()
    sums = [row.pop("frames", None) for row in rows]
    if sums[0] and sums[1]:
        rows[1] |= {
            "equal_frames": sums[0] == sums[1],
            "against_between": rows[1]["seconds_per_chunk"] / rows[0]["seconds_per_chunk"],
        }
    return rows


def _generation(
    s: Setup, dit: Any, vae: Any, execution: Execution, size: tuple[int, int], window: int
) -> dict[str, Any]:
    steps = 8 if not s.dry else 4
    plan = s.plan(size, window, execution, seconds=CHUNKS)
    torch.manual_seed(0)  # the same video whoever asks
    caption = torch.randn(12, s.dit.caption_channels, device=s.kind)
    sampler = Sampler(
        dit, SamplerSettings(steps=steps, window=window), latent_size=(size[1] // 8, size[0] // 8), chunks=CHUNKS,
        caption=lambda chunk, remaining: Caption(caption), null_caption=Caption(caption[:4]), device=s.kind,
        dtype=s.dtype,
        store_factory=lambda slots: KVRing(slots, dtype=execution.kv_dtype, device=s.kind, streams=devices),
    )  # fmt: skip
    start, at, finite, sums = time.perf_counter(), [], True, []

    def second(decode: Callable[[], np.ndarray]) -> None:
        sums.append(hashlib.sha256(decode().tobytes()).hexdigest())
        at.append(time.perf_counter() - start)

    with devices.peak_memory() as peak, Residency(execution) as home, InOrder() as thread:
        home.place_vae(vae)
        side = devices.new_stream(s.kind) if execution.decode_beside else None
        networks = Engine(None, execution, dit, home, side=side)  # type: ignore[arg-type]
        for event in sampler.run():
            if isinstance(event, CleanChunk):
                list(thread.results(wait=True))
                finite = finite and bool(torch.isfinite(event.latents).all())
                thread.put(partial(second, networks.decoding(event.latents)), beside=execution.decode_beside)
        list(thread.results(wait=True))
    planned = max(plan.peak_per_phase["denoise"], plan.peak_per_phase["decode"])
    return {
        "size": list(size), "scheme": execution.scheme, "steps": steps, "window": window, "chunks": len(at),
        "decoding": "beside" if execution.decode_beside else "between", "finite": finite, "frames": sums,
        "seconds_at_each_chunk": at, "seconds_per_chunk": at[-1] / len(at), "peak_gb": peak["peak_bytes"] / 1e9,
        "reserved_gb": peak["reserved_bytes"] / 1e9, "planned_gb": planned / 1e9,
        "planned_seconds_per_chunk": plan.seconds_per_chunk,
    }  # fmt: skip


SECTIONS: dict[str, Callable[[Setup], Any]] = {
    "versions": gpu_first.versions,
    "probes": gpu_first.probes,
    "reference": gpu_first.reference,
    "planned": gpu_planned.planned,
    "generation": generation,
    "attention": gpu_checks.attention,
    "transformer": gpu_checks.transformer,
    "streaming": gpu_overlap.streaming,
    "windows": gpu_windows.windows,
    "slices": gpu_planned.slices,
    "encoding": gpu_coders.encoding,
    "host": gpu_planned.host,
    "machine": machine,
    "linears": gpu_checks.linears,
    "quantization": gpu_checks.quantization,
    "decoding": gpu_coders.decoding,
    "passes": passes,
    "more_passes": more_passes,
}
"""In the order of their worth: the clock stops the last ones first."""
AT_MOST = {
    "planned": 120.0, "generation": GENERATION_SECONDS, "streaming": 50.0, "windows": 40.0, "slices": 45.0,
    "encoding": 30.0, "host": 25.0, "decoding": 20.0,
}  # fmt: skip
"""Seconds after which a section begins nothing more, so that those behind it get their turn on a slow card, too."""


def run(dry: bool = False, written: Callable[[dict[str, Any]], None] = lambda results: None) -> dict[str, Any]:
    """All sections; one that fails says why and does not stop the others. `written` is called after each."""
    s = setup(dry)
    results: dict[str, Any] = {"dry": dry, "section_seconds": {}}
    for name, section in SECTIONS.items():
        start = time.perf_counter()
        try:
            if not s.affords(0.0):
                results[name] = {"skipped": "out of time"}
            else:
                torch.manual_seed(0)
                with torch.inference_mode():
                    results[name] = section(s.within(AT_MOST.get(name, TIME_LIMIT)))
        except Exception as error:  # a benchmark's job is to report what fails on this card
            where = traceback.format_exc(limit=-4).splitlines()
            results[name] = {"error": f"{type(error).__name__}: {error}", "where": where}
        results["section_seconds"][name] = round(time.perf_counter() - start, 2)
        written(results)
        try:
            devices.free_memory()
        except RuntimeError as error:  # a kernel that broke the card's context: what follows will say so, too
            results[name] = {"result": results[name], "error": f"afterwards: {error}"}
    return results


def _give_up(out: Path | None) -> None:
    """End the process where a section hangs or takes far longer than the plan says: a card's work cannot be stopped."""
    where = f"; {out} holds the sections before" if out else ""
    print(f"A section did not end within {LAST_SECOND:.0f} s{where}.", file=sys.stderr, flush=True)
    os._exit(1)


def main(argv: list[str] | None = None) -> int:
    """The command; 1 where a section failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the JSON here, after every section (default: print it)")
    parser.add_argument("--dry", action="store_true", help="tiny models on the CPU")
    args = parser.parse_args(argv)
    if args.dry:
        torch.set_num_threads(1)  # tiny models gain nothing from more

    def write(results: dict[str, Any]) -> None:
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            unfinished = args.out.with_name(args.out.name + ".unfinished")
            unfinished.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            unfinished.replace(args.out)
        done = list(results["section_seconds"].items())[-1]
        print(f"{done[0]}: {done[1]:.1f} s", file=sys.stderr, flush=True)

    watch = threading.Timer(LAST_SECOND, _give_up, [args.out])
    watch.daemon = True
    watch.start()
    try:
        results = run(args.dry, write)
    finally:
        watch.cancel()
    write(results)
    if not args.out:
        print(json.dumps(results, indent=1))
    failed = [name for name in SECTIONS if isinstance(results[name], dict) and "error" in results[name]]
    for name in failed:
        print(f"{name} failed: {results[name]['error']}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
