"""Quantizing activations: the one door. Triton on CUDA where it is present, plain torch elsewhere.

torch.compile is no middle road: its CUDA backend is Triton itself. The plain path works in slices of rows, so its
float32 temporaries stay small whatever the number of tokens. Shapes: x (rows, features), contiguous.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from quant.schemes import FP8_MAX, INT8_MAX

FP8 = torch.float8_e4m3fn
SMALLEST_ABSMAX = 1e-12
"""Stands in for the absmax of an all-zero row, whose scale must not be zero."""
SLICE_VALUES = 1 << 24
"""Values the plain path handles at a time: 64 MiB of float32."""


def per_token(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantize every row with a scale of its own: values (rows, features) of type `kind`, scale (rows, 1) float32.

    scale = absmax of the row / largest number of `kind`; int8 rounds half to even.
    """
    fast = fast_kernels(x, kind)
    if fast is not None:
        return fast.quantize_rows(x, kind)
    values = torch.empty_like(x, dtype=kind)
    scale = torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device)
    for rows in slices(x):
        part = x[rows].float()
        absmax = part.abs().amax(dim=1, keepdim=True).clamp_min(SMALLEST_ABSMAX)
        scale[rows] = exact_ratio(absmax, largest(kind))
        values[rows] = to_kind(part / scale[rows], kind)
    return values, scale


def per_tensor(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize to e4m3 with one scale: values (rows, features), scale (1,) float32."""
    low, high = torch.aminmax(x) if x.numel() else (x.new_zeros(()), x.new_zeros(()))
    absmax = torch.maximum(low.abs(), high.abs()).float().clamp_min(SMALLEST_ABSMAX)
    scale = exact_ratio(absmax, FP8_MAX).reshape(1)
    fast = fast_kernels(x, FP8)
    if fast is not None:
        return fast.quantize_static(x, scale, twice=False), scale
    values = torch.empty_like(x, dtype=FP8)
    for rows in slices(x):
        values[rows] = to_kind(x[rows].float() / scale, FP8)
    return values, scale


def static(x: Tensor, divisor: Tensor) -> Tensor:
    """Quantize to e4m3 as the published checkpoints want it: divide by (1,) or (features,), clamp, bf16, e4m3.

    The rounding through bfloat16 changes about 3 % of the values and is part of the format.
    """
    fast = fast_kernels(x, FP8)
    if fast is not None:
        return fast.quantize_static(x, divisor, twice=True)
    values = torch.empty_like(x, dtype=FP8)
    for rows in slices(x):
        values[rows] = (x[rows].float() / divisor).clamp_(-FP8_MAX, FP8_MAX).to(torch.bfloat16).to(FP8)
    return values


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


def slices(x: Tensor) -> Iterator[slice]:
    """Row ranges of at most `SLICE_VALUES` values."""
    step = max(1, SLICE_VALUES // max(1, x.shape[1]))
    return (slice(start, start + step) for start in range(0, x.shape[0], step))


def fast_kernels(x: Tensor, kind: torch.dtype) -> ModuleType | None:
    """The Triton kernels if they work for this tensor and type, else None."""
    if not x.is_cuda or isinstance(x, torch._subclasses.FakeTensor) or torch.version.hip:
        return None
    return _kernels_of_device(x.device.index or 0, x.shape[1], kind)


@lru_cache
def _kernels_of_device(index: int, features: int, kind: torch.dtype) -> ModuleType | None:
    """Import and try the kernels once per device, width and type: a result unlike the plain path's is not accepted."""
    from quant import kernels

    oldest = (8, 0) if kind == torch.int8 else (8, 9)
    if kernels.triton is None or torch.cuda.get_device_capability(index) < oldest or features > kernels.WIDEST_ROW:
        return None
    return kernels if kernels.agrees_with_plain(torch.device("cuda", index), features, kind) else None
