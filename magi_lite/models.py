"""What is known of each model, free of torch: its networks, how it is sampled, how it is stored.

Planner, loader, sampler and pipeline all read one `ModelSpec`: from the table at the end for a published model that is
not on the disk, from the configuration files for one that is (`weights.layout`). Architecture numbers have no defaults.
Source of the numbers: MAGI-1 report (arXiv 2505.13211) and the published configuration files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from magi_lite.config_files import Part
from magi_lite.errors import InputError
from quant.schemes import Published, Scheme

if TYPE_CHECKING:
    from magi_lite.request.request import GenerationRequest

FPS = 24
"""Frames per second of every video the model makes."""
FRAMES_PER_LATENT = 4
"""Temporal compression of the VAE."""
PIXELS_PER_LATENT = 8
"""Spatial compression of the VAE."""
CHUNK_LATENT_FRAMES = 6
"""Latent frames in a chunk: one second."""
NULL_CAPTION_TOKENS = 50
"""Valid tokens of the learned null caption, which clean chunks are run with."""
SIZE_STEP = 16
"""Width and height are multiples of this: VAE (8) times the DiT's patch (2)."""
ROTARY_PARTS = 8
"""A head's width is a multiple of this: three quarters of it are rotated, by three axes, in pairs."""
SCALE_FACTOR = 0.18215
"""Latents are multiplied by this after encoding."""


@dataclass(frozen=True)
class DiTConfig:
    """Shape of a MAGI-1 diffusion transformer; names follow the published `model_config`."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    in_channels: int
    out_channels: int
    caption_channels: int
    caption_max_length: int
    gated_linear_unit: bool
    half_channel_vae: bool
    x_rescale_factor: float
    patch_size: int = 2
    t_patch_size: int = 1
    cond_hidden_ratio: float = 0.25
    layernorm_epsilon: float = 1e-6

    @property
    def cond_size(self) -> int:
        """Width of the condition vector (timestep and dropped-or-not)."""
        return int(self.hidden_size * self.cond_hidden_ratio)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents outside the DiT."""
        return self.in_channels // 2 if self.half_channel_vae else self.in_channels

    @classmethod
    def from_published(cls, model_config: Any, place: str = "The model configuration") -> DiTConfig:
        """Read the `model_config` part of a published configuration file.

        Args:
            place: what it is called in messages.

        Raises:
            CheckpointError: a number is missing, of the wrong kind, not above 0, or contradicts another.
        """
        part = Part(model_config, place)
        values = part.fields_of(cls, {"head_dim": "kv_channels"})
        part.multiple("num_attention_heads", values["num_query_groups"])
        part.multiple("kv_channels", ROTARY_PARTS)
        part.multiple("in_channels", 2 if values["half_channel_vae"] else 1)
        return cls(**values)


DIT_4_5B = DiTConfig(
    num_layers=34,
    hidden_size=3072,
    ffn_hidden_size=12288,
    num_attention_heads=24,
    num_query_groups=8,
    head_dim=128,
    in_channels=16,
    out_channels=16,
    caption_channels=4096,
    caption_max_length=800,
    gated_linear_unit=False,
    half_channel_vae=False,
    x_rescale_factor=1.0,
)
DIT_24B = DiTConfig(
    num_layers=48,
    hidden_size=6144,
    ffn_hidden_size=16384,
    num_attention_heads=48,
    num_query_groups=8,
    head_dim=128,
    in_channels=32,
    out_channels=32,
    caption_channels=4096,
    caption_max_length=800,
    gated_linear_unit=True,
    half_channel_vae=True,
    x_rescale_factor=0.1,
)


@dataclass(frozen=True)
class VAEConfig:
    """Shape of a ViT autoencoder: the `ddconfig` of the checkpoint's config.json."""

    video_size: int
    video_length: int
    embed_dim: int
    depth: int
    num_heads: int
    z_chans: int
    patch_size: int = 8
    patch_length: int = 4
    in_chans: int = 3
    mlp_ratio: float = 4
    qkv_bias: bool = True
    ln_in_attn: bool = True
    conv_last_layer: bool = True
    with_cls_token: bool = True
    double_z: bool = True
    use_rope: bool = False
    use_final_proj: bool = False
    norm_code: bool = False

    @classmethod
    def from_published(cls, ddconfig: Any, place: str = "The autoencoder's configuration") -> VAEConfig:
        """Read the `ddconfig` of a published configuration file.

        Raises:
            CheckpointError: see `DiTConfig.from_published`; or it asks for what no published autoencoder has.
        """
        part = Part(ddconfig, place)
        values = part.fields_of(cls, {})
        part.multiple("embed_dim", values["num_heads"])
        for name, only in (
            ("patch_size", PIXELS_PER_LATENT),
            ("patch_length", FRAMES_PER_LATENT),
            ("conv_last_layer", True),
            ("use_rope", False),
            ("norm_code", False),
        ):
            part.one_of(name, (only,), only)
        if not values["use_final_proj"]:
            part.multiple("embed_dim", PIXELS_PER_LATENT**2 * FRAMES_PER_LATENT)
        part.multiple("video_size", values["patch_size"])
        part.multiple("video_length", values["patch_length"])
        return cls(**values)


