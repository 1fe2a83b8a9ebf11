"""Quantization by torch.compile: what a card gets where Triton is there and the kernels written here do not serve.

(Without Triton there is nothing to try on CUDA: torch.compile generates Triton.) Same functions as `quant.kernels`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from quant.fusion import Operation
from quant.kinds import SMALLEST_ABSMAX, largest
from quant.schemes import FP8_MAX


def quantize_rows(x: Tensor, kind: torch.dtype, operation: Operation | None = None) -> tuple[Tensor, Tensor]:
    """`activations.per_token` in generated code."""
    return _compiled(_rows)(x, kind, *_parts(operation))


def quantize_static(x: Tensor, divisor: Tensor, twice: bool, operation: Operation | None = None) -> Tensor:
    """`activations.static` in generated code (twice: through bfloat16), or plain scaling by (1,)."""
    return _compiled(_static)(x, divisor, twice, *_parts(operation))


def _rows(
    x: Tensor, kind: torch.dtype, formula: str | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    numbers = _after(x, formula, weight, bias, eps)
    scale = numbers.abs().amax(dim=1, keepdim=True).clamp_min(SMALLEST_ABSMAX) / largest(kind)
    scaled = (numbers / scale).clamp(-largest(kind), largest(kind))
    return (scaled.round() if kind == torch.int8 else scaled).to(kind), scale


def _static(
    x: Tensor, divisor: Tensor, twice: bool, formula: str | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    scaled = (_after(x, formula, weight, bias, eps) / divisor).clamp(-FP8_MAX, FP8_MAX)
    return (scaled.to(torch.bfloat16) if twice else scaled).to(torch.float8_e4m3fn)


def _after(x: Tensor, formula: str | None, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return (x if formula is None else Operation(formula, weight, bias, eps)(x)).float()  # type: ignore[arg-type]


def _parts(operation: Operation | None) -> tuple[str | None, Tensor | None, Tensor | None, float]:
    if operation is None:
        return None, None, None, 0.0
    return operation.formula, operation.weight, operation.bias, operation.eps


@lru_cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)
