"""Models with random weights for `gpu.py`, made on the device layer by layer, and a stopwatch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from magi_lite.dit.model import DiT, parameter_dtype
from magi_lite.machine import devices
from magi_lite.models import CHUNK_LATENT_FRAMES, DiTConfig, T5Shape, quantizable
from magi_lite.sampling.kv_store import KVRing
from magi_lite.vae.model import ViTVAE
from magi_lite.weights.t5 import hide_weights
from quant.convert import convert_
from quant.schemes import SCHEMES

RANGES = (5, 4, 3, 2)
FEW_LAYERS = 3
"""Of a transformer where a whole pass would take too long: its inner layers are all alike."""
NO_CARD = "not run: no card is here"


def random_(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Fill a module's parameters: matrices small, norms near one (near zero where they are stored minus one)."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
        else:
            plain_norm = name.endswith(("layer_norm.weight", "norm.weight", "norm1.weight", "norm2.weight"))
            stored_minus_one = name.endswith(("post_norm.weight", "layernorm.weight"))
            parameter.normal_(1.0 if plain_norm and not stored_minus_one else 0.0, 0.02, generator=generator)


@torch.no_grad()
def random_dit(config: DiTConfig, scheme: str, dtype: torch.dtype, device: Any) -> DiT:
    """A transformer with random weights; never more than one layer is held unquantized.

    Args:
        scheme: float32 or bf16 (nothing quantized), or a name in `quant.schemes.SCHEMES`.
        device: where it is made (conversion included).
    """
    with torch.device("meta"):
        dit = DiT(config)
    may = quantizable(config)
    for index, layer in enumerate(dit.videodit_blocks.layers):
        prefix = f"videodit_blocks.layers.{index}."
        layer.to_empty(device=device)
        random_(layer)
        _cast(layer, prefix, dtype)
        if scheme in SCHEMES and any(may(prefix + name) for name, _ in layer.named_modules()):
            convert_(layer, SCHEMES[scheme], lambda name, prefix=prefix: may(prefix + name))
    rest = [child for name, child in dit.named_children() if name != "videodit_blocks"]
    for child in (*rest, dit.videodit_blocks.final_layernorm):
        child.to_empty(device=device)
        random_(child)
    dit.rope.bands.copy_(10000.0 ** -(torch.arange(config.head_dim // 8) / (config.head_dim // 8)))
    return dit.requires_grad_(False).eval()


def _cast(module: nn.Module, prefix: str, dtype: torch.dtype) -> None:
    for name, parameter in module.named_parameters():
        parameter.data = parameter.data.to(parameter_dtype(prefix + name, dtype))


@torch.no_grad()
def random_vae(config: Any, dtype: torch.dtype, device: Any) -> ViTVAE:
    """An autoencoder with random weights."""
    with torch.device("meta"):
        vae = ViTVAE(config)
    vae.to_empty(device=device)
    random_(vae)
    return vae.to(dtype).requires_grad_(False).eval()


@torch.no_grad()
def random_t5(shape: T5Shape, scheme: str, dtype: torch.dtype, device: Any) -> nn.Module:
    """A T5 encoder with random weights; never more than one block is held unquantized."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=shape.vocabulary, d_model=shape.width, d_kv=shape.head_dim, d_ff=shape.feed_forward,
        num_layers=shape.layers, num_heads=shape.heads, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with torch.device("meta"):
        model = T5EncoderModel(config)
    for part in (model.shared, *model.encoder.block, model.encoder.final_layer_norm):
        part.to_empty(device=device)
        random_(part)
        part.to(dtype)
        if scheme in SCHEMES and part in list(model.encoder.block):
            convert_(part, SCHEMES[scheme], lambda name: True)
    model.encoder.set_input_embeddings(model.shared)
    if scheme in SCHEMES:
        hide_weights(model)
    return model.requires_grad_(False).eval()


