"""Small models with the names of the real ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Four linears that read one input, and a projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_qkv = nn.ModuleDict({n: nn.Linear(width, width, bias=False) for n in ("q", "qx", "k", "v")})
        self.linear_kv_xattn = nn.Linear(width, width, bias=False)
        self.linear_proj = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, qx, k, v = (linear(x) for linear in self.linear_qkv.values())
        return self.linear_proj(torch.cat([q * torch.sigmoid(k), qx + v + self.linear_kv_xattn(x)], -1))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(width)
        self.self_attention = Attention(width)
        self.mlp = nn.ModuleDict({"linear_fc1": nn.Linear(width, 4 * width), "linear_fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attention(self.layer_norm(x))
        return x + self.mlp["linear_fc2"](torch.nn.functional.gelu(self.mlp["linear_fc1"](x)))


class Model(nn.Module):
    """An embedder, blocks, a final linear."""

    def __init__(self, width: int = 64, blocks: int = 4) -> None:
        super().__init__()
        self.x_embedder = nn.Linear(8, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(blocks))
        self.final_linear = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.x_embedder(x)
        for block in self.layers:
            x = block(x)
        return self.final_linear(x)


QUANTIZED = frozenset(
    f"layers.{layer}.{name}"
    for layer in (1, 2)
    for name in (
        *(f"self_attention.linear_qkv.{n}" for n in ("q", "qx", "k", "v")),
        "self_attention.linear_proj",
        "mlp.linear_fc1",
        "mlp.linear_fc2",
    )
)
"""What the default selection takes of a `Model` of four blocks."""


def model(generator: torch.Generator, dtype: torch.dtype = torch.bfloat16, **shape: Any) -> Model:
    """Random weights that `dtype` holds exactly, in float32; frozen."""
    made = Model(**shape)
    with torch.no_grad():
        for parameter in made.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
            parameter.copy_((torch.randn(parameter.shape, generator=generator) * scale).to(dtype))
    return made.requires_grad_(False).eval()


def empty(**shape: Any) -> Model:
    """The same on the meta device."""
    with torch.device("meta"):
        return Model(**shape).requires_grad_(False).eval()
