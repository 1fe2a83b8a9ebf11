"""Seconds from a roofline: floating-point work over the card's rate, bytes over its bandwidth, at stated efficiencies.

What there is to do is counted as `benchmarks/roofline.py` prices the program's own operations; a test compares the two.
The share of peak that kernels reach was measured on one card (`benchmarks/results/gpu_h100.json`: every pass of it
within a fifth) and is an assumption for others, which learn from their own runs (`planner/learned.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

from magi_lite.machine.cards import Device
from magi_lite.models import PIXELS_PER_LATENT, PUBLISHED_TILING, DiTConfig, ModelSpec, layer_linears, linear_name
from magi_lite.planner.execution import Execution, Scheme
from magi_lite.planner.passes import Work, distinct_schedules, work_of_shots, work_to_first_second
from magi_lite.planner.shapes import all_layers_bytes, shell_weights, t5_bytes, vae_weights
from magi_lite.request.request import GenerationRequest
from quant.schemes import SCHEMES

LINEAR_EFFICIENCY = {"float32": 0.6, "bf16": 0.65, "fp8": 0.55, "published": 0.5, "int8": 0.35, "nf4": 0.45}
"""Share of the scheme's peak rate in the linears."""
ATTENTION_EFFICIENCY = {"sdpa": 0.8, "flash": 0.85, "cudnn": 0.8, "sage": 2.2, "plain": 0.05}
"""Share of the bf16 rate; Sage multiplies 8-bit numbers and so exceeds it (431 of 165 TOP/s on an RTX 4090)."""
HOPPER = (9, 0)
HOPPER_ATTENTION = 0.71
"""Part of these shares that is left on Hopper: 563 of 989 TFLOP/s were measured with PyTorch's and cuDNN's kernels."""


@dataclass(frozen=True)
class Passes:
    """Reads and writes of a token's hidden vector per layer outside matrix products: norms, rotation, gates, casts.

    Of a window of 4 chunks; smaller ones join more of the past and need up to a sixth more.
    """

    fused: int
    """With our Triton kernels."""
    plain: int
    """Without them: quantization, in slices, reads and writes float32 as well."""
    single: int
    """Without them in a model that computes in float32, as processors do; a pass has twice the bytes."""


PASSES: dict[str, Passes] = {
    "float32": Passes(29, 43, 43),
    "bf16": Passes(30, 73, 73),
    "fp8": Passes(29, 124, 75),
    "int8": Passes(53, 220, 130),
    "nf4": Passes(29, 75, 43),
    "published": Passes(29, 162, 90),
}
"""By scheme, as `benchmarks/roofline.py` counts them, with and without `--plain`; a test compares each."""
FUSED_FROM = (8, 0)
"""Compute capability from which the kernels serve."""
COPY_EFFICIENCY = 0.85
DISK_GBS = 1.5
"""Reading weights from a solid-state disk, GB/s."""
OPENING_SECONDS = 0.25
"""Opening a text encoder, or the other weights, however small: its configuration, its tokenizer, its modules."""
_CONVERSION_TRAFFIC = 3
"""Bytes that cross the disk for each byte of a 16-bit copy: two are read, one is written."""
VAE_EFFICIENCY = 0.45
VAE_EFFICIENCY_BESIDE = LINEAR_EFFICIENCY["bf16"]
"""The same beside the transformer, whose kernels fill what the autoencoder's small ones leave of the card."""
HOST_VAE_TFLOPS = 0.3
CPU_T5_TFLOPS = 0.15
CHARACTERS_PER_TOKEN = 4
"""Of English in the text encoder's vocabulary."""
CALL_SECONDS = {"float32": 1.2e-3, "bf16": 1.2e-3, "fp8": 1.5e-3, "published": 1.5e-3, "int8": 1.75e-3, "nf4": 2.0e-3}
"""Issuing a layer's operations to a card, by scheme: what a small picture in window 1 cannot go below. Measured at
256x256 in the file above; NF4 took 2.4 ms before its products were issued with less."""
CPU_CALL_SECONDS = 1.5e-3
"""The same on a processor."""
WRITE_SECONDS = 0.05
"""Encoding a second of video and putting it on the disk."""
CPU_BF16 = 0.2
"""Rate of bf16 products against float32 on a CPU without units for them: it widens every number first."""


@dataclass(frozen=True)
class Seconds:
    """Predicted times of a plan."""

    per_chunk: float
    to_first_chunk: float
    to_load: float
    """Part of the above: until the first step."""


def tokens_per_chunk(model: ModelSpec, width: int, height: int) -> int:
    """DiT tokens of one chunk of a video of `width` x `height` pixels."""
    dit, patch = model.dit, PIXELS_PER_LATENT * model.dit.patch_size
    return model.sampler.chunk_width // dit.t_patch_size * (width // patch) * (height // patch)


