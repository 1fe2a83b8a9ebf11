"""What is known of each model: shapes of the published transformers and autoencoders, free of torch.

Architecture numbers have no defaults; the published sizes stand in the tables at the end.
Source of the numbers: MAGI-1 report (arXiv 2505.13211) and the published configuration files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from magi_lite.config_files import Part

FPS = 24
"""Frames per second of every video the model makes."""
FRAMES_PER_LATENT = 4
"""Temporal compression of the VAE."""
PIXELS_PER_LATENT = 8
"""Spatial compression of the VAE."""
CHUNK_LATENT_FRAMES = 6
"""Latent frames in a chunk: one second."""
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
class ModelFamily:
    """One published set of DiT weights and how it wants to be sampled."""

    name: str
    folder: str
    weights: str
    dit: DiTConfig
    distilled: bool
    quantized: bool = False


MODELS: dict[str, ModelFamily] = {
    family.name: family
    for family in (
        ModelFamily("4.5B-base", "4.5B_base", "inference_weight", DIT_4_5B, distilled=False),
        ModelFamily("4.5B-distill", "4.5B_distill", "inference_weight.distill", DIT_4_5B, distilled=True),
        ModelFamily("4.5B-distill-fp8", "4.5B_distill_quant", "inference_weight.fp8.distill", DIT_4_5B, True, True),
        ModelFamily("24B-base", "24B_base", "inference_weight", DIT_24B, distilled=False),
        ModelFamily("24B-distill", "24B_distill", "inference_weight.distill", DIT_24B, distilled=True),
        ModelFamily("24B-distill-fp8", "24B_distill_quant", "inference_weight.fp8.distill", DIT_24B, True, True),
    )
}