@contextmanager
def few_layers(dit: DiT) -> Iterator[float]:
    """Leave some inner layers in a transformer, for passes with inputs made before; yields their share of all."""
    layers = dit.videodit_blocks.layers
    dit.videodit_blocks.layers = nn.ModuleList(list(layers)[1 : 1 + FEW_LAYERS])
    try:
        yield FEW_LAYERS / len(layers)
    finally:
        dit.videodit_blocks.layers = layers


def slots_of(window: int) -> int:
    """Clean chunks that a window in the steady state looks back at."""
    return max(RANGES[4 * (window - 1 - place) // window] - 1 - place for place in range(window))


def stage_inputs(
    dit: DiT, size: tuple[int, int], window: int, device: Any, dtype: torch.dtype, tokens: int = 128, store: Any = None
) -> dict[str, Any]:
    """Everything of a window pass in the steady state: latents, captions' context, a filled store, ranges.

    Returns:
        Keyword arguments for `dit`, latents, timesteps and context included.
    """
    config = dit.config
    width, height = size
    shape = (1, config.latent_channels, CHUNK_LATENT_FRAMES * window, height // 8, width // 8)
    slots = slots_of(window)
    store = store or KVRing(slots, dtype="bf16" if dtype == torch.bfloat16 else "float32", device=device)
    embeddings = torch.randn(window, tokens, config.caption_channels, device=device).to(dtype)
    context = dit.encode_captions(embeddings)
    keys = (1, CHUNK_LATENT_FRAMES * math.prod(shape[3:]) // config.patch_size**2, config.num_query_groups)
    for layer in range(config.num_layers):  # random numbers take the time of real ones, and no clean passes
        for number in range(slots):
            pair = (torch.randn(*keys, config.head_dim, device=device).to(dtype) for _ in range(2))
            store.write(layer, number, *pair)
    ends = range(slots + 1, slots + 1 + window)
    reach = [RANGES[4 * (window - 1 - place) // window] for place in range(window)]
    return {
        "latents": torch.randn(shape, device=device),
        "timesteps": torch.linspace(0.6, 0.05, window, device=device)[None],
        "context": context,
        "first_chunk": slots,
        "kv_ranges": tuple((max(0, end - back), end) for end, back in zip(ends, reach, strict=True)),
        "store": store,
        "step_size": 4.0,
    }


def key_chunks(inputs: dict[str, Any]) -> float:
    """Mean number of chunks that a query of the pass sees."""
    return sum(last - first for first, last in inputs["kv_ranges"]) / len(inputs["kv_ranges"])


def timed(work: Callable[[], Any], *, budget: float = 1.5, most: int = 10, warm: bool = True) -> dict[str, Any]:
    """Seconds of `work`, warmed up once, repeated until `budget` seconds are spent: median and spread.

    `host_seconds`: the median until `work` returned, with the card still at it.
    """
    if budget and warm:
        work()
        devices.synchronize()
    times: list[float] = []
    issued: list[float] = []
    begin = time.perf_counter()
    while not times or (len(times) < most and time.perf_counter() - begin < budget):
        start = time.perf_counter()
        work()
        issued.append(time.perf_counter() - start)
        devices.synchronize()
        times.append(time.perf_counter() - start)
    times.sort()
    middle = len(times) // 2
    return {
        "seconds": times[middle], "fastest": times[0], "slowest": times[-1], "runs": len(times),
        "host_seconds": sorted(issued)[middle],
    }  # fmt: skip


def profiled(work: Callable[[], Any], dry: bool) -> tuple[list[Any], list[Any]]:
    """What ran while `work` did: the card's kernels, and the processor's operators; dearest first.

    The profiler books a kernel's time on the operator that launched it as well, so the two are kept apart.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU] if dry else [ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
        devices.synchronize()
    rows = list(seen.key_averages())
    kernels = [row for row in rows if row.device_type == DeviceType.CUDA]
    operators = [row for row in rows if row.device_type == DeviceType.CPU]
    kernels.sort(key=lambda row: -row.self_device_time_total)
    operators.sort(key=lambda row: -row.self_cpu_time_total)
    return kernels, operators


def relative_error(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want|, in float64."""
    difference = (got.double() - want.double()).norm()
    return float(difference / want.double().norm().clamp_min(1e-30))
