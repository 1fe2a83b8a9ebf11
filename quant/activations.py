"""Quantizing activations and weights: kernels where `quant.gate` has some for the device, plain torch elsewhere.

The operation that makes the activations may come along and is then part of the kernel (`quant.fusion`). The plain path
works in slices of rows, so its float32 temporaries stay small whatever the number of tokens. Shapes: x is (rows,
features), contiguous; with an operation it is what that is applied to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quant import fusion
from quant.fusion import FLOATS, Before, Operation
from quant.gate import fast_kernels
from quant.kinds import FP8, SMALLEST_ABSMAX, WEIGHT_VALUES, exact_ratio, largest, slices, to_kind
from quant.schemes import FP8_MAX


def unless_fused(x: Tensor, before: Before | None, kind: torch.dtype) -> tuple[Tensor, Operation | None]:
    """(x, operation) where a kernel can do `before` together with the quantization, else (before(x), None).

    x: (..., features) of any shape.
    """
    operation = fusion.known(before, x)
    if operation is not None and fast_kernels(x, kind, operation) is not None:
        return x, operation
    return (x if before is None else before(x)), None


def per_token(x: Tensor, kind: torch.dtype, operation: Operation | None = None) -> tuple[Tensor, Tensor]:
    """Quantize every row with a scale of its own: values (rows, features) of type `kind`, scale (rows, 1) float32.

    scale = absmax of the row / largest number of `kind`; int8 rounds half to even.
    """
    fast = fast_kernels(x, kind, operation)
    if fast is not None:
        return fast.quantize_rows(x, kind, operation)
    x = _single(x if operation is None else operation(x))
    values = torch.empty_like(x, dtype=kind)
    scale = torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device)
    for rows in slices(x):
        absmax = torch.linalg.vector_norm(x[rows], torch.inf, dim=1, keepdim=True).float()
        scale[rows] = exact_ratio(absmax.clamp_min_(SMALLEST_ABSMAX), largest(kind))
        _cast_ratio(x[rows], scale[rows], values[rows])
    return values, scale


def per_tensor(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize to e4m3 with one scale: values (rows, features), scale (1,) float32.

    Nothing before it can be fused: the scale is known when the last number is.
    """
    x = _single(x)
    low, high = torch.aminmax(x) if x.numel() else (x.new_zeros(()), x.new_zeros(()))
    absmax = torch.maximum(low.abs(), high.abs()).float().clamp_min(SMALLEST_ABSMAX)
    scale = exact_ratio(absmax, FP8_MAX).reshape(1)
    fast = fast_kernels(x, FP8)
    if fast is not None:
        return fast.quantize_static(x, scale, twice=False), scale
    values = torch.empty_like(x, dtype=FP8)
    for rows in slices(x):
        _cast_ratio(x[rows], scale, values[rows])
    return values, scale


def static(x: Tensor, divisor: Tensor, operation: Operation | None = None) -> Tensor:
    """Quantize to e4m3 as the published checkpoints want it: divide by (1,) or (features,), clamp, bf16, e4m3.

    The rounding through bfloat16 changes about 3 % of the values and is part of the format.
    """
    fast = fast_kernels(x, FP8, operation)
    if fast is not None:
        return fast.quantize_static(x, divisor, True, operation)
    x = _single(x if operation is None else operation(x))
    values = torch.empty_like(x, dtype=FP8)
    for rows in slices(x):
        values[rows] = (x[rows] / divisor).clamp_(-FP8_MAX, FP8_MAX).to(torch.bfloat16)
    return values


def _single(x: Tensor) -> Tensor:
    """Numbers that a float32 divisor makes float32 as it divides: those of 16 bits need no copy of that type first."""
    return x if x.dtype in FLOATS else x.float()


def _cast_ratio(x: Tensor, scale: Tensor, values: Tensor) -> None:
    """values = x / scale, rounded; nothing is clamped, for the scale puts the largest on the largest."""
    ratio = x / scale
    values.copy_(ratio.round_() if values.dtype == torch.int8 else ratio)


def weight_by_row(weight: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantize a weight (out, in) of any float type with a scale per output channel: values, float32 scale (out, 1).

    Plain arithmetic on every device, so that files and models hold the same bits; in small slices, so that a large
    weight is never there in float32.
    """
    values = torch.empty(weight.shape, dtype=kind, device=weight.device)
    scale = torch.empty(weight.shape[0], 1, dtype=torch.float32, device=weight.device)
    for rows in slices(weight, WEIGHT_VALUES):
        numbers = weight.detach()[rows].float()
        absmax = numbers.abs().amax(dim=1, keepdim=True)
        scale[rows] = exact_ratio(absmax.clamp_min(SMALLEST_ABSMAX), largest(kind))
        values[rows] = to_kind(numbers / scale[rows], kind)
    return values, scale


def weight_by_tensor(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Likewise to e4m3 with one scale (1,)."""
    values = torch.empty(weight.shape, dtype=FP8, device=weight.device)
    absmax = weight.detach().abs().max().float() if weight.numel() else weight.new_zeros(()).float()
    scale = exact_ratio(absmax.clamp_min(SMALLEST_ABSMAX), FP8_MAX).reshape(1)
    for rows in slices(weight, WEIGHT_VALUES):
        values[rows] = to_kind(weight.detach()[rows].float() / scale, FP8)
    return values, scale