def predict(
    request: GenerationRequest, window: int, model: ModelSpec, execution: Execution, device: Device
) -> Seconds:
    """Seconds per chunk in the steady state (with cuts on average), and until the first one is there, with loading."""
    tokens = tokens_per_chunk(model, request.width, request.height)
    schedules = distinct_schedules(request, window, model)

    def seconds(work: tuple[Work, ...]) -> float:
        return sum(one.times * _forward_seconds(model, tokens, one, execution, device) for one in work)

    vae = _decode_seconds(request, model, execution, device)
    loading = text_seconds(request, model, execution, device) + load_seconds(model, execution)
    to_first = loading + seconds(work_to_first_second(schedules[0][0])) + vae + WRITE_SECONDS
    return Seconds(_with_decoding(seconds(work_of_shots(schedules)), vae, execution), to_first, loading)


def _with_decoding(steps: float, vae: float, execution: Execution) -> float:
    """Seconds per chunk of which the steps take `steps`, and decoding by itself `vae`."""
    if execution.device == "cpu":
        return steps + vae + WRITE_SECONDS
    if not execution.decode_beside:
        return steps + vae  # a card goes on while a second is written
    if execution.vae == "cpu":
        return max(steps, vae + WRITE_SECONDS)
    return steps + vae * VAE_EFFICIENCY / VAE_EFFICIENCY_BESIDE


def _forward_seconds(model: ModelSpec, tokens: int, work: Work, execution: Execution, device: Device) -> float:
    """Seconds of one forward."""
    compute = _compute_seconds(model, tokens * work.chunks, work.keys * tokens, execution, device)
    call = CPU_CALL_SECONDS if device.kind == "cpu" else CALL_SECONDS[execution.scheme]
    issue = call * model.dit.num_layers
    if device.kind == "cpu":  # calls and arithmetic take turns
        return compute + issue
    return max(compute, issue, _copy_seconds(model, tokens, work.keys, execution, device))


def linear_rate(execution: Execution, device: Device) -> float:
    """FLOP/s of the quantizable linears."""
    scheme = execution.scheme
    peak = device.bf16_tflops
    if device.kind == "cpu" and execution.dtype == "bfloat16":
        peak = device.cpu_bf16_tflops or peak * CPU_BF16
    if scheme in ("fp8", "published") and device.has_fp8:
        peak = device.fp8_tflops
    elif scheme == "int8":
        peak = device.int8_tops
    return peak * 1e12 * LINEAR_EFFICIENCY[scheme]


def plain_rate(execution: Execution, device: Device) -> float:
    """FLOP/s of linears that are not quantized."""
    kind: Scheme = "bf16" if execution.dtype == "bfloat16" else "float32"
    return linear_rate(replace(execution, scheme=kind), device)


def linear_flops(model: ModelSpec, tokens: int, scheme: str) -> tuple[float, float]:
    """Floating-point operations of a forward's linears: of those that the scheme quantizes, and of all others."""
    quantized, plain = _linear_weights(model, scheme)
    return 2.0 * tokens * quantized, 2.0 * tokens * plain


@cache
def _linear_weights(model: ModelSpec, scheme: str) -> tuple[int, int]:
    """Weights of the linears that every token passes: those that the scheme quantizes, and all others."""
    quantized = plain = 0
    for layer in range(model.dit.num_layers):
        for linear in layer_linears(model.dit):
            if linear.quantizable and scheme in SCHEMES and model.quantizes(linear_name(layer, linear)):
                quantized += linear.weights
            elif linear.quantizable:
                plain += linear.weights
    return quantized, plain


def forward_flops(dit: DiTConfig, tokens: int, keys: float) -> tuple[float, float]:
    """(linear, attention) floating-point operations of one forward of `tokens` tokens whose queries see `keys` keys."""
    per_token = sum(linear.weights for linear in layer_linears(dit) if linear.quantizable)
    linear = 2.0 * tokens * per_token * dit.num_layers
    queries = dit.num_attention_heads * dit.head_dim
    attention = 4.0 * tokens * keys * queries * dit.num_layers
    cross = 4.0 * tokens * 128 * queries * dit.num_layers
    return linear, attention + cross


def _compute_seconds(model: ModelSpec, tokens: int, keys: float, execution: Execution, device: Device) -> float:
    dit = model.dit
    _, attention = forward_flops(dit, tokens, keys)
    quantized, plain = linear_flops(model, tokens, execution.scheme)
    attention_rate = device.bf16_tflops * 1e12 * attention_efficiency(execution.kernel, device)
    item = 2 if execution.dtype == "bfloat16" else 4
    moved = tokens * dit.hidden_size * item * passes_of(execution, device) * dit.num_layers
    weights = all_layers_bytes(model, execution.scheme, item)
    memory = (moved + weights) / (device.bandwidth_gbs * 1e9 * COPY_EFFICIENCY)
    linear = quantized / linear_rate(execution, device) + plain / plain_rate(execution, device)
    return linear + attention / attention_rate + memory


