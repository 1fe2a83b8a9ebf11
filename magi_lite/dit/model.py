"""The MAGI-1 diffusion transformer (arXiv 2505.13211, section 2): chunks at their own noise levels in one pass.

Clean chunks come from a KV store, each chunk reads a range of chunks, and prompts reach it by cross attention only. The
published program also merges a clean chunk and a "nearly clean" copy into the pass; here they are passes of their own:
equal numbers, less memory, and a clean chunk's keys that depend on nothing but its latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from magi_lite.attention import SDPA, Backend
from magi_lite.dit.block import Pass, TransformerLayer
from magi_lite.dit.captions import CaptionContext, CaptionEncoding, caption_lengths
from magi_lite.dit.layers import (
    CaptionEmbedding,
    FinalLinear,
    PatchEmbedding,
    TimestepEmbedding,
    ZeroCentredLayerNorm,
    unpatchify,
)
from magi_lite.dit.rope import Rope
from magi_lite.dit.slicing import pieces
from magi_lite.dit.store import KVStore
from magi_lite.errors import InputError
from magi_lite.models import DiTConfig

SINGLE_PLACES = (
    "x_embedder.",
    "t_embedder.",
    "y_embedder.",
    "rope.",
    ".q_layernorm.",
    ".k_layernorm.",
    "_post_norm.",
    "final_layernorm.",
    "final_linear.",
)
"""Parameters that stay float32 in a bfloat16 model."""


def parameter_dtype(name: str, compute: torch.dtype) -> torch.dtype:
    """The type in which a parameter of this name is kept in a model that computes in `compute`."""
    return torch.float32 if any(place in name for place in SINGLE_PLACES) else compute


class Blocks(nn.Module):
    """The layers and the norm behind them."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(config, index) for index in range(config.num_layers))
        self.final_layernorm = ZeroCentredLayerNorm(config.hidden_size, config.layernorm_epsilon, single=True)

    def stack(self) -> list[TransformerLayer]:
        """The layers in order, by their type."""
        return cast("list[TransformerLayer]", list(self.layers))


