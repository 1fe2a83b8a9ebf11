"""How many weights a model has, and how many bytes they take in each scheme: arithmetic on shapes, no tensors.

Counted from the published state-dict layout; a test compares the counts with the true key lists of the 4.5B and 24B.
"""

from __future__ import annotations

from functools import cache

from magi_lite.models import DiTConfig, Linear, ModelSpec, T5Shape, VAEConfig, layer_linears, linear_name
from quant.schemes import SCHEMES

TIMESTEP_FEATURES = 256
"""Width of the sinusoidal timestep embedding."""


# --- the DiT --------------------------------------------------------------------------------------------------------


def layer_float32_vectors(dit: DiTConfig) -> int:
    """Weights of a layer that stay float32: q and k norms of self attention, both post-norms."""
    return 4 * dit.head_dim + 4 * dit.hidden_size


def layer_plain_vectors(dit: DiTConfig) -> int:
    """Small weights in the layer's own dtype: two LayerNorms, caption q and k norms, the modulation's bias."""
    return 4 * dit.hidden_size + 4 * dit.head_dim + 2 * dit.hidden_size


def shell_weights(dit: DiTConfig) -> int:
    """Weights outside the layers, all float32: embedders, null captions, rope, final norm and final linear."""
    patch = dit.t_patch_size * dit.patch_size**2
    cond = dit.cond_size
    return (
        dit.hidden_size * dit.in_channels * patch
        + cond * TIMESTEP_FEATURES + cond + cond * cond + cond
        + dit.caption_max_length * dit.caption_channels
        + dit.hidden_size * dit.caption_channels + dit.hidden_size
        + cond * dit.caption_channels + cond
        + dit.head_dim // 8
        + 2 * dit.hidden_size
        + patch * dit.out_channels * dit.hidden_size
    )  # fmt: skip


@cache
def layer_sizes(model: ModelSpec, scheme: str, dtype_bytes: int) -> tuple[int, ...]:
    """Bytes of every layer.

    Args:
        scheme: as in `Execution.scheme`.
        dtype_bytes: 2 for bfloat16, 4 for float32, of what is not quantized.
    """
    return tuple(_layer_bytes(model, scheme, dtype_bytes, layer) for layer in range(model.dit.num_layers))


def _layer_bytes(model: ModelSpec, scheme: str, dtype_bytes: int, layer: int) -> int:
    dit = model.dit
    total = layer_float32_vectors(dit) * 4 + layer_plain_vectors(dit) * dtype_bytes
    for linear in layer_linears(dit):
        quantized = scheme in SCHEMES and model.quantizes(linear_name(layer, linear))
        total += _scheme_bytes(model, linear, scheme) if quantized else linear.weights * dtype_bytes
    return total


def _scheme_bytes(model: ModelSpec, linear: Linear, scheme: str) -> int:
    """Bytes of a quantized linear, its scales included; as it is stored, where it is stored quantized."""
    kind = SCHEMES[scheme] if model.stored is None else model.stored
    return kind.weight_bytes(linear.outputs, linear.inputs, linear.name)


def all_layers_bytes(model: ModelSpec, scheme: str, dtype_bytes: int) -> int:
    """Bytes of all layers."""
    return sum(layer_sizes(model, scheme, dtype_bytes))


def shell_linears(dit: DiTConfig) -> tuple[Linear, ...]:
    """The linears outside the layers, by full name; quantized only in files that somebody converted so."""
    return (
        Linear("t_embedder.mlp.0", dit.cond_size, TIMESTEP_FEATURES, False),
        Linear("t_embedder.mlp.2", dit.cond_size, dit.cond_size, False),
        Linear("y_embedder.y_proj_xattn.0", dit.hidden_size, dit.caption_channels, False),
        Linear("y_embedder.y_proj_adaln.0", dit.cond_size, dit.caption_channels, False),
        Linear("final_linear.linear", dit.t_patch_size * dit.patch_size**2 * dit.out_channels, dit.hidden_size, False),
    )


def shell_bytes(model: ModelSpec, scheme: str) -> int:
    """Bytes of everything outside the layers; what is not quantized is float32."""
    quantized = [one for one in shell_linears(model.dit) if scheme in SCHEMES and model.quantizes(one.name)]
    plain = 4 * (shell_weights(model.dit) - sum(one.weights for one in quantized))
    return plain + sum(_scheme_bytes(model, one, scheme) for one in quantized)


# --- the autoencoder and the text encoder ---------------------------------------------------------------------------


@cache
def vae_weights(vae: VAEConfig) -> tuple[int, int]:
    """Weights of encoder and decoder."""
    width = vae.embed_dim
    hidden = int(width * vae.mlp_ratio)
    qkv_bias = 3 * width if vae.qkv_bias else 0
    norms = 2 * width if vae.ln_in_attn else 4 * width
    block = 3 * width * width + qkv_bias + width * width + width + norms + 2 * width * hidden + hidden + width
    volume = vae.patch_length * vae.patch_size**2
    grid = (vae.video_length // vae.patch_length) * (vae.video_size // vae.patch_size) ** 2
    cls = int(vae.with_cls_token)
    common = vae.depth * block + (cls + grid + cls) * width + 2 * width
    latent = vae.z_chans * (2 if vae.double_z else 1)
    encoder = common + width * vae.in_chans * volume + width + latent * width + latent
    channels = 4 if vae.use_final_proj else width // volume
    ends = vae.z_chans * width + width + vae.in_chans * channels * 27 + vae.in_chans
    if vae.use_final_proj:
        ends += channels * volume * (width + 1) + 2 * channels * volume
    return encoder, common + ends


T5_BYTES = {"float32": 4.0, "bf16": 2.0, "int8": 1.0, "nf4": 0.5 + 1 / 64 + 4 / (64 * 256)}
"""Bytes per linear weight of the text encoder."""


def t5_bytes(t5: T5Shape, kind: str) -> int:
    """Bytes of the text encoder: linears in their scheme, embedding and norms in bf16 (float32 in float32)."""
    other = 4 if kind == "float32" else 2
    rows = 0
    if kind == "int8":
        inner = t5.heads * t5.head_dim
        rows = 4 * t5.layers * (3 * inner + t5.width + 2 * t5.feed_forward + t5.width)
    return int(t5.linear_weights * T5_BYTES[kind]) + rows + t5.other_weights * other
