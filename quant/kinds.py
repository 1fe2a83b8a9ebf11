"""The types that numbers are quantized to, and the rounding that every path to them shares.

A quantized tensor is values * scale. Plain torch, no kernels: what all other modules of the arithmetic build on.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from quant.schemes import FP8_MAX, INT8_MAX

FP8 = torch.float8_e4m3fn
SMALLEST_ABSMAX = 1e-30
"""Stands in for the absmax of an all-zero row, whose scale must be neither zero nor denormal."""
SLICE_VALUES = 1 << 22
"""Values the plain path handles at a time: 16 MiB of float32."""
WEIGHT_VALUES = 1 << 21
"""Values of a weight that are handled at a time: 8 MiB of float32."""


def largest(kind: torch.dtype) -> float:
    """Largest magnitude that a quantized type holds."""
    return INT8_MAX if kind == torch.int8 else FP8_MAX


def exact_ratio(x: Tensor, divisor: float) -> Tensor:
    """x / divisor rounded once, on every device: by a plain number, CUDA multiplies with the rounded reciprocal."""
    return x / torch.full((), divisor, dtype=x.dtype, device=x.device)


def to_kind(scaled: Tensor, kind: torch.dtype) -> Tensor:
    """Round scaled float32 numbers to `kind`; clamped first, because casting to e4m3 overflows to NaN."""
    scaled = scaled.clamp_(-largest(kind), largest(kind))
    return scaled.round_().to(kind) if kind == torch.int8 else scaled.to(kind)


def slices(x: Tensor, values: int | None = None) -> Iterator[slice]:
    """Row ranges of at most so many values (`SLICE_VALUES` if None), one row at least."""
    step = max(1, (values or SLICE_VALUES) // max(1, x.shape[1]))
    return (slice(start, start + step) for start in range(0, x.shape[0], step))


def steps_apart(values: Tensor, scaled: Tensor) -> float:
    """How far quantized numbers lie from the scaled float32 ones that they stand for, at most, in steps of their type.

    Rounding to the nearest gives 0.5. A step of int8 is 1; one of e4m3 is an eighth of the number's power of two, 2^-9
    at least.
    """
    scaled = scaled.clamp(-largest(values.dtype), largest(values.dtype))
    step = torch.ones_like(scaled)
    if values.dtype != torch.int8:
        step = torch.exp2(torch.floor(torch.log2(scaled.abs().clamp_min(2**-6)))) / 8
    return float(((values.float() - scaled).abs() / step).max()) if values.numel() else 0.0
