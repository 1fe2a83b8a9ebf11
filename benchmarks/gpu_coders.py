"""What `gpu.py` asks of the text encoder and the autoencoder: seconds, peak memory beside the plan's, and errors."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_models import relative_error
from benchmarks.gpu_setup import Setup
from magi_lite.machine import devices
from magi_lite.pipeline.decoding import encode_pixels
from magi_lite.planner import shapes, vram_limit
from magi_lite.planner.activations import encode_activation_bytes, item_size, text_activation_bytes
from magi_lite.text.encoder import PromptEncoder
from magi_lite.vae.tiling import decode_tiled, to_uint8

PROMPT_TOKENS = (60, 800)
"""An ordinary prompt, and the longest."""
TEXT_SECONDS, FRAMES_SECONDS = 10.0, 5.0
"""What a row may take on a slow card."""


class NumberedPrompts(PromptEncoder):
    """Gives any prompt the ids 0, 1, 2, ...: nothing is cleaned, which takes packages that nothing else here needs."""

    def tokenize(self, prompt: str) -> list[int]:
        return torch.arange(self.max_length).remainder(self.model.config.vocab_size).tolist()


def encoding(s: Setup) -> dict[str, Any]:
    """T5 in the precisions that a plan may choose for a card, and pictures and clips through the autoencoder."""
    short = replace(s, dtype=torch.bfloat16)  # in the dry mode, too
    text = [
        s.attempt({"scheme": kind}, TEXT_SECONDS, lambda kind=kind: _text(short, kind)) for kind in ("bf16", "int8")
    ]
    devices.free_memory()
    vae = s.build_vae()
    frames = [
        s.attempt(
            {"size": list(size), "frames": count}, FRAMES_SECONDS,
            lambda size=size, count=count: _frames(s, vae, size, count),
        )
        for size in dict.fromkeys((s.sizes[0], s.sizes[-1]))
        for count in (1, 24)
    ]  # fmt: skip
    return {"text": text, "frames": frames}


def _text(s: Setup, kind: str) -> dict[str, Any]:
    """Prompts through the whole encoder, and through two blocks against the processor in float32."""
    execution: Any = s.execution("bf16", t5=kind)
    weights = shapes.t5_bytes(s.t5, kind)
    planned = [(weights + text_activation_bytes(s.t5, tokens, execution)) / 1e9 for tokens in PROMPT_TOKENS]
    if not s.dry and planned[0] * 1e9 > vram_limit(s.device):
        return {"skipped": "does not fit this card", "planned_gb": planned}
    devices.free_memory()
    results: dict[str, Any] = {"two_blocks_error": _text_error(s, kind)}
    model = s.build_t5(kind)
    for tokens, promised in zip(PROMPT_TOKENS, planned, strict=True):
        encoder = NumberedPrompts(model, None, tokens, s.kind)
        with devices.peak_memory() as peak:
            encoder.encode(["a prompt"])
        taken = s.timed(lambda encoder=encoder: encoder.encode(["a prompt"]))
        results[f"{tokens}_tokens"] = {**taken, "peak_gb": peak["peak_bytes"] / 1e9, "planned_gb": promised}
    return results


def _text_error(s: Setup, kind: str) -> float:
    """How far two blocks here are from the same numbers on the processor in float32."""
    here = s.build_t5(kind, replace(s.t5, layers=2))
    with torch.inference_mode(False):
        exact = copy.deepcopy(here).to("cpu").float()
    found, wanted = (
        NumberedPrompts(model, None, PROMPT_TOKENS[0], device).encode(["a prompt"])[0].cpu()
        for model, device in ((here, s.kind), (exact, "cpu"))
    )
    return relative_error(found, wanted)


def _frames(s: Setup, vae: Any, size: tuple[int, int], count: int) -> dict[str, Any]:
    """A picture or a second of a clip, from host memory as a run has them, to latents."""
    execution = s.execution("bf16")
    pixels = np.random.default_rng(0).integers(0, 256, (count, size[1], size[0], 3), dtype=np.uint8)
    with devices.peak_memory() as peak:
        encode_pixels(vae, pixels, s.kind)
    taken = s.timed(lambda: encode_pixels(vae, pixels, s.kind), budget=1.0)
    weights = sum(shapes.vae_weights(s.vae)) * item_size(execution)
    planned = weights + encode_activation_bytes(s.vae, *size, count, execution)
    return {**taken, "peak_gb": peak["peak_bytes"] / 1e9, "planned_gb": planned / 1e9}


def decoding(s: Setup) -> list[dict[str, Any]]:
    """The autoencoder's other half: seconds and peak memory per chunk."""
    vae = s.build_vae()
    return [
        s.attempt(
            {"size": list(size), "tile_batch": tile_batch}, FRAMES_SECONDS,
            lambda size=size, tile_batch=tile_batch: _decoded(s, vae, size, tile_batch),
        )
        for size in s.sizes
        for tile_batch in (1, 4)
    ]  # fmt: skip


def _decoded(s: Setup, vae: Any, size: tuple[int, int], tile_batch: int) -> dict[str, Any]:
    latents = torch.randn(1, s.vae.z_chans, 6, size[1] // 8, size[0] // 8, device=s.kind)

    def work() -> torch.Tensor:
        return to_uint8(decode_tiled(vae, latents, tile_batch=tile_batch))

    with devices.peak_memory() as peak:
        work()
    return {**s.timed(work, budget=1.0), "peak_gb": peak["peak_bytes"] / 1e9}
