"""The transformer's small layers. Precision lives here: each layer knows in which numbers it works.

Which places are float32 in a bfloat16 model follows the published program (docs/architecture.md, section 2 of the
model): embedders, the self attention's q/k norms and rotation, post-norms and residual sums, final norm and linear,
unquantized projection.
"""

from __future__ import annotations

import logging
import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quant
from magi_lite import fused
from magi_lite.dit.rope import rotate

_log = logging.getLogger(__name__)
SLICE_ROWS = 4096
"""Rows whose float32 copies `Float32Linear` makes at a time, where it has to make any."""
TIMESTEP_SCALE = 1000.0
TIMESTEP_WIDTH = 256
TIMESTEP_PERIOD = 10000.0
TIMESTEP_ULPS = ((12, 1), (106, 1))
"""Where the published program's float32 frequencies are not the correctly rounded ones: (index, last-place units).

A step-size number of 8 turns the one of index 12 through 3375 radians, where one unit is 2.4e-4 radians and shows in
the velocity (9e-6 of it, against 1e-6 for everything else together). Found in the goldens.
"""


class ZeroCentredLayerNorm(nn.Module):
    """LayerNorm whose stored weight is the effective one minus one ("1p").

    Args:
        single: work in float32 and return float32, whatever comes in; else work in the input's type.
    """

    def __init__(self, size: int, eps: float, *, single: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps
        self.single = single

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if self.single:
            x, weight, bias = x.float(), weight.float(), bias.float()
        return F.layer_norm(x, (x.shape[-1],), weight + 1, bias, self.eps)


class Float32Linear(nn.Linear):
    """A linear with float32 output and, mathematically, float32 operands.

    Products of bfloat16 numbers are exact in float32, so on a GPU the bfloat16 kernel with float32 accumulation and
    output gives what a float32 product of the same operands gives, at bfloat16's speed. Before torch 2.8 that kernel
    cannot be asked for: there the float32 copies of many rows are made in slices.
    """

    formula = "linear"
    """Says to whoever swaps linears that nothing but the product would be lost with this forward."""

    def forward(self, x: Tensor) -> Tensor:
        both_half = x.dtype == self.weight.dtype == torch.bfloat16
        if (x.is_cuda or x.is_meta) and both_half and self.bias is None and not torch.is_grad_enabled():
            rows = x.flatten(0, -2)
            if has_wide_product(rows.device):
                flat = torch.mm(rows, self.weight.t(), out_dtype=torch.float32)
            else:
                flat = self.in_slices(rows)
            return flat.view(*x.shape[:-1], -1)
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x.float(), self.weight.float(), bias)

    def in_slices(self, rows: Tensor) -> Tensor:
        """(rows, in) -> (rows, out) float32, with float32 copies of `SLICE_ROWS` rows at a time."""
        result = torch.empty(len(rows), self.out_features, dtype=torch.float32, device=rows.device)
        weight = self.weight.float().t()
        for start in range(0, len(rows), SLICE_ROWS):
            part = slice(start, start + SLICE_ROWS)
            torch.mm(rows[part].float(), weight, out=result[part])
        return result


def has_wide_product(device: torch.device) -> bool:
    """Whether this torch multiplies bfloat16 matrices to a float32 one (2.8 and up), and this card takes it."""
    return "dtype" in torch.ops.aten.mm.overloads() and (device.type != "cuda" or _wide_product_serves(device))


@lru_cache
def _wide_product_serves(device: torch.device) -> bool:
    """One product of a layer's size is tried: a refusal later would cost the run, the sliced way only time."""
    rows, inputs, outputs = 256, 6144, 3072
    ones = torch.ones(rows, inputs, dtype=torch.bfloat16, device=device)
    weight = torch.ones(outputs, inputs, dtype=torch.bfloat16, device=device)
    try:
        return bool((torch.mm(ones, weight.t(), out_dtype=torch.float32) == inputs).all())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        _log.warning("Products of bfloat16 with float32 results are made in slices on %s: %s", device, error)
        return False


class PatchEmbedding(nn.Module):
    """Latents -> tokens. A Conv3d whose kernel is its stride, computed as the matrix product that it is.

    (A cuDNN convolution would round to TF32 by default.)
    """

    def __init__(self, channels: int, hidden: int, t_patch: int, patch: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden, channels, t_patch, patch, patch))
        nn.init.normal_(self.weight, std=(channels * t_patch * patch * patch) ** -0.5)

    def forward(self, latents: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, T*H*W / patch volume, D), tokens in T, H, W order, float32."""
        n, c, t, h, w = latents.shape
        pt, ph, pw = self.weight.shape[2:]
        patches = latents.float().view(n, c, t // pt, pt, h // ph, ph, w // pw, pw)
        patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(n, -1, c * pt * ph * pw)
        return F.linear(patches, self.weight.flatten(1).float())


class TimestepEmbedding(nn.Module):
    """A number -> a condition vector: sinusoid of 1000 * t, [cos | sin], then Linear-SiLU-Linear in float32."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Float32Linear(TIMESTEP_WIDTH, size), nn.SiLU(), Float32Linear(size, size))

    def forward(self, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """(...,) float32 -> (..., size) float32; the sinusoid is rounded to `dtype`, as the weights were trained."""
        angles = numbers.float()[..., None] * timestep_frequencies(numbers.device) * TIMESTEP_SCALE
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype))


