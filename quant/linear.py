"""What all quantized linears share: ordinary buffers of fixed types, and an input that can be quantized once.

Several linears reading one tensor (q, qx, k and v of an attention) would each quantize it again. So a layer splits
its forward in two: `quantize_input` and `forward_quantized`; the result of the first serves every layer whose
quantization is the same, and a layer that quantizes differently (another static scale) notices and quantizes anew.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from quant.errors import QuantError
from quant.fusion import Before

Layer = TypeVar("Layer", bound="QuantizedLinear")
Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Buffers by name."""


@dataclass(frozen=True)
class QuantizedInput:
    """An activation tensor, quantized.

    values: (rows, in_features); scale: (rows, 1) or (1,) float32 multiplier, None where the values are as they came;
    shape: the leading dimensions; dtype: of the original; key: equal keys mean equal quantization;
    source: the original, kept only where another layer may quantize differently;
    origin: the original where a gradient would flow back to it, which is refused when asked for.
    """

    values: Tensor
    scale: Tensor | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    key: Hashable
    source: Tensor | None = None
    origin: Tensor | None = None


class QuantizedLinear(nn.Module):
    """Base of the quantized linears: y = x W^T + b with W held quantized in buffers named as in the state dict.

    Buffers other than `bias` keep their type under `.to(dtype)`, `.half()` and the like; `.to(device)` moves all.
    Except in the published form, `weight` is None: code that casts its input to `linear.weight.dtype` (transformers' T5
    does) would take the type of the packed numbers for that of the computation.
    """

    output_dtype: torch.dtype | None = None
    """Type of the result; None: that of the input."""
    backend: str = "auto"
    """auto: the fastest kernel of the device; fast, plain: forced (`set_backend_`)."""
    bias: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, scheme: Any = None, bias: Tensor | None = None, device: Any = None
    ) -> None:
        """Declare the buffers, empty, and take the bias as it is."""
        super().__init__()
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        for name, (shape, dtype) in self.shapes(in_features, out_features, scheme).items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device=device))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    @classmethod
    def shapes(cls, in_features: int, out_features: int, scheme: Any) -> Shapes:
        """Shape and type of each buffer but the bias."""
        return {}

    @classmethod
    def from_linear(cls: type[Layer], linear: nn.Linear, scheme: Any, name: str = "") -> Layer:
        """Quantize a linear (on meta: declare what it would hold)."""
        layer = cls(linear.in_features, linear.out_features, scheme, linear.bias, linear.weight.device)
        if not linear.weight.is_meta:
            layer.fill(cls.quantized(linear.weight, scheme))
        return layer

    @staticmethod
    def quantized(weight: Tensor, scheme: Any) -> dict[str, Tensor]:
        """The buffers that a weight (out, in) becomes."""
        raise NotImplementedError

    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Put quantized tensors in place of the declared ones."""
        for name, tensor in tensors.items():
            declared = getattr(self, name)
            assert tensor.shape == declared.shape and tensor.dtype == declared.dtype, (name, tensor.shape, tensor.dtype)
            setattr(self, name, tensor.to(declared.device))

    # --- computing ---------------------------------------------------------------------------------------------

    def quantize_input(self, x: Tensor, before: Before | None = None) -> QuantizedInput:
        """Quantize activations (..., in_features) for this layer and all layers that quantize alike.

        Args:
            before: the operation that makes them of x, done together with the quantization where a kernel can
                (`quant.fusion`); None: x are they. It may use x up.
        """
        raise NotImplementedError

    def product(self, quantized: QuantizedInput, dtype: torch.dtype) -> Tensor:
        """(rows, out_features) of type `dtype`, without the bias."""
        raise NotImplementedError

    @property
    def input_key(self) -> Hashable:
        """Equal for layers whose `quantize_input` gives equal results."""
        raise NotImplementedError

    def forward_quantized(self, quantized: QuantizedInput) -> Tensor:
        """The layer's output (..., out_features) for an input that was quantized before."""
        if quantized.key != self.input_key:
            assert quantized.source is not None, "layers of different kinds cannot share a quantized input"
            quantized = self.quantize_input(quantized.source)
        dtype = self.output_dtype or quantized.dtype
        result = self.product(quantized, dtype)
        if self.bias is not None:
            result = result + self.bias.to(dtype)
        result = result.view(*quantized.shape, self.out_features)
        return result if quantized.origin is None else _NoGradient.apply(result, quantized.origin)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return self.forward_quantized(self.quantize_input(x))

    # --- living in a module --------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Move the buffers, but let no change of floating type touch quantized numbers or their scales."""
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None and name != "bias"}
        for name in kept:
            self._buffers[name] = None
        try:
            super()._apply(fn, recurse)
        finally:
            for name, buffer in kept.items():
                # A change of type is tried on an empty slice: never cast a large quantized weight just to see.
                target = fn(buffer.flatten()[:0])
                self._buffers[name] = fn(buffer) if target.dtype == buffer.dtype else buffer.to(target.device)
        return self

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, metadata: Any, *rest: Any) -> None:
        """Load, but refuse tensors of another type: copying would convert them in silence, without their scales."""
        errors: list[str] = rest[-1]
        for name, buffer in self._buffers.items():
            given = state.get(prefix + name)
            if given is not None and buffer is not None and name != "bias" and given.dtype != buffer.dtype:
                errors.append(f"{prefix}{name} is {given.dtype}, but this layer holds {buffer.dtype}.")
        super()._load_from_state_dict(state, prefix, metadata, *rest)
        errors.extend(f"{prefix.rstrip('.')}: {problem}" for problem in self.problems())

    def problems(self) -> list[str]:
        """What is wrong with the loaded scales, as sentences; empty on the meta device."""
        found = []
        for name, buffer in self._buffers.items():
            if not name.endswith("_scale") or buffer is None or not has_values(buffer):
                continue
            if not bool((torch.isfinite(buffer) & (buffer > 0)).all()):
                found.append(f"{name} must be positive and finite; the file is damaged or not of this kind.")
        return found

    def weight_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(b.numel() * b.element_size() for b in self._buffers.values() if b is not None)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor's numbers can be read: false on meta and under fake tensors."""
    return not tensor.is_meta and not isinstance(tensor, torch._subclasses.FakeTensor)


