"""The FP8 linears of the published MAGI-1 checkpoints, under their own tensor names.

Two kinds, both with scales fixed by calibration (MAGI-1 report, section on quantization; official checkpoints):
- per tensor (q, qx, k, v, fc1): x / input_scale -> clamp -> bf16 -> e4m3, product * input_scale * weight_scale. The
  file stores input_scale once per input feature, all equal; kernels read only the first as multiplier, so a file
  where they differ has no consistent meaning and is refused.
- per channel (linear_proj, fc2): x / smooth_scale (one per feature; it contains the input scale), then likewise. The
  smoothing is folded into the weights, so it is not multiplied back.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from quant import activations
from quant.errors import QuantError
from quant.fp8 import scaled_matmul
from quant.fusion import Before
from quant.kinds import FP8
from quant.linear import QuantizedInput, QuantizedLinear, Shapes, as_rows, has_values, trained
from quant.schemes import Published


def static_matmul(
    values: Tensor, weight: Tensor, input_scale: Tensor, weight_scale: Tensor, dtype: torch.dtype, **options: Any
) -> Tensor:
    """values (rows, in) e4m3 @ weight (1, out, in)^T, times the FIRST input scale and the weight scale, in `dtype`."""
    first = input_scale.flatten()[:1]
    return scaled_matmul(values, first, weight[0], weight_scale.reshape(1), dtype, **options)


class _PublishedLinear(QuantizedLinear):
    """What both kinds share: weight (1, out, in) e4m3, weight_scale (1,) float32."""

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor
    scheme: Published

    @classmethod
    def shapes(cls, in_features: int, out_features: int, scheme: Published) -> Shapes:
        return {"weight": ((1, out_features, in_features), FP8), "weight_scale": ((1,), torch.float32)}

    def _divisor(self) -> Tensor:
        """What the input is divided by, (1,) or (in,)."""
        raise NotImplementedError

    @classmethod
    def from_linear(cls, linear: nn.Linear, scheme: Published, name: str = "") -> _PublishedLinear:
        """Declare the layer on the linear's device; its numbers come from a file.

        Raises:
            QuantError: the linear holds numbers, which cannot be quantized without calibrated scales.
        """
        if not linear.weight.is_meta:
            raise QuantError(
                f"The published scheme cannot quantize {name or 'a linear'} by itself: its scales come from a "
                "checkpoint (build the model on the meta device) or from calibration (quant.calibrate_)."
            )
        return cls(linear.in_features, linear.out_features, scheme, linear.bias, linear.weight.device)

    def dequantized(self) -> Tensor:
        """The weight (out, in) that the layer computes with, float32, smoothing still folded in."""
        return self.weight[0].float() * self.weight_scale

    def quantize_input(self, x: Tensor, before: Before | None = None) -> QuantizedInput:
        x, operation = activations.unless_fused(x, before, FP8)
        values = activations.static(as_rows(x), self._divisor(), operation)
        source = x if before is None else None  # a kernel that makes the input never writes it down
        return QuantizedInput(values, None, tuple(x.shape[:-1]), x.dtype, self.input_key, source, trained(x))

    def product(self, quantized: QuantizedInput, dtype: torch.dtype) -> Tensor:
        options = {"fast_accumulate": self.scheme.fast_accumulate, "backend": self.backend}
        return static_matmul(quantized.values, self.weight, self.input_scale, self.weight_scale, dtype, **options)


class PublishedPerTensorLinear(_PublishedLinear):
    """Buffers: weight (1, out, in) e4m3, weight_scale (1,), input_scale (in,) of equal entries."""

    @classmethod
    def shapes(cls, in_features: int, out_features: int, scheme: Published) -> Shapes:
        return {**super().shapes(in_features, out_features, scheme), "input_scale": ((in_features,), torch.float32)}

    def _divisor(self) -> Tensor:
        return self.input_scale[:1]

    @property
    def input_key(self) -> Hashable:
        """Layers share an input if their scales are equal; read from the device once per buffer, not per call."""
        scale = self.input_scale
        cached = self.__dict__.get("_known_scale")
        if cached is None or cached[0] is not scale:
            cached = (scale, scale[0].item() if has_values(scale) else None)
            self.__dict__["_known_scale"] = cached
        return (Published.name, cached[1])

    def _apply(self, fn: Any, recurse: bool = True) -> PublishedPerTensorLinear:
        cached = self.__dict__.get("_known_scale")
        known = cached is not None and cached[0] is self.input_scale and has_values(self.input_scale)
        super()._apply(fn, recurse)
        # Moving changes no number: streamed layers must not read it again.
        if cached is not None and known and has_values(self.input_scale):
            self.__dict__["_known_scale"] = (self.input_scale, cached[1])
        return self

    def problems(self) -> list[str]:
        found = super().problems()
        if has_values(self.input_scale) and not bool((self.input_scale == self.input_scale[0]).all()):
            found.append("the entries of input_scale differ, but this kind of layer has one scale; use another file.")
        return found


class PublishedSmoothLinear(_PublishedLinear):
    """Buffers: weight (1, out, in) e4m3, weight_scale (1,), input_scale (1,), smooth_scale (1, in)."""

    smooth_scale: Tensor

    @classmethod
    def shapes(cls, in_features: int, out_features: int, scheme: Published) -> Shapes:
        scales: Shapes = {"input_scale": ((1,), torch.float32), "smooth_scale": ((1, in_features), torch.float32)}
        return super().shapes(in_features, out_features, scheme) | scales

    def _divisor(self) -> Tensor:
        return self.smooth_scale[0]

    @property
    def input_key(self) -> Hashable:
        return (Published.name, id(self))


def published_linear(linear: nn.Linear, scheme: Published, name: str = "") -> _PublishedLinear:
    """The published layer that stands for a linear of this name."""
    kind = PublishedSmoothLinear if scheme.is_smooth(name) else PublishedPerTensorLinear
    return kind.from_linear(linear, scheme, name)