def timestep_frequencies(device: torch.device) -> Tensor:
    """(128,) float32, radians per thousandth: 10000 ** (-i / 128), the same bits on every device.

    Angles reach 8000 radians, where a float32 rounding is 5e-4: so the exponents are rounded as published, exp is
    rounded correctly whatever the device's float32 exp does, and the known exceptions are put in.
    """
    half = TIMESTEP_WIDTH // 2
    exponents = -math.log(TIMESTEP_PERIOD) * torch.arange(half, dtype=torch.float32, device=device) / half
    frequencies = exponents.double().exp().float()
    for index, ulps in TIMESTEP_ULPS:
        exponent = math.floor(-math.log2(TIMESTEP_PERIOD) * index / half)
        frequencies[index] += ulps * torch.finfo(torch.float32).eps * 2.0**exponent
    return frequencies


class CaptionEmbedding(nn.Module):
    """Caption embeddings -> cross attention's input, and the one learned vector that tells dropped from not."""

    def __init__(self, channels: int, max_length: int, hidden: int, condition: int) -> None:
        super().__init__()
        self.null_caption_embedding = nn.Parameter(torch.randn(max_length, channels) * channels**-0.5)
        self.y_proj_xattn = nn.Sequential(Float32Linear(channels, hidden), nn.SiLU())
        self.y_proj_adaln = nn.Sequential(Float32Linear(channels, condition))

    def hidden(self, embeddings: Tensor) -> Tensor:
        """(..., channels) -> (..., hidden) float32: what the layers make keys and values of."""
        return self.y_proj_xattn(embeddings)

    def modulation(self, dropped: Tensor) -> Tensor:
        """(B,) bool -> (B, condition) float32: null row -1 where the caption is dropped, else row -2."""
        rows = self.y_proj_adaln(self.null_caption_embedding[-2:])
        return torch.where(dropped[:, None], rows[1], rows[0])


class Modulation(nn.Module):
    """Condition -> the two gates of a layer, each within (-1, 1)."""

    def __init__(self, condition: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(condition, 2 * hidden))

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """(N, K, condition), after its SiLU -> attention's gate and the MLP's, (N, K, D) each, float32 (softcap 1)."""
        raw = self.proj(condition)
        attention, mlp = torch.tanh(raw).float().chunk(2, dim=-1)  # of 16 bits it is computed in float32, and rounded
        return attention, mlp


class Activation(nn.Module):
    """GELU, or SiLU of the first half times the second; `formula` tells quantized linears which (`quant.fusion`)."""

    def __init__(self, *, gated: bool) -> None:
        super().__init__()
        self.formula = "gated_silu" if gated else "gelu"

    def forward(self, x: Tensor) -> Tensor:
        """(..., ffn), or (..., 2 * ffn) gated, -> (..., ffn). GELU uses x up where autograd is off."""
        if self.formula == "gated_silu":
            gate, value = x.chunk(2, dim=-1)
            return (F.silu(gate.float()) * value.float()).to(x.dtype)
        if torch.is_grad_enabled():
            return F.gelu(x)
        return torch.ops.aten.gelu_(x)  # the widest tensor of the model: one copy, not two


class MLP(nn.Module):
    """LayerNorm, fc1, GELU or gated SiLU (first half is the gate), fc2."""

    def __init__(self, hidden: int, ffn: int, eps: float, *, gated: bool) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(hidden, eps)
        self.linear_fc1 = nn.Linear(hidden, 2 * ffn if gated else ffn, bias=False)
        self.linear_fc2 = nn.Linear(ffn, hidden, bias=False)
        self.activation = Activation(gated=gated)

    def forward(self, x: Tensor) -> Tensor:
        (inner,) = quant.shared_forward([self.linear_fc1], x, self.layer_norm)
        return quant.shared_forward([self.linear_fc2], inner, self.activation)[0]


class FinalLinear(nn.Module):
    """Tokens -> patches of velocity, float32."""

    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__()
        self.linear = Float32Linear(hidden, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def unpatchify(patches: Tensor, frames: int, height: int, width: int, t_patch: int, patch: int) -> Tensor:
    """(N, S, pT*pH*pW*C) -> (N, C, T, H, W); frames, height, width count patches. The last axis is (pT, pH, pW, C)."""
    n = patches.shape[0]
    grid = patches.view(n, frames, height, width, t_patch, patch, patch, -1)
    return grid.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(n, -1, frames * t_patch, height * patch, width * patch)


def gated_residual(x: Tensor, branch: Tensor, gate: Tensor, norm: ZeroCentredLayerNorm) -> Tensor:
    """x + norm(branch * gate), computed in float32, in x's type; in x itself where autograd is off.

    Args:
        x, branch: (N, chunks, tokens, D); gate: (N, chunks, 1, D) float32. `branch` is used up where autograd is off.
    """
    if torch.is_grad_enabled():
        return (norm(branch.float() * gate) + x).to(x.dtype)
    kernels = fused.for_residual(x, branch, gate, norm.weight, norm.bias)
    if kernels is not None:
        done: Tensor = kernels.add_gated_(x, branch, gate, norm.weight, norm.bias, norm.eps)
        return done
    branch = branch.float()  # under the old name, so that a 16-bit one can go
    return x.add_(norm(branch.mul_(gate)))


def normed_heads(x: Tensor, norm: ZeroCentredLayerNorm, table: Tensor | None = None) -> Tensor:
    """The norm of every head, rotated by the table where there is one, in x's type; x is used up where autograd is off.

    Args:
        x: (N, chunks, tokens, heads, head_dim); table: (chunks, tokens, 2 * r), see `rope.rotate`.
    """
    kernels = None if torch.is_grad_enabled() else fused.for_heads(x, norm.weight, norm.bias, table)
    if kernels is not None and x.is_contiguous():
        angles = None if table is None else table.flatten(0, -2)
        rows = x.view(-1, *x.shape[-2:])
        kernels.norm_heads_(rows, norm.weight, norm.bias, norm.eps, in_type=not norm.single, table=angles)
        return x
    normed = norm(x)
    return (normed if table is None else rotate(normed, table)).to(x.dtype)
