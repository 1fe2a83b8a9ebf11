"""How many weights a model has, and how many bytes they take in each scheme: arithmetic on shapes, no tensors.

Counted from the published state-dict layout; a test compares the counts with the true key lists of the 4.5B and 24B.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from magi_lite.errors import InputError
from magi_lite.models import DIT_4_5B, MODELS, VAE_PUBLISHED, DiTConfig, ModelFamily, VAEConfig
from quant.schemes import SCHEMES

TIMESTEP_FEATURES = 256
"""Width of the sinusoidal timestep embedding."""


@dataclass(frozen=True)
class T5Shape:
    """Shape of a T5 v1.1 encoder (gated GELU, tied word embeddings unused)."""

    layers: int
    width: int
    heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int

    @property
    def linear_weights(self) -> int:
        """Weights of all linears: q, k, v, o and the three of the gated MLP."""
        inner = self.heads * self.head_dim
        return self.layers * (4 * self.width * inner + 3 * self.width * self.feed_forward)

    @property
    def other_weights(self) -> int:
        """Word embedding, norms and the relative position table."""
        return self.vocabulary * self.width + (2 * self.layers + 1) * self.width + 32 * self.heads


T5_XXL = T5Shape(layers=24, width=4096, heads=64, head_dim=64, feed_forward=10240, vocabulary=32128)


@dataclass(frozen=True)
class ModelShape:
    """All that planning needs to know of a model."""

    name: str
    dit: DiTConfig
    vae: VAEConfig
    t5: T5Shape
    distilled: bool
    stored_scheme: str | None = None
    """How its linears lie in the files: published, fp8, int8 or nf4; None: unquantized."""


@dataclass(frozen=True)
class Linear:
    """One linear of a layer: rows x columns, and whether a scheme may quantize it."""

    name: str
    outputs: int
    inputs: int
    quantizable: bool

    @property
    def weights(self) -> int:
        return self.outputs * self.inputs


def model_shape(model: Any) -> ModelShape:
    """The shape of a model given by name, by `ModelFamily`, or by what the loader found on disk.

    Args:
        model: a `ModelShape`; a name in `config.MODELS`; a `ModelFamily`; or any object with attributes `dit` and,
            where they differ from the published ones, `vae`, `t5`, `distilled`, `stored_scheme` and `name`.

    Raises:
        InputError: nothing is known of a model of that name.
    """
    if isinstance(model, ModelShape):
        return model
    if isinstance(model, str):
        if model not in MODELS:
            raise InputError(f'No model called "{model}" can be planned; choose one of {", ".join(MODELS)}.')
        model = MODELS[model]
    if isinstance(model, ModelFamily):
        stored = "published" if model.quantized else None
        return ModelShape(model.name, model.dit, VAE_PUBLISHED, T5_XXL, model.distilled, stored)
    dit = model.dit
    return ModelShape(
        name=str(getattr(model, "name", "model")),
        dit=dit,
        vae=getattr(model, "vae", None) or VAE_PUBLISHED,
        t5=_t5_of(getattr(model, "t5", None), dit),
        distilled=bool(getattr(model, "distilled", True)),
        stored_scheme=getattr(model, "stored_scheme", None),
    )


def _t5_of(t5: Any, dit: DiTConfig) -> T5Shape:
    """The given shape, or T5-XXL for full-size captions, or a small encoder of the captions' width for small ones."""
    if isinstance(t5, T5Shape):
        return t5
    if dit.caption_channels >= DIT_4_5B.caption_channels:
        return T5_XXL
    width = dit.caption_channels
    return T5Shape(
        layers=2, width=width, heads=4, head_dim=max(1, width // 4), feed_forward=4 * width, vocabulary=512
    )


# --- the DiT --------------------------------------------------------------------------------------------------------


@cache
def layer_linears(dit: DiTConfig) -> tuple[Linear, ...]:
    """The linears of one layer, by the last part of their published names."""
    hidden = dit.hidden_size
    queries = dit.num_attention_heads * dit.head_dim
    groups = dit.num_query_groups * dit.head_dim
    fc1 = dit.ffn_hidden_size * (2 if dit.gated_linear_unit else 1)
    return (
        Linear("q", queries, hidden, True),
        Linear("qx", queries, hidden, True),
        Linear("k", groups, hidden, True),
        Linear("v", groups, hidden, True),
        Linear("linear_kv_xattn", 2 * groups, hidden, False),
        Linear("linear_proj", hidden, 2 * queries, True),
        Linear("ada_modulate_layer", 2 * hidden, dit.cond_size, False),
        Linear("linear_fc1", fc1, hidden, True),
        Linear("linear_fc2", hidden, dit.ffn_hidden_size, True),
    )


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


def scheme_weight_bytes(linear: Linear, scheme: str, dtype_bytes: int) -> int:
    """Bytes of one quantizable linear in a scheme, its scales included."""
    if scheme in SCHEMES:
        return SCHEMES[scheme].weight_bytes(linear.outputs, linear.inputs, linear.name)
    return linear.weights * dtype_bytes


@cache
def layer_bytes(dit: DiTConfig, scheme: str, dtype_bytes: int, *, edge: bool) -> int:
    """Bytes of one layer.

    Args:
        scheme: as in `Execution.scheme`.
        dtype_bytes: 2 for bfloat16, 4 for float32, of what is not quantized.
        edge: whether it is the first or the last layer, which are never quantized.
    """
    total = layer_float32_vectors(dit) * 4 + layer_plain_vectors(dit) * dtype_bytes
    for linear in layer_linears(dit):
        quantized = linear.quantizable and not edge
        total += scheme_weight_bytes(linear, scheme, dtype_bytes) if quantized else linear.weights * dtype_bytes
    return total


def all_layers_bytes(dit: DiTConfig, scheme: str, dtype_bytes: int) -> int:
    """Bytes of all layers."""
    edges = min(2, dit.num_layers)
    inner = dit.num_layers - edges
    edge_bytes = layer_bytes(dit, scheme, dtype_bytes, edge=True)
    return edges * edge_bytes + inner * layer_bytes(dit, scheme, dtype_bytes, edge=False)


def shell_bytes(dit: DiTConfig) -> int:
    """Bytes of everything outside the layers (float32)."""
    return shell_weights(dit) * 4


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
