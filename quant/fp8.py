"""FP8 (e4m3) linears. Arithmetic first, then the layer with dynamic scales.

A quantized tensor is values * scale. Products are exact in float32 up to the order of summation, so the tensor-core
path (`torch._scaled_mm`, compute capability 8.9 and up) and the plain path agree within the rounding of the result.
`_scaled_mm` also runs on CPU, but a thousand times slower than the plain path: there it only serves to be compared.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from quant import activations
from quant.fusion import Before
from quant.kinds import FP8, slices
from quant.linear import QuantizedInput, QuantizedLinear, Shapes, as_rows, trained
from quant.products import product_slices, scale_into
from quant.schemes import Fp8

RowScales = Literal["product", "afterwards"]
"""Who scales a product by row: the product's own kernel where the card has one, or a kernel behind it."""
MEASURED = ((8192, 3072), (12288, 3072))
"""Activations and weight that the two are measured with: the widest linear of the 4.5B model."""
TRIED = (256, 3072, 12288)
"""Rows, inputs and outputs of the product that is tried before any is used: 1536 and 3072 are exact in 16 bits."""
MEASUREMENTS = 12
WORTHWHILE = 0.97
"""Share of the product's time below which scaling afterwards, which rounds once more, is the better way."""

# --- arithmetic ----------------------------------------------------------------------------------------------------


def quantize_weight(weight: Tensor, granularity: str) -> tuple[Tensor, Tensor]:
    """(out, in) of any float type -> e4m3 values (out, in) and float32 scale, (out, 1) by "row" or (1,) by "tensor"."""
    if granularity == "row":
        return activations.weight_by_row(weight, FP8)
    return activations.weight_by_tensor(weight)


def scaled_matmul(
    values: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    dtype: torch.dtype,
    fast_accumulate: bool = True,
    backend: str = "auto",
    row_scales: RowScales = "product",
) -> Tensor:
    """(values * scale) @ (weight * weight_scale)^T in `dtype`.

    values (rows, in) and weight (out, in) e4m3; scales float32, (rows, 1) with (out, 1), or (1,) with (1,).
    """
    if backend == "fast" or (backend == "auto" and _is_fast(values, weight, fast_accumulate, dtype)):
        return _tensor_core_matmul(values, scale, weight, weight_scale, dtype, fast_accumulate, row_scales)
    return _plain_matmul(values, scale, weight, weight_scale, dtype)


def has_fast_path(values: Tensor, weight: Tensor) -> bool:
    """Whether `_scaled_mm` takes this pair and is fast. Meta counts as fast: what is planned there runs on a GPU."""
    if weight.shape[0] % 16 or weight.shape[1] % 16:
        return False
    if not values.is_cuda:
        return values.is_meta
    return torch.version.hip is None and _capability(values.device.index or 0) >= (8, 9)


def _is_fast(values: Tensor, weight: Tensor, fast_accumulate: bool, dtype: torch.dtype) -> bool:
    """A card's own product is tried before it is trusted: a refusal later would cost the run."""
    if not has_fast_path(values, weight):
        return False
    return not values.is_cuda or not products_missing(values.device.index or 0, fast_accumulate, dtype)


