"""The full-size pipeline on fake tensors: what a plan's execution really takes, stage by stage.

Everything is the program's own: the transformer with its quantized layers, streamed or resident; the KV ring; the
autoencoder's tiles; transformers' T5. Only the numbers are absent.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from magi_lite import planner
from magi_lite.config import CHUNK_LATENT_FRAMES, SamplerSettings
from magi_lite.dit.model import DiT
from magi_lite.planner import memory
from magi_lite.planner.speed import tokens_per_chunk
from magi_lite.sampling.kv_store import KVRing
from magi_lite.sampling.schedule import Schedule
from magi_lite.vae.model import ViTVAE
from magi_lite.vae.tiling import decode_tiled, encode_tiled, to_uint8
from magi_lite.weights.loader import quantizable
from magi_lite.weights.residency import Residency
from quant.convert import convert_, quantized_linear
from quant.schemes import SCHEMES
from tests.plan.fake_memory import CARD, LiveBytes, card


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def compute_dtype(plan: planner.Plan) -> torch.dtype:
    return torch.bfloat16 if plan.execution.dtype == "bfloat16" else torch.float32


def build_dit(plan: planner.Plan, device: torch.device) -> DiT:
    """The transformer as the loader makes it: the right types, the right layers quantized."""
    execution, dtype = plan.execution, compute_dtype(plan)
    with default_dtype(dtype), device:
        dit = DiT(plan.model.dit)
    dit.to_precision(dtype)
    if execution.scheme in SCHEMES:
        convert_(dit, SCHEMES[execution.scheme], quantizable(plan.model.dit))
    dit.mlp_slice, dit.attention_slice = execution.mlp_slice, execution.attention_slice
    return dit.eval()


def denoise_and_decode(plan: planner.Plan, explain: bool = False) -> tuple[dict[str, int], LiveBytes]:
    """Peak card bytes of both stages: window passes that read a full store, and the decoding of a chunk beside it."""
    request, execution, window = plan.request, plan.execution, plan.window
    height, width = request.height // 8, request.width // 8
    dtype, channels = compute_dtype(plan), plan.model.dit.latent_channels
    settings = SamplerSettings(steps=request.steps, window=window)
    schedule = Schedule(settings, 0, request.seconds)
    warm_up(execution.scheme)
    peaks = {}
    with card(explain) as counter, Residency(execution, pin=False, device=CARD) as home:
        host = torch.device("cpu")
        dit = home.place_dit(build_dit(plan, host if execution.layers == "streamed" else CARD))
        with default_dtype(dtype), (CARD if execution.vae in ("resident", "decoder") else host):
            vae = ViTVAE(plan.model.vae).eval()
        if execution.vae != "cpu":  # it is there already
            home.place_vae(vae)
        gc.collect()  # linears that were swapped for quantized ones; the loader never makes them
        words = torch.empty(1, memory.caption_tokens(request, plan.model), plan.model.dit.caption_channels, device=CARD)
        contexts = [dit.encode_captions(words) for _ in range(window)]
        null = dit.encode_captions(words[:, :50])
        captions = type(null).cat(contexts)
        slots = schedule.slots(window)
        store = KVRing(slots, dtype=execution.kv_dtype, place=execution.kv_place, device=CARD)
        first = min(slots, (request.seconds or 99) - 1)
        chunk = torch.empty(1, channels, CHUNK_LATENT_FRAMES, height, width, device=CARD)
        fill_store(store, dit, first, tokens_per_chunk(plan.model.dit, request.width, request.height), dtype)
        clean = [chunk.clone() for _ in range(first)]
        latents = torch.cat([chunk] * window, dim=2)
        at_boundary = latents.clone()
        counter.reset_peak()
        for step in range(min(2, 4 // window)):  # the longest ranges, and the next ones, which may wrap in the ring
            quarters = [place * 4 // window + step for place in range(window - 1, -1, -1)]
            ends = range(first + 1, first + 1 + window)
            ranges = [(max(0, end - (5, 4, 3, 2)[quarter]), end) for end, quarter in zip(ends, quarters, strict=True)]
            velocity = dit(
                latents, torch.empty(1, window, device=CARD), captions, first_chunk=first, kv_ranges=ranges,
                store=store, step_size=4.0,
            )  # fmt: skip
        peaks["denoise"] = counter.peak["card"]
        peaks["host"] = counter.live["host"]
        counter.reset_peak()
        if execution.vae != "cpu":
            with home.vae_at_work("decoder") as working:
                to_uint8(decode_tiled(working, chunk, tile_batch=execution.vae_tile_batch))
        peaks["decode"] = counter.peak["card"]
        del clean, at_boundary, velocity
    return peaks, counter


def encode(plan: planner.Plan, explain: bool = False) -> tuple[int, LiveBytes]:
    """Peak card bytes of encoding the picture or clip of a run: both models loaded, nothing else yet."""
    request, execution = plan.request, plan.execution
    with card(explain) as counter, Residency(execution, pin=False, device=CARD) as home:
        host = torch.device("cpu")
        dit = home.place_dit(build_dit(plan, host if execution.layers == "streamed" else CARD))
        with default_dtype(compute_dtype(plan)), (CARD if execution.vae in ("resident", "decoder") else host):
            vae = ViTVAE(plan.model.vae).eval()
        home.place_vae(vae)
        gc.collect()
        # Made without data like every large host tensor, and counted as the host's.
        pixels = torch.empty(1, memory.clip_frames(request), request.height, request.width, 3, dtype=torch.uint8)
        counter.reset_peak()
        with home.vae_at_work("encoder") as working:
            latents = encode_tiled(working, pixels, tile_batch=execution.vae_tile_batch, device=CARD)
        assert latents.shape[3:] == (request.height // 8, request.width // 8)
        del dit
    return counter.peak["card"], counter


def warm_up(scheme: str) -> None:
    """bitsandbytes looks for kernels at its first product and logs what it misses with a traceback, whose frames (and
    their tensors) a test's log keeps: let that happen here, with tiny ones."""
    if scheme == "nf4":
        quantized_linear(nn.Linear(64, 64, bias=False, dtype=torch.bfloat16), SCHEMES[scheme])(
            torch.zeros(2, 64, dtype=torch.bfloat16)
        )


def fill_store(store: KVRing, dit: DiT, chunks: int, tokens: int, dtype: torch.dtype) -> None:
    """What clean passes leave in the store."""
    config = dit.config
    for number in range(chunks):
        for layer in range(config.num_layers):
            key = torch.empty(1, tokens, config.num_query_groups, config.head_dim, dtype=dtype, device=CARD)
            store.write(layer, number, key, key)


def text(plan: planner.Plan, explain: bool = False) -> tuple[int, LiveBytes]:
    """Peak bytes of encoding the longest prompt, on the card or (fake all the same) on the host."""
    from transformers import T5Config, T5EncoderModel

    shape, kind = plan.model.t5, plan.execution.t5
    config = T5Config(
        vocab_size=shape.vocabulary, d_model=shape.width, d_kv=shape.head_dim, d_ff=shape.feed_forward,
        num_layers=shape.layers, num_heads=shape.heads, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    with card(explain) as counter:
        with default_dtype(torch.float32 if kind == "float32" else torch.bfloat16), CARD:
            model = T5EncoderModel(config).eval()
        if kind in SCHEMES:
            convert_(model, SCHEMES[kind], lambda name: True)
            gc.collect()
        ids = torch.zeros(1, memory.caption_tokens(plan.request, plan.model), dtype=torch.long, device=CARD)
        counter.reset_peak()
        model(input_ids=ids).last_hidden_state.float()
    return counter.peak["card"], counter
