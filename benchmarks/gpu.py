"""All that only a GPU can show, in one command: `python benchmarks/gpu.py --out FILE`.

Needs torch, triton, transformers, safetensors, numpy, einops and this repository; no network and no weights: the
full-size 4.5B is built with random ones. Checks every fast path against the plain one, times forwards per size, window,
scheme and attention backend against the card's roofline, compares peak memory with the plan, measures how copies
overlap computation, decodes, and generates three seconds. Ends within 8 minutes: what no longer fits is listed as
skipped.

`--dry` runs every section with tiny models on the CPU, to keep this file honest where there is no card.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_models import key_chunks, relative_error, seconds, stage_inputs
from benchmarks.gpu_setup import TIME_LIMIT, Setup, setup
from magi_lite import devices
from magi_lite.config import SamplerSettings
from magi_lite.dit.attention import available, choose
from magi_lite.planner.speed import forward_flops, tokens_per_chunk
from magi_lite.residency import Residency, move_except
from magi_lite.sampling.kv_store import KVRing
from magi_lite.sampling.results import Caption, CleanChunk
from magi_lite.sampling.sampler import Sampler
from magi_lite.vae.tiling import decode_tiled, to_uint8
from quant.schemes import SCHEMES

# --- sections -------------------------------------------------------------------------------------------------------


def machine(s: Setup) -> dict[str, Any]:
    """The card and its measured rates: matrix products in every type, memory, host-to-device copies."""
    n = 8192 if not s.dry else 256
    a, b = (torch.randn(n, n, device=s.kind).to(s.dtype) for _ in range(2))
    rates = {str(s.dtype).removeprefix("torch."): 2 * n**3 / seconds(lambda: a @ b) / 1e12}
    if s.device.has_fp8:
        x, w, one = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn), torch.ones(1, device=s.kind)
        rates["fp8"] = 2 * n**3 / seconds(
            lambda: torch._scaled_mm(x, w.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
        ) / 1e12
    if not s.dry:
        x, w = (t.to(torch.int8) for t in (a, b))
        rates["int8"] = 2 * n**3 / seconds(lambda: torch._int_mm(x, w.t())) / 1e12
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
        "memory_gbs": 2 * a.numel() * a.element_size() / seconds(lambda: b.copy_(a)) / 1e9,
        "host_to_device_gbs": host.numel() / seconds(lambda: there.copy_(host, non_blocking=True)) / 1e9,
    }


def fast_paths(s: Setup) -> dict[str, Any]:
    """Every fast path against the plain one: relative errors, or whether bits are equal."""
    results: dict[str, Any] = {"quantized_linears": {}, "attention": {}}
    inputs, outputs, rows = (3072, 12288, 4096) if not s.dry else (64, 128, 32)
    x = torch.randn(rows, inputs, device=s.kind).to(s.dtype)
    x[:, 5] *= 30
    for name in s.schemes:
        if name in SCHEMES:
            from quant.convert import quantized_linear

            linear = torch.nn.Linear(inputs, outputs, bias=False, device=s.kind, dtype=s.dtype)
            layer = quantized_linear(linear, SCHEMES[name])
            fast = layer(x)
            layer.backend = "plain"
            exact = (x.double() @ linear.weight.double().t()).float()
            results["quantized_linears"][name] = {
                "fast_against_plain": relative_error(fast, layer(x)),
                "plain_against_exact": relative_error(layer(x), exact),
            }
    heads, groups, width, tokens = (24, 8, 128, 4096) if not s.dry else (4, 2, 16, 64)
    q = torch.randn(1, tokens, heads, width, device=s.kind).to(s.dtype)
    k, v = (torch.randn(1, 2 * tokens, groups, width, device=s.kind).to(s.dtype) for _ in range(2))
    plain = choose("sdpa", s.kind, torch.float32)(q.float(), k.float(), v.float())
    for name in available(s.kind, s.dtype):
        results["attention"][name] = relative_error(choose(name, s.kind, s.dtype)(q, k, v), plain)
    config = replace(s.dit, num_layers=3)
    dit = s.build(s.schemes[-1], config)
    given = stage_inputs(dit, s.sizes[0], 4, s.kind, s.dtype, words=12)
    dit.mlp_slice = dit.attention_slice = None
    whole = dit(**given)
    dit.mlp_slice = dit.attention_slice = 512 if not s.dry else 8
    results["sliced_against_whole"] = relative_error(dit(**given), whole)
    sliced = dit(**given)
    with Residency(s.execution(s.schemes[-1], layers="streamed"), device=s.kind) as home:
        with torch.inference_mode(False):
            home.place_dit(dit)
        results["streamed_equal_bits"] = all(torch.equal(dit(**given), sliced) for _ in range(3))
    with torch.inference_mode(False):
        move_except(dit, [], s.kind)
    for place, kind in (("pinned", "bf16"), ("device", "fp8"), ("pinned", "fp8")):
        kind = "float32" if s.dry and kind == "bf16" else kind
        store = KVRing(given["store"].slots, dtype=kind, place=place, device=s.kind, streams=devices)
        torch.manual_seed(1)
        plain_given = stage_inputs(dit, s.sizes[0], 4, s.kind, s.dtype, words=12)
        torch.manual_seed(1)
        other = stage_inputs(dit, s.sizes[0], 4, s.kind, s.dtype, words=12, store=store)
        results[f"kv_{kind}_{place}"] = relative_error(dit(**other), dit(**plain_given))
    return results


def forwards(s: Setup) -> list[dict[str, Any]]:
    """Seconds, TFLOP/s, share of the roofline and peak memory of one window pass, per scheme, size, window, backend."""
    rows = []
    for scheme in s.schemes:
        if not s.fits(scheme):
            rows.append({"scheme": scheme, "skipped": "does not fit this card"})
            continue
        dit = s.build(scheme)
        for size in s.sizes:
            for window in (1, 4):
                for backend in available(s.kind, s.dtype):
                    expected = s.forward_seconds(s.plan(size, window, s.execution(scheme)))
                    if s.left() < 20 + 4 * expected:
                        rows.append({"scheme": scheme, "size": size, "window": window, "skipped": "out of time"})
                        continue
                    dit.backend = choose(backend, s.kind, s.dtype)
                    rows.append(_forward(s, dit, scheme, size, window, backend))
        del dit
        devices.free_memory()
    return rows


def _forward(s: Setup, dit: Any, scheme: str, size: tuple[int, int], window: int, backend: str) -> dict[str, Any]:
    row: dict[str, Any] = {"scheme": scheme, "size": list(size), "window": window, "attention": backend}
    plan = s.plan(size, window, s.execution(scheme, attention=backend))
    try:
        with devices.peak_memory() as peak:
            given = stage_inputs(dit, size, window, s.kind, s.dtype)
            dit(**given)
        taken = seconds(lambda: dit(**given), budget=2.0, most=5)
    except Exception as error:
        if not devices.is_out_of_memory(error):
            raise
        devices.free_memory()
        return {**row, "skipped": "out of memory", "planned_gb": plan.peak_per_stage["denoise"] / 1e9}
    tokens = tokens_per_chunk(s.dit, *size)
    linear, attention = forward_flops(s.dit, window * tokens, key_chunks(given) * tokens)
    peak_rate = {"fp8": s.device.fp8_tflops, "int8": s.device.int8_tops}.get(scheme) or s.device.bf16_tflops
    ideal = linear / (peak_rate * 1e12) + attention / (s.device.bf16_tflops * 1e12)
    left_out = {"VAE", "latents", "rotary tables", "captions"}  # not there, or smaller, in this pass
    planned = sum(
        i.bytes for i in plan.items if i.stage == "denoise" and i.place == "vram" and i.component not in left_out
    )
    return {
        **row,
        "seconds": taken,
        "tflops": (linear + attention) / taken / 1e12,
        "share_of_roofline": ideal / taken,
        "peak_gb": peak["peak_bytes"] / 1e9,
        "planned_gb": planned / 1e9,
    }


def streaming(s: Setup) -> list[dict[str, Any]]:
    """How far copies of streamed layers overlap computation: 1 is fully hidden."""
    scheme = s.schemes[1]
    dit = s.build(scheme)
    rows = []
    for size in s.sizes[: 3 if not s.dry else 1]:
        given = stage_inputs(dit, size, 1, s.kind, s.dtype)
        rows.append({"scheme": scheme, "size": list(size), "given": given})
        rows[-1]["resident"] = seconds(lambda given=given: dit(**given))
    with Residency(s.execution(scheme, layers="streamed"), device=s.kind) as home:
        with torch.inference_mode(False):
            home.place_dit(dit)
        devices.free_memory()
        packed = home._streamer._packed
        buffer = torch.empty(max(p.size for p in packed), dtype=torch.uint8, device=s.kind)
        copying = seconds(lambda: [p.copy_to(buffer) for p in packed])
        for row in rows:
            given = row.pop("given")
            streamed = seconds(lambda given=given: dit(**given))
            hidden = (row["resident"] + copying - streamed) / min(row["resident"], copying)
            gbs = home._streamer.host_bytes / copying / 1e9
            row.update(streamed=streamed, copying=copying, overlap=hidden, gbs=gbs)
    return rows


def decoding(s: Setup) -> list[dict[str, Any]]:
    """The autoencoder: seconds and peak memory per chunk."""
    vae = s.build_vae()
    rows = []
    for size in s.sizes:
        for tile_batch in (1, 4):
            latents = torch.randn(1, s.vae.z_chans, 6, size[1] // 8, size[0] // 8, device=s.kind)
            work = lambda latents=latents, n=tile_batch: to_uint8(decode_tiled(vae, latents, tile_batch=n))  # noqa: E731
            with devices.peak_memory() as peak:
                work()
            row = {"size": list(size), "tile_batch": tile_batch, "seconds": seconds(work, budget=1.0)}
            rows.append({**row, "peak_gb": peak["peak_bytes"] / 1e9})
    return rows


def generation(s: Setup) -> dict[str, Any]:
    """Three seconds of (meaningless) video, sampler and decoder together, against the plan's promise."""
    scheme, steps, window = s.schemes[1], 8 if not s.dry else 4, 4
    execution = s.execution(scheme)
    for size in reversed(s.sizes[:3]):  # the largest that a third of the time will do
        plan = s.plan(size, window, execution)
        if 6 * plan.seconds_per_chunk < TIME_LIMIT / 3:
            break
    dit, vae = s.build(scheme), s.build_vae()
    words = torch.randn(12, s.dit.caption_channels, device=s.kind)

    def sampler() -> Sampler:
        return Sampler(
            dit, SamplerSettings(steps=steps, window=window), latent_size=(size[1] // 8, size[0] // 8), chunks=3,
            caption=lambda chunk, remaining: Caption(words), null_caption=Caption(words[:4]), device=s.kind,
            dtype=s.dtype,
            store_factory=lambda slots: KVRing(slots, dtype=execution.kv_dtype, device=s.kind, streams=devices),
        )  # fmt: skip

    start, at, finite = time.perf_counter(), [], True
    with devices.peak_memory() as peak:
        for event in sampler().run():
            if isinstance(event, CleanChunk):
                frames = to_uint8(decode_tiled(vae, event.latents)).cpu()
                finite = finite and bool(torch.isfinite(event.latents).all()) and frames.dtype == torch.uint8
                at.append(time.perf_counter() - start)
    planned = max(plan.peak_per_stage["denoise"], plan.peak_per_stage["decode"])
    return {
        "size": list(size), "scheme": scheme, "steps": steps, "window": window, "chunks": len(at), "finite": finite,
        "seconds_at_each_chunk": at, "seconds_in_all": at[-1], "peak_gb": peak["peak_bytes"] / 1e9,
        "planned_gb": planned / 1e9, "planned_seconds_per_chunk": plan.seconds_per_chunk,
    }  # fmt: skip


SECTIONS: dict[str, Callable[[Setup], Any]] = {
    "machine": machine,
    "fast_paths": fast_paths,
    "generation": generation,
    "streaming": streaming,
    "decoding": decoding,
    "forwards": forwards,
}


def run(dry: bool = False) -> dict[str, Any]:
    """All sections; one that fails says why and does not stop the others."""
    s = setup(dry)
    results: dict[str, Any] = {"dry": dry}
    for name, section in SECTIONS.items():
        start = time.perf_counter()
        try:
            if s.left() < 20:
                results[name] = {"skipped": "out of time"}
                continue
            with torch.inference_mode():
                results[name] = section(s)
        except Exception as error:  # a benchmark's job is to report what fails on this card
            results[name] = {"error": f"{type(error).__name__}: {error}"}
        results.setdefault("section_seconds", {})[name] = round(time.perf_counter() - start, 2)
        devices.free_memory()
    return results


def main(argv: list[str] | None = None) -> int:
    """The command; 1 where a section failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the JSON here (default: print it)")
    parser.add_argument("--dry", action="store_true", help="tiny models on the CPU")
    args = parser.parse_args(argv)
    results = run(args.dry)
    text = json.dumps(results, indent=1)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    failed = [name for name in SECTIONS if "error" in results[name] and isinstance(results[name], dict)]
    for name in failed:
        print(f"{name} failed: {results[name]['error']}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