def _plain_matmul(values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """e4m3 numbers are exact in bf16 and float32, so an ordinary product is the product of the quantized numbers."""
    wide = torch.bfloat16 if values.is_cuda and dtype == torch.bfloat16 else torch.float32
    transposed = weight.to(wide).t()
    result = torch.empty(values.shape[0], weight.shape[0], dtype=dtype, device=values.device)
    for rows in slices(result):
        by_row = scale if scale.numel() == 1 else scale[rows]
        scale_into(result[rows], (values[rows].to(wide) @ transposed).float(), by_row, weight_scale)
    return result


def _tensor_core_matmul(
    values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, dtype: torch.dtype, fast_accumulate: bool,
    row_scales: RowScales,
) -> Tensor:  # fmt: skip
    by_tensor = scale.numel() == 1 and weight_scale.numel() == 1
    if by_tensor or not values.is_cuda or _scales_by_row(values, dtype, fast_accumulate, row_scales):
        one_or_row = (scale.reshape(1), weight_scale.reshape(1)) if by_tensor else (scale, weight_scale.t())
        return torch._scaled_mm(
            values,
            weight.t(),
            scale_a=one_or_row[0],
            scale_b=one_or_row[1],
            out_dtype=dtype,
            use_fast_accum=fast_accumulate and values.is_cuda,
        )
    return scaled_afterwards(values, scale, weight, weight_scale, dtype, fast_accumulate)


def scaled_afterwards(
    values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, dtype: torch.dtype, fast_accumulate: bool
) -> Tensor:
    """As the product with row scales, by the kernel that knows only one scale: multiplied by 1, then scaled.

    A bfloat16 product is scaled in place: it has float32's range, its rounding is one of 2^-8 more beside FP8's own of
    2^-4, and a float32 copy of the widest tensor of the model would take its memory and five thirds of its traffic.
    Other types are scaled from float32, in slices.
    """
    one = _one(values.device)

    def product(rows: Tensor, kind: torch.dtype) -> Tensor:
        fast = fast_accumulate and values.is_cuda
        return torch._scaled_mm(rows, weight.t(), scale_a=one, scale_b=one, out_dtype=kind, use_fast_accum=fast)

    if dtype == torch.bfloat16:
        result = product(values, dtype)
        scale_into(result, result, scale, weight_scale)
        return result
    result = torch.empty(values.shape[0], weight.shape[0], dtype=dtype, device=values.device)
    for rows in product_slices(result):
        scale_into(result[rows], product(values[rows], torch.float32), scale[rows], weight_scale)
    return result


@lru_cache
def _one(device: torch.device) -> Tensor:
    """The scale that changes nothing; made once, for a card would fill it anew before every product."""
    with torch.inference_mode(False):
        return torch.ones(1, dtype=torch.float32, device=device)


@lru_cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def _scales_by_row(values: Tensor, dtype: torch.dtype, fast_accumulate: bool, row_scales: RowScales) -> bool:
    if dtype != torch.bfloat16 or row_scales == "afterwards":
        return False
    return not row_scales_missing(values.device.index or 0, fast_accumulate)


@lru_cache
def products_missing(index: int, fast_accumulate: bool, dtype: torch.dtype) -> str:
    """Why a card's own FP8 products are not used for results of that type; empty: they are. One is tried."""
    kinds = (dtype,) if dtype == torch.bfloat16 else (dtype, torch.float32)  # what `scaled_afterwards` multiplies in
    return next((fault for kind in kinds if (fault := _fault(index, fast_accumulate, kind, by_row=False))), "")


@lru_cache
def row_scales_missing(index: int, fast_accumulate: bool) -> str:
    """Why FP8 products of a card are scaled by a kernel of their own; empty: the product scales by row itself.

    The row-scaled kernel is tried once, for which cards have it changed from version to version.
    """
    return _fault(index, fast_accumulate, torch.bfloat16, by_row=True)


def _fault(index: int, fast_accumulate: bool, dtype: torch.dtype, by_row: bool) -> str:
    """What is wrong with one product of a model's size (smaller ones are taken by other kernels); empty: nothing."""
    rows, inputs, outputs = TRIED
    device = torch.device("cuda", index)
    values, weight = (torch.ones(size, inputs, device=device).to(FP8) for size in (rows, outputs))
    scale = torch.full((rows, 1) if by_row else (1,), 0.5, device=device)
    weight_scale = torch.ones((1, outputs) if by_row else (1,), device=device)
    try:
        result = torch._scaled_mm(
            values, weight.t(), scale_a=scale, scale_b=weight_scale, out_dtype=dtype, use_fast_accum=fast_accumulate
        )
        return "" if bool((result == 0.5 * inputs).all()) else "their result is wrong"
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def faster_row_scales(index: int, fast_accumulate: bool = True, dtype: torch.dtype = torch.bfloat16) -> RowScales:
    """Measure which way of scaling by row is the faster one on a card (a tenth of a second).

    On some cards the product that scales by row is slower than the plain one and a kernel behind it. The two round
    differently, so whoever wants equal bits from run to run keeps the answer (`set_row_scales_`).
    """
    if row_scales_missing(index, fast_accumulate):
        return "afterwards"
    device = torch.device("cuda", index)
    values, weight = (torch.ones(size, device=device, dtype=dtype).to(FP8) for size in MEASURED)
    scale, weight_scale = (torch.ones(size[0], 1, device=device) for size in MEASURED)

    def milliseconds(way: RowScales) -> float:
        """Of a product; endless where this size is refused."""
        times = []
        for _ in range(MEASUREMENTS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            try:
                _tensor_core_matmul(values, scale, weight, weight_scale, dtype, fast_accumulate, way)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                return math.inf
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return sorted(times)[MEASUREMENTS // 4]  # the first ones start the card's clocks and kernels

    return "afterwards" if milliseconds("afterwards") < WORTHWHILE * milliseconds("product") else "product"


# --- the layer -----------------------------------------------------------------------------------------------------


class Fp8Linear(QuantizedLinear):
    """e4m3 weights, activations quantized to e4m3 while running.

    Buffers: weight_e4m3 (out, in) e4m3, weight_scale (out, 1) or (1,) float32, bias (out,) or absent.
    """

    weight = None
    weight_e4m3: Tensor
    weight_scale: Tensor
    scheme: Fp8
    row_scales: RowScales = "product"

    @classmethod
    def shapes(cls, in_features: int, out_features: int, scheme: Fp8) -> Shapes:
        scale_shape = (out_features, 1) if scheme.granularity == "row" else (1,)
        return {"weight_e4m3": ((out_features, in_features), FP8), "weight_scale": (scale_shape, torch.float32)}

    @staticmethod
    def quantized(weight: Tensor, scheme: Fp8) -> dict[str, Tensor]:
        """The buffers that a weight (out, in) becomes."""
        values, scale = quantize_weight(weight, scheme.granularity)
        return {"weight_e4m3": values, "weight_scale": scale}

    def dequantized(self) -> Tensor:
        """The weight (out, in) that the layer computes with, float32."""
        return self.weight_e4m3.float().mul_(self.weight_scale)

    @property
    def input_key(self) -> Hashable:
        return (Fp8.name, self.scheme.granularity)

    def quantize_input(self, x: Tensor, before: Before | None = None) -> QuantizedInput:
        if self.scheme.granularity == "row":
            x, operation = activations.unless_fused(x, before, FP8)
            values, scale = activations.per_token(as_rows(x), FP8, operation)
        else:
            x = x if before is None else before(x)
            values, scale = activations.per_tensor(as_rows(x))
        return QuantizedInput(values, scale, tuple(x.shape[:-1]), x.dtype, self.input_key, origin=trained(x))

    def product(self, quantized: QuantizedInput, dtype: torch.dtype) -> Tensor:
        assert quantized.scale is not None
        return scaled_matmul(
            quantized.values, quantized.scale, self.weight_e4m3, self.weight_scale, dtype,
            self.scheme.fast_accumulate, self.backend, self.row_scales,
        )  # fmt: skip


def set_row_scales_(model: nn.Module, row_scales: RowScales) -> None:
    """Who scales by row in every FP8 linear of a model."""
    for layer in model.modules():
        if isinstance(layer, Fp8Linear):
            layer.row_scales = row_scales
