"""Models with random weights for `gpu.py`, made on the device layer by layer, and a stopwatch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from magi_lite.dit.model import DiT, parameter_dtype
from magi_lite.machine import devices
from magi_lite.models import CHUNK_LATENT_FRAMES, DiTConfig, quantizable
from magi_lite.sampling.kv_store import KVRing
from magi_lite.vae.model import ViTVAE
from quant.convert import convert_
from quant.schemes import SCHEMES

RANGES = (5, 4, 3, 2)


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
    slots = max(RANGES[4 * (window - 1 - place) // window] - 1 - place for place in range(window))
    store = store or KVRing(slots, dtype="bf16" if dtype == torch.bfloat16 else "float32", device=device)
    embeddings = torch.randn(window, tokens, config.caption_channels, device=device).to(dtype)
    context = dit.encode_captions(embeddings)
    for number in range(slots):
        chunk = torch.randn(1, config.latent_channels, CHUNK_LATENT_FRAMES, *shape[3:], device=device)
        dit(
            chunk, torch.full((1, 1), 0.9999, device=device), context.select([0]), first_chunk=number,
            kv_ranges=((number, number + 1),), store=store, write=True, step_size=4.0,
        )  # fmt: skip
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


def timed(work: Callable[[], Any], *, budget: float = 1.5, most: int = 10) -> dict[str, Any]:
    """Seconds of `work`, warmed up once, repeated until `budget` seconds are spent: median and spread."""
    if budget:
        work()
        devices.synchronize()
    times: list[float] = []
    begin = time.perf_counter()
    while not times or (len(times) < most and time.perf_counter() - begin < budget):
        start = time.perf_counter()
        work()
        devices.synchronize()
        times.append(time.perf_counter() - start)
    times.sort()
    return {"seconds": times[len(times) // 2], "fastest": times[0], "slowest": times[-1], "runs": len(times)}


def relative_error(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want|, in float64."""
    difference = (got.double() - want.double()).norm()
    return float(difference / want.double().norm().clamp_min(1e-30))
