"""The operation before a quantized linear, which one kernel can do together with quantizing its result.

A layer norm or an activation function writes numbers that quantization would at once read and write again. So whoever
calls a quantized linear may hand it the operation instead of its result (`quantize_input(x, before=norm)`). On a card a
known operation and the quantization are one read and one write; everywhere else the operation is simply called.

Known are `nn.LayerNorm` over the last axis, exact `nn.GELU`, and any callable whose attribute `formula` says what it
computes: "gelu", or "gated_silu" (SiLU of the first half of the last axis, times the second). What cannot be fused:
a scale over a whole tensor, which is not known before all of it is computed, and NF4, which quantizes no input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Before = Callable[[Tensor], Tensor]
Formula = Literal["layer_norm", "gelu", "gated_silu"]
FORMULAS: tuple[Formula, ...] = ("layer_norm", "gelu", "gated_silu")
FLOATS = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, eq=False)
class Operation:
    """A known operation on the last axis; its result has the type of its input.

    weight, bias: (features,) of a layer norm, or None; eps: what it adds to the variance.
    """

    formula: Formula
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """The operation by itself, as torch computes it: (..., inputs) -> (..., features)."""
        match self.formula:
            case "layer_norm":
                return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
            case "gelu":
                return F.gelu(x)
            case "gated_silu":
                gate, value = x.chunk(2, dim=-1)
                return (F.silu(gate.float()) * value.float()).to(x.dtype)

    def features(self, inputs: int) -> int:
        """Width of the result for that of the input."""
        return inputs // 2 if self.formula == "gated_silu" else inputs


def known(before: Before | None, x: Tensor) -> Operation | None:
    """What `before` computes of x, if that is known and nobody watches it by hooks; else None."""
    if before is None or x.dtype not in FLOATS or _is_watched(before):
        return None
    if type(before) is nn.LayerNorm:
        whole = tuple(before.normalized_shape) == (x.shape[-1],)
        same_type = all(part is None or part.dtype == x.dtype for part in (before.weight, before.bias))
        return Operation("layer_norm", before.weight, before.bias, before.eps) if whole and same_type else None
    if type(before) is nn.GELU:
        return Operation("gelu") if before.approximate == "none" else None
    formula = getattr(before, "formula", None)
    return Operation(formula) if formula in FORMULAS[1:] else None


def _is_watched(before: Before) -> bool:
    return bool(getattr(before, "_forward_hooks", None) or getattr(before, "_forward_pre_hooks", None))


def example(formula: Formula | None, features: int, dtype: torch.dtype, device: torch.device) -> Operation | None:
    """An operation with random weights, to try kernels with."""
    if formula != "layer_norm":
        return None if formula is None else Operation(formula)
    weight, bias = (torch.randn(features, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    return Operation(formula, (1 + 0.1 * weight).to(device, dtype), (0.1 * bias).to(device, dtype), 1e-6)