class DiT(nn.Module):
    """Noisy chunks, their timesteps and captions -> the velocity of each. State-dict names are the published ones.

    Attributes:
        backend: the attention kernel (`attention.choose`).
        mlp_slice, attention_slice: tokens worked on at once, None for all: exact, bounds activations. A slice never
            crosses a chunk's end, so it is at most a chunk.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.backend: Backend = SDPA
        self.mlp_slice: int | None = None
        self.attention_slice: int | None = None
        hidden, condition = config.hidden_size, config.cond_size
        self.x_embedder = PatchEmbedding(config.in_channels, hidden, config.t_patch_size, config.patch_size)
        self.t_embedder = TimestepEmbedding(condition)
        self.y_embedder = CaptionEmbedding(config.caption_channels, config.caption_max_length, hidden, condition)
        self.gate_activation = nn.SiLU()
        self.rope = Rope(config.head_dim)
        self.videodit_blocks = Blocks(config)
        self.final_linear = FinalLinear(hidden, config.t_patch_size * config.patch_size**2 * config.out_channels)

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the layers compute: that of the norms which are never kept higher."""
        return self.videodit_blocks.stack()[0].mlp.layer_norm.weight.dtype

    def to_precision(self, dtype: torch.dtype) -> DiT:
        """Convert every parameter to the type it has in a model that computes in `dtype`; for unquantized models."""
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(parameter_dtype(name, dtype))
        return self

    def encode_captions(
        self, embeddings: Tensor, mask: Tensor | Sequence[int] | None = None, dropped: bool | Tensor = False
    ) -> CaptionContext:
        """Everything a forward needs of captions: the context that its cross attention reads.

        Args:
            embeddings: (B, L, caption channels).
            mask: (B, L) of 0/1 with the valid tokens first, or their B numbers, or None: all.
            dropped: whether the caption counts as dropped (guidance), for all or (B,): chooses the learned row that
                the condition gets. The captions themselves are used as they are.

        Raises:
            InputError: shapes disagree or the mask has gaps.
        """
        if embeddings.ndim != 3 or embeddings.shape[-1] != self.config.caption_channels:
            wanted = f"(captions, tokens, {self.config.caption_channels})"
            raise InputError(f"Caption embeddings are {tuple(embeddings.shape)}; they must be {wanted}.")
        lengths = caption_lengths(embeddings, mask)
        hidden = self.y_embedder.hidden(embeddings[:, : max(lengths)]).to(self.dtype)
        flags = dropped if isinstance(dropped, Tensor) else torch.full((len(lengths),), dropped, device=hidden.device)
        modulation = self.y_embedder.modulation(flags.to(hidden.device).bool())
        layers = tuple(layer.caption_key_value(hidden) for layer in self.videodit_blocks.stack())
        return CaptionContext.of(CaptionEncoding(layers, lengths, modulation))

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: CaptionContext,
        *,
        first_chunk: int,
        kv_ranges: Sequence[tuple[int, int]],
        store: KVStore | None = None,
        write: bool = False,
        step_size: float | Tensor | None = None,
    ) -> Tensor:
        """The velocity (clean minus noise) of K contiguous chunks.

        Args:
            latents: (N, C, T, H, W); T is K times the chunk's latent frames.
            timesteps: (N, K) float32, 0 noise, 1 clean.
            context: of the chunks' captions, N * K rows in (n, k) order.
            first_chunk: absolute number of the first chunk: its place in time and in the store.
            kv_ranges: for each chunk, the absolute chunks [first, last) that it sees; those before `first_chunk` come
                from the store.
            store: keys and values of chunks before this pass.
            write: put this pass's keys and values into the store, all K chunks.
            step_size: distilled models' step-size number, one or (N, K); None for base models.

        Returns:
            (N, C, T, H, W) float32.

        Raises:
            InputError: shapes, ranges or captions do not fit each other.
        """
        self._check(latents, timesteps, context, first_chunk, kv_ranges, store, write)
        channels, frames, height, width = latents.shape[1:]
        chunks = timesteps.shape[1]
        config, dtype = self.config, self.dtype
        grid = (frames // config.t_patch_size, height // config.patch_size, width // config.patch_size)
        condition = self._condition(timesteps, context, step_size, dtype)
        table = self.rope(first_chunk * (grid[0] // chunks), *grid)
        step = Pass(
            first_chunk=first_chunk,
            kv_ranges=tuple((first, last) for first, last in kv_ranges),
            condition=self.gate_activation(condition),
            table=table.view(chunks, -1, table.shape[-1]),
            context=context,
            store=store,
            write=write,
            backend=self.backend,
            mlp_slice=self.mlp_slice,
            attention_slice=self.attention_slice,
        )
        x = self.x_embedder(self._scaled(latents)).to(dtype).unflatten(1, (chunks, -1))
        reads = store is not None and any(first < first_chunk for first, _ in kv_ranges)
        for index, layer in enumerate(self.videodit_blocks.stack()):
            if store is not None and reads:
                store.prefetch(index)
            x = layer(x, step)
        norm = self.videodit_blocks.final_layernorm
        parts = [
            self.final_linear(norm(x[part])).flatten(1, 2) for part in pieces(x.shape[1], x.shape[2], self.mlp_slice)
        ]
        patches = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        velocity = unpatchify(patches, *grid, config.t_patch_size, config.patch_size)[:, :channels]
        return velocity if config.x_rescale_factor == 1 else velocity / config.x_rescale_factor

    def _scaled(self, latents: Tensor) -> Tensor:
        """As the patch embedding wants them: rescaled, and twice for a model of twice the channels."""
        x = latents.float()
        if self.config.x_rescale_factor != 1:
            x = x * self.config.x_rescale_factor
        return torch.cat([x, x], dim=1) if self.config.half_channel_vae else x

    def _condition(
        self, timesteps: Tensor, context: CaptionContext, step_size: float | Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """(N, K, condition): the timestep's embedding, the step size's, and dropped or not."""
        condition = self.t_embedder(timesteps, dtype)
        if step_size is not None:
            if not isinstance(step_size, Tensor):
                step_size = torch.full_like(timesteps, step_size, dtype=torch.float32)
            condition = condition + self.t_embedder(step_size, dtype)
        return (condition + context.modulation.view(condition.shape)).to(dtype)

    def _check(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: CaptionContext,
        first_chunk: int,
        kv_ranges: Sequence[tuple[int, int]],
        store: KVStore | None,
        write: bool,
    ) -> None:
        """Refuse what does not fit together; shapes only, so nothing waits for the device."""
        n, channels, frames, height, width = latents.shape
        patch, t_patch = self.config.patch_size, self.config.t_patch_size
        if channels != self.config.latent_channels or height % patch or width % patch:
            wanted = f"{self.config.latent_channels} channels and sides that are multiples of {patch}"
            raise InputError(f"Latents are {tuple(latents.shape)}; this model takes {wanted}.")
        if timesteps.ndim != 2 or timesteps.shape[0] != n or timesteps.shape[1] < 1:
            raise InputError(f"Timesteps are {tuple(timesteps.shape)}; they must be ({n}, chunks).")
        chunks = timesteps.shape[1]
        if frames % (chunks * t_patch) or not frames:
            raise InputError(f"{frames} latent frames cannot be cut into {chunks} equal chunks.")
        if len(context) != n * chunks:
            raise InputError(f"There are {len(context)} captions for {n} x {chunks} chunks; give one for each.")
        end = first_chunk + chunks
        if len(kv_ranges) != chunks or not all(0 <= first < last <= end for first, last in kv_ranges):
            raise InputError(f"KV ranges {list(kv_ranges)} must be {chunks}, each within [0, {end}) and not empty.")
        if store is None and (write or any(first < first_chunk for first, _ in kv_ranges)):
            raise InputError("A pass that writes, or sees chunks before its own, needs a KV store.")
