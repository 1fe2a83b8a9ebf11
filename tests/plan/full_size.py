"""The full-size pipeline on fake tensors: what a plan's execution really takes, phase by phase.

Everything is the program's own: the sampler with its passes, the transformer with its quantized layers, streamed or
resident; the KV ring; the autoencoder's tiles; transformers' T5. Only the numbers are absent.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from magi_lite import attention, planner
from magi_lite.attention_shared import Sage
from magi_lite.dit.model import DiT
from magi_lite.models import CHUNK_LATENT_FRAMES, quantizable
from magi_lite.pipeline.engine import Engine
from magi_lite.planner import memory
from magi_lite.sampling.results import Caption, CleanChunk
from magi_lite.sampling.sampler import Sampler
from magi_lite.sampling.state import Progress
from magi_lite.vae.model import ViTVAE
from magi_lite.vae.tiling import decode_tiled, encode_tiled, to_uint8
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
    if execution.kernel == "plain":
        dit.backend = attention.Backend("plain", attention.plain)
    return dit.eval()


def sage(*, shares: bool) -> attention.Backend:
    """SageAttention by what its sources allocate, ranges by themselves or keys and values quantized once for all."""

    def by_thread(q: Tensor, k: Tensor, mean: Tensor | None, tensor_layout: str) -> tuple[Tensor, ...]:
        if mean is not None:
            k = k - mean
        scales = [(x, 8 * -(-x.shape[1] // 32)) for x in (q, k)]
        numbers = [torch.empty(x.shape, dtype=torch.int8, device=x.device) for x in (q, k)]
        found = [torch.empty(x.shape[0], x.shape[2], count, device=x.device) for x, count in scales]
        return numbers[0], found[0], numbers[1], found[1]

    def values(v: Tensor, **_: object) -> tuple[Tensor, Tensor, None]:
        n, length, groups, width = v.shape
        transposed = torch.empty(n, width, groups, -(-length // 64) * 64, dtype=v.dtype, device=v.device)
        eighths = torch.empty(transposed.shape, dtype=torch.float8_e4m3fn, device=v.device)
        return eighths, torch.empty(n, groups, width, device=v.device), None

    def public(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if key.shape[1] < attention.SHORT_KEYS:
            return attention.sdpa(query, key, value)
        held = by_thread(query, key, key.mean(dim=1, keepdim=True), "NHD")
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        held += values(value)
        return output

    steps = object.__new__(Sage)
    steps._by_thread, steps._values, steps._largest, steps._attend = by_thread, values, 2.25, lambda *_: None
    return attention.Backend("sage", public, share=attention.Sharing(steps.share, public) if shares else None)


def denoise_and_decode(
    plan: planner.Plan,
    explain: bool = False,
    *,
    kernels: bool = False,
    backend: attention.Backend | None = None,
) -> tuple[dict[str, int], LiveBytes]:
    """Peak card bytes of both phases: the sampler's own next second, its store full, and that second's decoding.

    Args:
        kernels: whether our Triton kernels serve. backend: the attention; None: the plan's.
    """
    execution = plan.execution
    warm_up(execution.scheme)
    peaks = {}
    made_up = card(explain, fused_attention=execution.kernel != "plain", kernels=kernels)
    with made_up as counter, Residency(execution, pin=False, device=CARD) as home:
        host = torch.device("cpu")
        dit = home.place_dit(build_dit(plan, host if execution.layers == "streamed" else CARD))
        dit.backend = backend or dit.backend
        with default_dtype(compute_dtype(plan)), (CARD if execution.vae in ("resident", "decoder") else host):
            vae = ViTVAE(plan.model.vae).eval()
        if execution.vae != "cpu":  # it is there already
            home.place_vae(vae)
        gc.collect()  # linears that were swapped for quantized ones; the loader never makes them
        sampler = steady_sampler(plan, Engine(None, execution, dit, home))
        counter.reset_peak()
        steps = sampler.run()
        result = None
        while not isinstance(result, CleanChunk):  # like the pipeline, which holds the last step until the next is made
            result = next(steps)
        peaks["denoise"] = counter.peak["card"]
        peaks["host"] = counter.live["host"] - plan.window * caption_bytes(plan)  # words are the program's
        counter.reset_peak()
        before = counter.live["card"]
        if execution.vae != "cpu":
            with home.vae_at_work("decoder") as working:
                to_uint8(decode_tiled(working, result.latents, tile_batch=execution.vae_tile_batch))
        peaks["decode"] = counter.peak["card"]
        if execution.decode_beside:  # the worst moments of both may meet
            peaks["denoise"] += peaks["decode"] - before
        steps.close()
    return peaks, counter


def caption_bytes(plan: planner.Plan) -> int:
    """The caption of one chunk in flight, as the host holds them: float32."""
    return 4 * memory.caption_tokens(plan.request, plan.model) * plan.model.dit.caption_channels


def steady_sampler(plan: planner.Plan, networks: Engine) -> Sampler:
    """A sampler in the middle of a run: its window full, every chunk within reach made, one of them not yet stored."""
    request, window, config = plan.request, plan.window, plan.model.dit
    height, width = request.height // 8, request.width // 8
    steps = 8 if window > 1 else 4  # every range is used at least once
    settings = replace(plan.model.sampler, steps=steps, window=window)

    def chunk(count: int = 1) -> torch.Tensor:
        frames = count * CHUNK_LATENT_FRAMES
        return torch.empty(1, config.latent_channels, frames, height, width, device=CARD)

    def caption(*_: object) -> Caption:
        return Caption(torch.empty(memory.caption_tokens(request, plan.model), config.caption_channels))

    sampler = Sampler(
        networks.dit, settings, latent_size=(height, width), chunks=99, caption=caption,
        null_caption=networks.null_caption(), noise=lambda _: chunk(), device=CARD, dtype=networks.dit.dtype,
        store_factory=networks.store,
    )  # fmt: skip
    reach = sampler.schedule.reach
    first = reach + 1  # so that ranges wrap in the ring
    progress = Progress(
        window=chunk(window - 1), next_stage=first + window - 1,
        captions={number: caption() for number in range(first, first + window - 1)},
        clean={number: chunk() for number in range(first - reach, first)},
    )  # fmt: skip
    sampler._set(progress)
    return sampler


def encode(plan: planner.Plan, explain: bool = False, *, kernels: bool = False) -> tuple[int, LiveBytes]:
    """Peak card bytes of encoding the picture or clip of a run: both models loaded, nothing else yet."""
    request, execution = plan.request, plan.execution
    with card(explain, kernels=kernels) as counter, Residency(execution, pin=False, device=CARD) as home:
        host = torch.device("cpu")
        dit = home.place_dit(build_dit(plan, host if execution.layers == "streamed" else CARD))
        with default_dtype(compute_dtype(plan)), (CARD if execution.vae in ("resident", "decoder") else host):
            vae = ViTVAE(plan.model.vae).eval()
        home.place_vae(vae)
        gc.collect()
        # Made without data like every large host tensor, and counted as the host's.
        frames = memory.clip_frames(request, plan.model)
        pixels = torch.empty(1, frames, request.height, request.width, 3, dtype=torch.uint8)
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


def text(plan: planner.Plan, explain: bool = False, *, kernels: bool = False) -> tuple[int, LiveBytes]:
    """Peak bytes of encoding the longest prompt, on the card or (fake all the same) on the host."""
    from transformers import T5Config, T5EncoderModel

    shape, kind = plan.model.t5, plan.execution.t5
    config = T5Config(
        vocab_size=shape.vocabulary, d_model=shape.width, d_kv=shape.head_dim, d_ff=shape.feed_forward,
        num_layers=shape.layers, num_heads=shape.heads, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    with card(explain, kernels=kernels) as counter:
        with default_dtype(torch.float32 if kind == "float32" else torch.bfloat16), CARD:
            model = T5EncoderModel(config).eval()
        if kind in SCHEMES:
            convert_(model, SCHEMES[kind], lambda name: True)
            gc.collect()
        ids = torch.zeros(1, memory.caption_tokens(plan.request, plan.model), dtype=torch.long, device=CARD)
        counter.reset_peak()
        model(input_ids=ids).last_hidden_state.float()
    return counter.peak["card"], counter
