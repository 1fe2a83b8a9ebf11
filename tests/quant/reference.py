"""The number formats from their definitions, in float64 and on bit patterns: nothing is shared with the code tested."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def e4m3_grid() -> np.ndarray:
    """The 127 non-negative finite e4m3fn numbers in order: bias 7, 3 mantissa bits, subnormals, no infinity."""
    numbers = []
    for code in range(127):
        exponent, mantissa = code >> 3, code & 7
        numbers.append(mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return np.array(numbers)


def to_e4m3(values: np.ndarray) -> np.ndarray:
    """Nearest e4m3 number, ties to the even code, clamped to 448; float64 in and out."""
    grid = e4m3_grid()
    magnitude = np.minimum(np.abs(values), 448.0)
    above = np.clip(np.searchsorted(grid, magnitude, side="left"), 1, 126)
    below = above - 1
    up, down = grid[above] - magnitude, magnitude - grid[below]
    code = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return np.copysign(grid[code], values)


def to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, ties to even, on the bits."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32)


def outliers(*shape: int, generator: torch.Generator) -> Tensor:
    """Activations as transformers have them: unit noise, a few channels 20 to 60 times as large, rows of many sizes."""
    x = torch.randn(*shape, generator=generator)
    channels = torch.randperm(shape[-1], generator=generator)[: max(1, shape[-1] // 50)]
    x[..., channels] *= 20 + 40 * torch.rand(len(channels), generator=generator)
    return x * torch.exp(torch.randn(*shape[:-1], 1, generator=generator))


def relative(ours: Tensor, truth: Tensor) -> float:
    """|ours - truth| / |truth| in float64."""
    return ((ours.double() - truth.double()).norm() / truth.double().norm()).item()