def as_rows(x: Tensor) -> Tensor:
    """(..., features) -> contiguous (rows, features), through which no gradient passes."""
    return x.detach().reshape(-1, x.shape[-1]).contiguous()


def trained(x: Tensor) -> Tensor | None:
    """x where a gradient would flow back to it, else None."""
    return x if x.requires_grad and torch.is_grad_enabled() else None


class _NoGradient(torch.autograd.Function):
    """Rounding has no useful gradient: asking for one raises, rather than giving none or a wrong one."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, origin: Tensor) -> Tensor:
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise QuantError("Layers that quantize their input carry no gradient; train the model before converting it.")


def shared_forward(layers: Iterable[nn.Module], x: Tensor, before: Before | None = None) -> list[Tensor]:
    """Run linears that read one input, quantizing it once for all quantized ones among them that quantize alike.

    Equal, bit for bit, to `[layer(x) for layer in layers]`. With `before`, what they read is before(x), which is made
    and quantized by one kernel where all of them quantize alike and there is such a kernel (`quant.fusion`); elsewhere
    it is called, and the bits are those of `x = before(x)`.
    """
    layers = list(layers)
    inputs: dict[Hashable, QuantizedInput] = {}
    if before is not None:
        keys = {layer.input_key if isinstance(layer, QuantizedLinear) else None for layer in layers}
        if len(keys) == 1 and None not in keys:
            (key,) = keys
            inputs[key] = cast(QuantizedLinear, layers[0]).quantize_input(x, before)
        else:
            x = before(x)
    results = []
    for layer in layers:
        if not isinstance(layer, QuantizedLinear):
            results.append(layer(x))
            continue
        key = layer.input_key
        if key not in inputs:
            inputs[key] = layer.quantize_input(x)
        results.append(layer.forward_quantized(inputs[key]))
    return results
