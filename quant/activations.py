"""Quantizing activations: the one door. On CUDA our Triton kernels, else torch.compile's; plain torch elsewhere.

The operation that makes the activations may come along and is then part of the kernel (`quant.fusion`). The plain path
works in slices of rows, so its float32 temporaries stay small whatever the number of tokens. Shapes: x is (rows,
features), contiguous; with an operation it is what that is applied to.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from quant import fusion
from quant.fusion import FLOATS, Before, Formula, Operation
from quant.schemes import FP8_MAX, INT8_MAX

FP8 = torch.float8_e4m3fn
SMALLEST_ABSMAX = 1e-30
"""Stands in for the absmax of an all-zero row, whose scale must be neither zero nor denormal."""
SLICE_VALUES = 1 << 22
"""Values the plain path handles at a time: 16 MiB of float32."""
WEIGHT_VALUES = 1 << 21
"""Values of a weight that are handled at a time: 8 MiB of float32."""
_log = logging.getLogger(__name__)


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


# --- which kernels ---------------------------------------------------------------------------------------------------


def fast_kernels(x: Tensor, kind: torch.dtype, operation: Operation | None = None) -> ModuleType | None:
    """The module whose functions work for this tensor, type and operation: `kernels`, `compiled` or None."""
    if not x.is_cuda or isinstance(x, torch._subclasses.FakeTensor) or torch.version.hip:
        return None
    formula = None if operation is None else operation.formula
    features = x.shape[-1] if operation is None else operation.features(x.shape[-1])
    return _kernels_of_device(x.device.index or 0, features, kind, x.dtype, formula)


@lru_cache
def _kernels_of_device(
    index: int, features: int, kind: torch.dtype, dtype: torch.dtype, formula: Formula | None
) -> ModuleType | None:
    """Try them once per device, width, types and operation: a result unlike the plain path's is not accepted."""
    oldest = (8, 0) if kind == torch.int8 else (8, 9)
    if torch.cuda.get_device_capability(index) < oldest or importlib.util.find_spec("triton") is None:
        return None
    from quant import compiled, kernels

    device = torch.device("cuda", index)
    if kernels.triton is not None and features <= kernels.WIDEST_ROW:
        problem = disagreement(kernels, device, features, kind, dtype, formula)
        if problem is None:
            return kernels
        _log.warning("The Triton quantization kernels are not used on %s: %s", device, problem)
    return compiled if disagreement(compiled, device, features, kind, dtype, formula) is None else None


def disagreement(
    fast: ModuleType,
    device: torch.device,
    features: int,
    kind: torch.dtype,
    dtype: torch.dtype,
    formula: Formula | None,
) -> str | None:
    """Run the functions of `fast` once against plain arithmetic; what is wrong with them, or None.

    Quantization alone must give the same bits in our kernels. After an operation, whose sums add up in another order,
    and in generated code, which divides less exactly, every number must lie within a step of the plain one, or one and
    a half where the operation's own result was rounded to 16 bits: a unit in the last place of it is up to a step.

    Raises:
        torch.OutOfMemoryError: that says nothing about the functions, and must not be remembered as if it did.
    """
    most = 1.0 if dtype == torch.float32 else 1.5
    try:
        operation = fusion.example(formula, features, dtype, device)
        inputs = 2 * features if formula == "gated_silu" else features
        x = torch.randn(8, inputs, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        x[:, 0] *= 50
        plain = (x if operation is None else operation(x)).float()
        values, scale = fast.quantize_rows(x, kind, operation)
        wanted = exact_ratio(plain.abs().amax(1, keepdim=True).clamp_min(SMALLEST_ABSMAX), largest(kind))
        pairs = [(values, plain / scale)]
        if not torch.allclose(scale, wanted, rtol=0.01):
            return f"{kind} scales differ from plain arithmetic"
        if kind != torch.int8:
            divisor = torch.rand(features, generator=torch.Generator().manual_seed(3)).to(device) + 0.01
            for by in (divisor, divisor[:1]):
                scaled = (plain / by).clamp(-FP8_MAX, FP8_MAX).to(torch.bfloat16).float()
                pairs.append((fast.quantize_static(x, by, True, operation), scaled))
        exact = operation is None and fast.__name__ == "quant.kernels"
        for found, scaled in pairs:
            same = torch.equal(found.float(), to_kind(scaled.clone(), kind).float()) if exact else True
            if not same or not steps_apart(found, scaled) <= most:
                return f"{kind} values differ from plain arithmetic"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler raises, the plain path still works
        return f"{type(error).__name__}: {error}"
    return None


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
