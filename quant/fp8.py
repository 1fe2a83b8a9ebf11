"""FP8 (e4m3) linears. Arithmetic first, then the layer with dynamic scales.

A quantized tensor is values * scale. Products are exact in float32 up to the order of summation, so the tensor-core
path (`torch._scaled_mm`, compute capability 8.9 and up) and the plain path agree within the rounding of the result.
`_scaled_mm` also runs on CPU, but a thousand times slower than the plain path: there it only serves to be compared.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache

import torch
from torch import Tensor

from quant import activations
from quant.fusion import Before
from quant.kinds import FP8, slices
from quant.linear import QuantizedInput, QuantizedLinear, Shapes, as_rows, trained
from quant.products import scale_into
from quant.schemes import Fp8

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
) -> Tensor:
    """(values * scale) @ (weight * weight_scale)^T in `dtype`.

    values (rows, in) and weight (out, in) e4m3; scales float32, (rows, 1) with (out, 1), or (1,) with (1,).
    """
    if backend == "fast" or (backend == "auto" and has_fast_path(values, weight)):
        return _tensor_core_matmul(values, scale, weight, weight_scale, dtype, fast_accumulate)
    return _plain_matmul(values, scale, weight, weight_scale, dtype)


def has_fast_path(values: Tensor, weight: Tensor) -> bool:
    """Whether `_scaled_mm` takes this pair and is fast. Meta counts as fast: what is planned there runs on a GPU."""
    if weight.shape[0] % 16 or weight.shape[1] % 16:
        return False
    if not values.is_cuda:
        return values.is_meta
    return torch.version.hip is None and _capability(values.device.index or 0) >= (8, 9)


def _plain_matmul(values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """e4m3 numbers are exact in bf16 and float32, so an ordinary product is the product of the quantized numbers."""
    wide = torch.bfloat16 if values.is_cuda and dtype == torch.bfloat16 else torch.float32
    transposed = weight.to(wide).t()
    result = torch.empty(values.shape[0], weight.shape[0], dtype=dtype, device=values.device)
    for rows in slices(result):
        product = (values[rows].to(wide) @ transposed).float()
        scale_into(result[rows], product, scale if scale.numel() == 1 else scale[rows], weight_scale)
    return result


def _tensor_core_matmul(
    values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, dtype: torch.dtype, fast_accumulate: bool
) -> Tensor:
    by_tensor = scale.numel() == 1 and weight_scale.numel() == 1
    if by_tensor or not values.is_cuda or _has_row_scales(values, dtype, fast_accumulate):
        one_or_row = (scale.reshape(1), weight_scale.reshape(1)) if by_tensor else (scale, weight_scale.t())
        return torch._scaled_mm(
            values,
            weight.t(),
            scale_a=one_or_row[0],
            scale_b=one_or_row[1],
            out_dtype=dtype,
            use_fast_accum=fast_accumulate and values.is_cuda,
        )
    # No row scales in this kernel (Windows, old versions, or a float32 result): multiply unscaled, then scale.
    one = torch.ones(1, dtype=torch.float32, device=values.device)
    result = torch.empty(values.shape[0], weight.shape[0], dtype=dtype, device=values.device)
    for rows in slices(result):
        product = torch._scaled_mm(
            values[rows], weight.t(), scale_a=one, scale_b=one, out_dtype=torch.float32, use_fast_accum=fast_accumulate
        )
        scale_into(result[rows], product, scale[rows], weight_scale)
    return result


@lru_cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def _has_row_scales(values: Tensor, dtype: torch.dtype, fast_accumulate: bool) -> bool:
    return dtype == torch.bfloat16 and _row_scales_work(values.device.index or 0, fast_accumulate)


@lru_cache
def _row_scales_work(index: int, fast_accumulate: bool) -> bool:
    """Try the row-scaled kernel once: which cards have it changed from version to version."""
    device = torch.device("cuda", index)
    values = torch.ones(32, 32, device=device).to(FP8)
    scale = torch.full((32, 1), 0.5, device=device)
    try:
        result = torch._scaled_mm(
            values, values.t(), scale_a=scale, scale_b=scale.t(), out_dtype=torch.bfloat16,
            use_fast_accum=fast_accumulate,
        )  # fmt: skip
        return bool((result == 8).all())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return False


# --- the layer -----------------------------------------------------------------------------------------------------


class Fp8Linear(QuantizedLinear):
    """e4m3 weights, activations quantized to e4m3 while running.

    Buffers: weight_e4m3 (out, in) e4m3, weight_scale (out, 1) or (1,) float32, bias (out,) or absent.
    """

    weight = None
    weight_e4m3: Tensor
    weight_scale: Tensor
    scheme: Fp8

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
            self.scheme.fast_accumulate, self.backend,
        )  # fmt: skip
