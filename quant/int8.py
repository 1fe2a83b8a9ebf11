"""INT8 linears: a scale per token and per output channel, products exact in int32. For cards without FP8.

`torch._int_mm` uses the integer tensor cores; where it cannot run, float32 products of 1024 terms at a time are exact
(1024 * 127^2 < 2^24) and are added as integers: both paths give the same bits.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache

import torch
from torch import Tensor

from quant import activations
from quant.fusion import Before
from quant.linear import QuantizedInput, QuantizedLinear, Shapes, as_rows, trained
from quant.products import product_slices, scale_into
from quant.schemes import Int8

EXACT_TERMS = 1024
"""Products of two int8 numbers whose sum float32 still holds exactly."""
FEWEST_ROWS = 32
"""cuBLAS's integer product refuses 16 rows, and not every card takes a few more."""

# --- arithmetic ----------------------------------------------------------------------------------------------------


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) of any float type -> int8 values (out, in), float32 scale (out, 1)."""
    return activations.weight_by_row(weight, torch.int8)


def integer_matmul(values: Tensor, weight: Tensor, backend: str = "auto") -> Tensor:
    """values (rows, in) int8 @ weight (out, in)^T int8 -> (rows, out) int32, exact."""
    # On CPUs torch's product of one column is wrong.
    served = _integer_cores_take(weight) if values.is_cuda else weight.shape[1] > 1
    if backend == "plain" or not served:
        return _plain_matmul(values, weight)
    rows = values.shape[0]
    if rows == 0:
        return torch.zeros(0, weight.shape[0], dtype=torch.int32, device=values.device)
    if values.is_cuda and rows < FEWEST_ROWS:
        values = torch.nn.functional.pad(values, (0, 0, 0, FEWEST_ROWS - rows))
    return torch._int_mm(values, weight.t())[:rows]


def _integer_cores_take(weight: Tensor) -> bool:
    """cuBLAS refuses odd sizes."""
    return weight.shape[0] % 8 == 0 and weight.shape[1] % 8 == 0 and _integer_cores_work(weight.device.index or 0)


@lru_cache
def _integer_cores_work(index: int) -> bool:
    """Try the integer product once: some builds of torch are without it."""
    values = torch.ones(FEWEST_ROWS, FEWEST_ROWS, dtype=torch.int8, device=torch.device("cuda", index))
    try:
        return bool((torch._int_mm(values, values.t()) == FEWEST_ROWS).all())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return False


def _plain_matmul(values: Tensor, weight: Tensor) -> Tensor:
    total = torch.zeros(values.shape[0], weight.shape[0], dtype=torch.int32, device=values.device)
    for start in range(0, values.shape[1], EXACT_TERMS):
        terms = slice(start, start + EXACT_TERMS)
        total += (values[:, terms].float() @ weight[:, terms].float().t()).to(torch.int32)
    return total


# --- the layer -----------------------------------------------------------------------------------------------------


class Int8Linear(QuantizedLinear):
    """Buffers: weight_int8 (out, in) int8, weight_scale (out, 1) float32, bias (out,) or absent."""

    weight = None
    weight_int8: Tensor
    weight_scale: Tensor

    @classmethod
    def shapes(cls, in_features: int, out_features: int, scheme: Int8) -> Shapes:
        return {
            "weight_int8": ((out_features, in_features), torch.int8),
            "weight_scale": ((out_features, 1), torch.float32),
        }

    @staticmethod
    def quantized(weight: Tensor, scheme: Int8) -> dict[str, Tensor]:
        """The buffers that a weight (out, in) becomes."""
        values, scale = quantize_weight(weight)
        return {"weight_int8": values, "weight_scale": scale}

    def dequantized(self) -> Tensor:
        """The weight (out, in) that the layer computes with, float32."""
        return self.weight_int8.float().mul_(self.weight_scale)

    @property
    def input_key(self) -> Hashable:
        return Int8.name

    def quantize_input(self, x: Tensor, before: Before | None = None) -> QuantizedInput:
        x, operation = activations.unless_fused(x, before, torch.int8)
        values, scale = activations.per_token(as_rows(x), torch.int8, operation)
        return QuantizedInput(values, scale, tuple(x.shape[:-1]), x.dtype, self.input_key, origin=trained(x))

    def product(self, quantized: QuantizedInput, dtype: torch.dtype) -> Tensor:
        """Scaled in slices of rows: the int32 product of all of them would be the largest tensor of the model."""
        values, scale = quantized.values, quantized.scale
        assert scale is not None
        result = torch.empty(values.shape[0], self.out_features, dtype=dtype, device=values.device)
        for rows in product_slices(result):  # without a name for the product, which would outlive the next one's making
            scale_into(
                result[rows], integer_matmul(values[rows], self.weight_int8, self.backend), scale[rows],
                self.weight_scale,
            )  # fmt: skip
        return result
