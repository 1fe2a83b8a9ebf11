"""What `gpu.py` asks first: what is installed, which fast paths work, whether results are right."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from typing import Any

import torch

from benchmarks.gpu_models import relative_error
from benchmarks.gpu_setup import Setup
from magi_lite import attention, fused
from magi_lite.machine import devices
from magi_lite.vae.tiling import decode_tiled, encode_tiled
from quant import gate
from quant.fp8 import faster_row_scales, row_scales_missing
from quant.kinds import FP8

PACKAGES = ("torch", "triton", "triton-windows", "bitsandbytes", "flash-attn", "sageattention", "transformers")
ASKED = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "power.draw", "temperature.gpu")
"""What the driver's own tool is asked."""


def versions(s: Setup) -> dict[str, Any]:
    """Packages, driver, clocks and power, free memory: what a report of this machine needs."""
    found: dict[str, Any] = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    if not s.dry:
        found["card"] = devices.identity(0)
        found["free_bytes"], found["total_bytes"] = devices.memory_info() or (0, 0)
        found["segments_grow"] = devices.grow_segments()
    found["driver"] = _asked_of_the_driver()
    return found


def _asked_of_the_driver() -> dict[str, str] | str:
    if shutil.which("nvidia-smi") is None:
        return "nvidia-smi is not here"
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"
    return dict(zip(ASKED, (value.strip() for value in done.stdout.split(",")), strict=False))


def probes(s: Setup) -> dict[str, Any]:
    """Every fast path: whether it works here, and if not, why."""
    results: dict[str, Any] = {}

    def put(name: str, ask: Callable[[], str | None], **more: Any) -> None:
        try:
            problem = ask() or ""
        except Exception as error:  # a probe's job is to report it
            problem = f"{type(error).__name__}: {error}"
        results[name] = {"works": not problem, "reason": problem, **more}

    for name in attention.available(s.kind, s.dtype):
        trial = attention.trial_of(name, s.kind, str(s.dtype).removeprefix("torch."))
        put(f"attention {name}", lambda trial=trial: trial.fault, speedup=trial.speedup)
        if name == "sage" and not trial.fault:
            put("attention sage, ranges shared", lambda: shared_fault(s))
    put("fused attention of torch", lambda: attention.choose("sdpa", s.kind, s.dtype).notice)
    results["attention chosen"] = attention.choose("auto", s.kind, s.dtype).name
    if s.dry:
        return results
    from magi_lite import kernels as layer_kernels
    from quant import kernels

    card, width = torch.device(s.kind, 0), s.dit.hidden_size
    put("triton", lambda: gate.triton_problem(0))
    for kind in (torch.int8, *([FP8] if s.device.has_fp8 else [])):
        for formula in (None, "layer_norm", "gelu"):
            features = s.dit.ffn_hidden_size if formula == "gelu" else width
            put(
                f"quantization {kind} {formula}",
                lambda k=kind, f=formula, n=features: gate.disagreement(kernels, card, n, k, s.dtype, f),
            )
    for product in (torch.int32, s.dtype):
        put(f"scaling of products {product}", lambda p=product: gate.product_disagreement(card, p, s.dtype))
    head, rotated = s.dit.head_dim, 6 * (s.dit.head_dim // 8)
    heads = {"rotated": (head, rotated, torch.float32), "of cross attention": (head, 0, s.dtype)}
    heads["of the autoencoder"] = (s.vae.embed_dim // s.vae.num_heads, 0, None)
    for name, (width_of_head, table, weights) in heads.items():
        put(
            f"norms of heads {name}",
            lambda n=width_of_head, t=table, w=weights: fused.heads_disagreement(
                layer_kernels, card, s.dtype, w, n, t
            ),
        )
    put("gated residuals", lambda: fused.residual_disagreement(layer_kernels, card, s.dtype, s.dtype, width))
    if s.device.has_fp8:
        put("FP8 row scales", lambda: row_scales_missing(0, True))
        results["FP8 row scales chosen"] = faster_row_scales(0)
    return results


def shared_fault(s: Setup) -> str:
    """Why SageAttention does not quantize keys and values once for the ranges that share them; empty: it does."""
    if not attention.may_share(s.kind):
        return "this card has another kernel"
    return attention.trial_of(attention.SHARED, s.kind, str(s.dtype).removeprefix("torch.")).fault


def reference(s: Setup) -> dict[str, Any]:
    """Three layers and a tile of the autoencoder in 16 bits on this device against the processor in float32."""
    s = replace(s, dtype=torch.bfloat16)  # in the dry mode, too: else the same would be compared with the same
    dit = s.build("bf16", replace(s.dit, num_layers=3))
    config, side = dit.config, 32 if not s.dry else 8
    latents = torch.randn(1, config.latent_channels, 6, side, side)
    captions = torch.randn(1, 12, config.caption_channels)

    def velocity(model: Any, device: str, dtype: torch.dtype) -> torch.Tensor:
        context = model.encode_captions(captions.to(device, dtype))
        times = torch.full((1, 1), 0.4, device=device)
        return model(latents.to(device), times, context, first_chunk=0, kv_ranges=((0, 1),), step_size=4.0).cpu()

    found = velocity(dit, s.kind, s.dtype)
    with torch.inference_mode(False):
        exact = copy.deepcopy(dit).to("cpu").to_precision(torch.float32)
    results = {"three_layers_error": relative_error(found, velocity(exact, "cpu", torch.float32))}
    vae = s.build_vae()
    tile = torch.randn(1, s.vae.z_chans, 3, side // 2, side // 2)
    pixels = decode_tiled(vae, tile.to(s.kind)).float().cpu()
    with torch.inference_mode(False):
        exact_vae = copy.deepcopy(vae).to("cpu", torch.float32)
    results["tile_error"] = relative_error(pixels, decode_tiled(exact_vae, tile).float())
    frames = torch.rand(1, 3, 4, 4 * side, 4 * side) * 2 - 1
    encoded = encode_tiled(vae, frames.to(s.kind)).cpu()
    results["encoded_tile_error"] = relative_error(encoded, encode_tiled(exact_vae, frames))
    return results