def attention_efficiency(kernel: str, device: Device) -> float:
    """Share of a card's bf16 rate that an attention kernel reaches."""
    return ATTENTION_EFFICIENCY[kernel] * (HOPPER_ATTENTION if device.capability == HOPPER else 1.0)


def passes_of(execution: Execution, device: Device) -> int:
    """How often a token's hidden vector is read or written in a layer, outside products."""
    passes = PASSES[execution.scheme]
    if execution.device == "cuda" and device.kernels and device.capability >= FUSED_FROM:
        return passes.fused
    return passes.single if execution.dtype == "float32" else passes.plain


def _copy_seconds(model: ModelSpec, tokens: int, kv_chunks: float, execution: Execution, device: Device) -> float:
    """Host-to-device copies of one forward, which overlap its computation."""
    item = 2 if execution.dtype == "bfloat16" else 4
    copied = 0.0
    if execution.layers == "streamed":
        copied += all_layers_bytes(model, execution.scheme, item)
    if execution.kv_place == "pinned":
        copied += max(0.0, kv_chunks - 1) * tokens * kv_bytes_per_token(model.dit, execution)
    return copied / (device.pcie_gbs * 1e9)


def kv_bytes_per_token(dit: DiTConfig, execution: Execution) -> int:
    """Bytes of one token's keys and values in all layers."""
    item = {"fp8": 1, "bf16": 2, "float32": 4}[execution.kv_dtype]
    return 2 * dit.num_query_groups * dit.head_dim * item * dit.num_layers


def _decode_seconds(
    request: GenerationRequest, model: ModelSpec, execution: Execution, device: Device
) -> float:
    """One chunk through the decoder's tiles."""
    depth, height, width = PUBLISHED_TILING.latent_sizes
    sides = (request.width // PIXELS_PER_LATENT, request.height // PIXELS_PER_LATENT)
    columns, rows = (math.ceil(side / PUBLISHED_TILING.step) for side in (request.width, request.height))
    tiles = math.ceil(model.sampler.chunk_width / depth) * columns * rows
    tokens = depth * min(width, sides[0]) * min(height, sides[1]) + 1
    _, decoder = vae_weights(model.vae)
    flops = tiles * (2.0 * tokens * decoder + 4.0 * tokens**2 * model.vae.embed_dim * model.vae.depth)
    on_cpu = execution.device == "cpu" or execution.vae == "cpu"
    host_tflops = min(HOST_VAE_TFLOPS, device.bf16_tflops) if device.kind == "cpu" else HOST_VAE_TFLOPS
    rate = 1e12 * (host_tflops if on_cpu else device.bf16_tflops * VAE_EFFICIENCY)
    seconds = flops / rate
    if execution.vae == "swapped":
        seconds += 2 * decoder / (device.pcie_gbs * 1e9)
    return seconds


def text_seconds(request: GenerationRequest, model: ModelSpec, execution: Execution, device: Device) -> float:
    """Loading the text encoder and encoding every distinct prompt, padding dropped."""
    before = len(request.timeline.global_prompt)
    lengths = [before + len(prompt) for prompt in {segment.prompt for segment in request.timeline.segments}] or [before]
    tokens = sum(min(length / CHARACTERS_PER_TOKEN + 1, model.dit.caption_max_length) for length in lengths)
    flops = 2.0 * tokens * model.t5.linear_weights
    tflops = CPU_T5_TFLOPS if execution.t5_device == "cpu" else 0.3 * device.bf16_tflops
    return OPENING_SECONDS + t5_bytes(model.t5, "bf16") / (DISK_GBS * 1e9) + flops / (tflops * 1e12)


def conversion_seconds(model: ModelSpec, execution: Execution) -> float:
    """Making the 16-bit copy of pickled text encoder weights, where one is still to be made and of use."""
    return 0.0 if execution.t5 == "float32" else _CONVERSION_TRAFFIC * model.text_conversion / (DISK_GBS * 1e9)


def load_seconds(model: ModelSpec, execution: Execution) -> float:
    """Reading the DiT and the VAE from disk; converting on the fly reads the bf16 checkpoint."""
    dit = all_layers_bytes(model, model.stored_scheme or "bf16", 2) + 4 * shell_weights(model.dit)
    return OPENING_SECONDS + (dit + 4 * sum(vae_weights(model.vae))) / (DISK_GBS * 1e9)