VAE_PUBLISHED = VAEConfig(video_size=256, video_length=16, embed_dim=1024, depth=24, num_heads=16, z_chans=16)


@dataclass(frozen=True)
class Tiling:
    """Sizes of a tile in frames and pixels. The published program uses 12 frames (half a second), 256 pixels, 0.25."""

    frames: int = FPS // 2
    height: int = 256
    width: int = 256
    overlap: float = 0.25
    overlap_time: float = 0.0

    @property
    def sample_sizes(self) -> tuple[int, int, int]:
        return self.frames, self.height, self.width

    @property
    def latent_sizes(self) -> tuple[int, int, int]:
        return self.frames // FRAMES_PER_LATENT, self.height // PIXELS_PER_LATENT, self.width // PIXELS_PER_LATENT

    @property
    def step(self) -> int:
        """Pixels from one tile of a row to the next."""
        return int(self.width * (1 - self.overlap))

    @property
    def overlaps(self) -> tuple[float, float, float]:
        return self.overlap_time, self.overlap, self.overlap


PUBLISHED_TILING = Tiling()


@dataclass(frozen=True)
class T5Shape:
    """Shape of a T5 v1.1 encoder (gated GELU, tied word embeddings unused)."""

    layers: int
    width: int
    heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int

    @classmethod
    def from_published(cls, config: Any, place: str = "The text encoder's configuration") -> T5Shape:
        """Read the config.json of a text encoder in transformers layout.

        Raises:
            CheckpointError: see `DiTConfig.from_published`.
        """
        part = Part(config, place)
        return cls(*(part.whole(name) for name in ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "vocab_size")))

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


# --- sampling --------------------------------------------------------------------------------------------------------

PREFIX_RANGE = 8
"""Chunks that a prefix chunk sees, itself included, where a configuration states no range at all."""


@dataclass(frozen=True)
class Guidance:
    """Three-pass guidance of the base model: v = (1-p) v_uncond + (p-w) v_prev + w v_full, by the chunk's t."""

    t_ranges: tuple[float, ...] = (0.0, 0.0217, 0.1, 0.3, 0.999)
    prev_scales: tuple[float, ...] = (1.5, 1.5, 1.5, 1.0, 1.0)
    text_scales: tuple[float, ...] = (7.5, 7.5, 7.5, 0.0, 0.0)


@dataclass(frozen=True)
class SamplerSettings:
    """How noise becomes video. Defaults are the published distilled schedule."""

    steps: int = 8
    window: int = 4
    shortcut: Literal["8,16,16", "16,16,8"] = "8,16,16"
    distilled: bool = True
    guidance: Guidance | None = None
    """Three-pass guidance; None: one pass (distilled models)."""
    nearly_clean: bool = True
    """Distilled models: blend in the oldest chunk seen alone once its t is above `nearly_clean_threshold`."""
    nearly_clean_threshold: float = 0.3
    nearly_clean_scale: float = 0.7
    noise_to_clean_ranges: tuple[int, ...] = (5, 4, 3, 2)
    """Chunks that a chunk sees, itself included, by the part of its steps that it has made; empty: all before it."""
    clean_range: int = 1
    """Chunks that a clean chunk sees, itself included. With empty `noise_to_clean_ranges` it holds for chunks of a
    prefix only, -1 meaning `PREFIX_RANGE`, and all others see everything before them."""
    clean_t: float = 0.9999
    reuse: float = 0.0
    """The relative change up to which a velocity serves at a second step (`sampling.reuse`); 0: all are computed."""
    chunk_width: int = CHUNK_LATENT_FRAMES
    """Latent frames of a chunk."""

    @property
    def prefix_reach(self) -> int:
        """Chunks of a prefix that the first new chunk sees: what of a clip is read."""
        return PREFIX_RANGE if self.sees_everything else max(1, max(self.noise_to_clean_ranges) - 1)

    @property
    def sees_everything(self) -> bool:
        """Whether every chunk sees all before it, so that keys and values of all are kept and memory grows."""
        return not self.noise_to_clean_ranges


REUSE = {"off": 0.0, "low": 0.05, "high": 0.15}
"""`SamplerSettings.reuse` by the option's choices; what they cost and save: `benchmarks/results/reuse.json`."""
BASE_STEPS = 64
DISTILLED = SamplerSettings()
BASE = SamplerSettings(steps=BASE_STEPS, distilled=False, guidance=Guidance(), nearly_clean=False)
"""How the published models are sampled where no configuration lies beside their weights."""


# --- linears of the transformer --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Linear:
    """One linear of a transformer layer, by its published name within the layer."""

    name: str
    outputs: int
    inputs: int
    quantizable: bool

    @property
    def weights(self) -> int:
        return self.outputs * self.inputs


