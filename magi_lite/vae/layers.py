"""Blocks of the ViT autoencoder: attention with normalized q, k and v, MLP, and the position table.

Source: MAGI-1 report, section on the VAE, and the published checkpoint's layout.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from magi_lite import fused
from magi_lite.attention import fused as fused_attention
from magi_lite.models import VAEConfig

NORM_EPSILON = 1e-5
HEAD_NORM_EPSILON = 1e-5
"""Added to the standard deviation itself, not to the variance."""


class PatchConvolution(nn.Conv3d):
    """A convolution whose stride is its kernel, as the matrix product that it is.

    cuDNN's three-dimensional convolutions are avoided: of some versions (9.8 to 9.14) those in bfloat16 are refused by
    torch, which then takes many times the memory and time, or give wrong results (pytorch issues 163539, 166643).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, D, T / kT, H / kH, W / kW)."""
        t, h, w = self.kernel_size
        patches = x.unflatten(4, (-1, w)).unflatten(3, (-1, h)).unflatten(2, (-1, t))  # N, C, T, t, H, h, W, w
        patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 4, 1, 2, 3)


class FrameConvolution(nn.Conv3d):
    """A convolution over three frames, padded by one, as one over pictures that holds them as channels.

    The same sum, rounded once; why not as cuDNN has it: see `PatchConvolution`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, D, T, H, W)."""
        frames = x.shape[2]
        padded = F.pad(x.transpose(1, 2), (0, 0, 0, 0, 0, 0, 1, 1))  # N, T + 2, C, H, W
        three = torch.cat([padded[:, i : i + frames] for i in range(3)], dim=2)
        weight = self.weight.transpose(1, 2).flatten(1, 2)  # D, 3 * C, kH, kW
        pictures = F.conv2d(three.flatten(0, 1), weight, self.bias, padding=1)
        return pictures.unflatten(0, (-1, frames)).transpose(1, 2)


def normalize_heads(x: Tensor) -> Tensor:
    """(x - mean) / (std + 1e-5) over the last axis, std biased, no weights; in float32, returned as x's dtype.

    Args:
        x: (..., heads, head_dim); it may be used up where autograd is off.
    """
    kernels = None if torch.is_grad_enabled() else fused.for_plain_heads(x)
    if kernels is not None and x.is_contiguous():
        kernels.norm_heads_(x.view(-1, *x.shape[-2:]), None, None, HEAD_NORM_EPSILON, deviation=True)
        return x
    wide = x.float()
    centred = wide - wide.mean(-1, keepdim=True)
    deviation = centred.square().mean(-1, keepdim=True).sqrt()
    return (centred / (deviation + HEAD_NORM_EPSILON)).to(x.dtype)


def resize_positions(table: Tensor, trained: tuple[int, int, int], wanted: tuple[int, int, int]) -> Tensor:
    """Stretch a learned position table to another latent grid.

    Args:
        table: (1, T*H*W, D) without the class token's row.
        trained: the (T, H, W) that the table was learned for.
        wanted: the (T, H, W) of the input at hand.

    Returns:
        (1, T'*H'*W', D), trilinear, corners not aligned; the table itself where the grids agree.
    """
    if trained == wanted:
        return table
    grid = table.transpose(1, 2).unflatten(2, trained)
    return F.interpolate(grid, size=wanted, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Plain multi-head self attention over all tokens of a tile; (N, S, D) -> (N, S, D)."""

    def __init__(self, width: int, heads: int, qkv_bias: bool, normalize: bool) -> None:
        super().__init__()
        self.heads = heads
        self.normalize = normalize
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (N, S, 3, heads, head_dim)
        if self.normalize:
            qkv = normalize_heads(qkv)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (N, heads, S, head_dim)
        return self.proj(fused_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block; with heads normalized inside the attention, the first norm is absent."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, qkv_bias: bool, ln_in_attn: bool) -> None:
        super().__init__()
        self.norm1 = nn.Identity() if ln_in_attn else nn.LayerNorm(width, eps=NORM_EPSILON)
        self.attn = Attention(width, heads, qkv_bias, normalize=ln_in_attn)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """What encoder and decoder share: class token, position table, blocks, final norm. Subclasses add both ends."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.grid = (
            config.video_length // config.patch_length,
            config.video_size // config.patch_size,
            config.video_size // config.patch_size,
        )
        tokens = self.grid[0] * self.grid[1] * self.grid[2] + int(config.with_cls_token)
        if config.with_cls_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.with_cls_token = config.with_cls_token
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, config.embed_dim))
        self.blocks = nn.ModuleList(
            Block(config.embed_dim, config.num_heads, config.mlp_ratio, config.qkv_bias, config.ln_in_attn)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.embed_dim, eps=NORM_EPSILON)

    def positions(self, grid: tuple[int, int, int]) -> Tensor:
        """The position table for a latent grid, the class token's row in front."""
        first = int(self.with_cls_token)
        patches = resize_positions(self.pos_embed[:, first:], self.grid, grid)
        return torch.cat([self.pos_embed[:, :first], patches], dim=1)

    def transform(self, tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """(N, T*H*W, D) patch tokens through all blocks -> (N, T*H*W, D), normalized."""
        if self.with_cls_token:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        x = tokens + self.positions(grid)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, int(self.with_cls_token) :]