@cache
def layer_linears(dit: DiTConfig) -> tuple[Linear, ...]:
    """The linears of one layer, and which of them may be quantized.

    Caption keys and values and the modulation stay in high precision, as do the embedders and the final linear, which
    belong to no layer: together they are a few percent of the weights, and quantizing them is what visibly hurts.
    """
    hidden = dit.hidden_size
    queries = dit.num_attention_heads * dit.head_dim
    groups = dit.num_query_groups * dit.head_dim
    fc1 = dit.ffn_hidden_size * (2 if dit.gated_linear_unit else 1)
    return (
        Linear("self_attention.linear_qkv.q", queries, hidden, True),
        Linear("self_attention.linear_qkv.qx", queries, hidden, True),
        Linear("self_attention.linear_qkv.k", groups, hidden, True),
        Linear("self_attention.linear_qkv.v", groups, hidden, True),
        Linear("self_attention.linear_kv_xattn", 2 * groups, hidden, False),
        Linear("self_attention.linear_proj", hidden, 2 * queries, True),
        Linear("ada_modulate_layer.proj.0", 2 * hidden, dit.cond_size, False),
        Linear("mlp.linear_fc1", fc1, hidden, True),
        Linear("mlp.linear_fc2", hidden, dit.ffn_hidden_size, True),
    )


def linear_name(layer: int, linear: Linear) -> str:
    """The full published name of a layer's linear, without ".weight"."""
    return f"videodit_blocks.layers.{layer}.{linear.name}"


@cache
def quantizable(dit: DiTConfig) -> Callable[[str], bool]:
    """Which linears of a DiT may be quantized, by full name: those that `layer_linears` says, of every layer but the
    first and the last.

    The one rule for conversion while loading, for recording activations and for plans. (What a file already holds
    quantized is `ModelSpec.stored_linears`.)
    """
    return frozenset(
        linear_name(layer, linear)
        for layer in range(1, dit.num_layers - 1)
        for linear in layer_linears(dit)
        if linear.quantizable
    ).__contains__


# --- models ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelSpec:
    """All that is known of a model without its weights."""

    name: str
    dit: DiTConfig
    vae: VAEConfig
    t5: T5Shape
    sampler: SamplerSettings
    """Its own way of sampling; a request changes steps, window and the like (`sampling`)."""
    stored: Scheme | None = None
    """How its transformer's linears are stored; None: unquantized."""
    stored_linears: frozenset[str] | None = None
    """Full names of the linears that are stored quantized; None: those that may be (`quantizable`)."""
    folder: str = ""
    """Published models: the folder of the family below ckpt/magi, and in it that of the weights."""
    weights_folder: str = ""
    text_conversion: int = 0
    """Bytes of the 16-bit copy of its text encoder's pickled weights that is still to be made; 0: none."""

    @property
    def distilled(self) -> bool:
        return self.sampler.distilled

    @property
    def stored_scheme(self) -> str | None:
        """Name of the scheme in which the linears are stored: published, fp8, int8 or nf4; None: unquantized."""
        return None if self.stored is None else self.stored.name

    @property
    def published_fp8(self) -> bool:
        """Whether the weights are the published FP8 ones."""
        return isinstance(self.stored, Published)

    def quantizes(self, name: str) -> bool:
        """Whether a linear of this full name is quantized when the model runs in a quantized scheme."""
        return name in self.stored_linears if self.stored_linears is not None else quantizable(self.dit)(name)

    def sampling(self, request: GenerationRequest, window: int) -> SamplerSettings:
        """The model's own way of sampling, with what the request chooses."""
        return replace(
            self.sampler,
            steps=request.steps,
            window=window,
            shortcut=request.shortcut,
            nearly_clean=self.sampler.nearly_clean and request.nearly_clean,
            reuse=REUSE[request.reuse],
        )


def _published(name: str, folder: str, weights: str, dit: DiTConfig, sampler: SamplerSettings) -> ModelSpec:
    stored = Published() if ".fp8" in weights else None
    return ModelSpec(name, dit, VAE_PUBLISHED, T5_XXL, sampler, stored, None, folder, weights)


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        _published("4.5B-base", "4.5B_base", "inference_weight", DIT_4_5B, BASE),
        _published("4.5B-distill", "4.5B_distill", "inference_weight.distill", DIT_4_5B, DISTILLED),
        _published("4.5B-distill-fp8", "4.5B_distill_quant", "inference_weight.fp8.distill", DIT_4_5B, DISTILLED),
        _published("24B-base", "24B_base", "inference_weight", DIT_24B, BASE),
        _published("24B-distill", "24B_distill", "inference_weight.distill", DIT_24B, DISTILLED),
        _published("24B-distill-fp8", "24B_distill_quant", "inference_weight.fp8.distill", DIT_24B, DISTILLED),
    )
}
"""The published models by name."""


def published_model(name: str) -> ModelSpec:
    """The published model of that name.

    Raises:
        InputError: there is none.
    """
    if name not in MODELS:
        raise InputError(f'No model called "{name}" can be planned; choose one of {", ".join(MODELS)}.')
    return MODELS[name]
