"""NF4 linears: bitsandbytes' 4-bit normal floats with double quantization, on its own kernels (CPU and CUDA).

bitsandbytes keeps part of the state in Python objects that no plain `load_state_dict` restores. Here all of it is
ordinary buffers, and its `QuantState` is put together around them at each call, so these layers load strictly, stream
between devices and go through safetensors like any other.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from quant.errors import QuantError
from quant.fusion import FLOATS, Before
from quant.linear import QuantizedInput, QuantizedLinear, Shapes, has_values
from quant.schemes import NF4, NF4_BLOCK, NF4_NESTED_BLOCK

NF4_SLICE = 1 << 19
"""Numbers that are quantized at a time: whole blocks, 2 MiB of float32."""


@cache
def _quieten() -> None:
    """On CPUs it looks for a kernel that nobody needs, and tells users to install a package for it.

    Once: a change of level clears what every logger of the process remembers, which takes longer than a product.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def bitsandbytes() -> ModuleType:
    """The library, imported on first use: it probes the machine for seconds.

    Raises:
        QuantError: it is not installed.
    """
    _quieten()
    try:
        import bitsandbytes as library
    except ImportError as error:
        raise QuantError("The nf4 scheme needs bitsandbytes: pip install bitsandbytes, or use int8.") from error
    return library


class NF4Linear(QuantizedLinear):
    """Activations stay as they come; weights are expanded block by block inside the product.

    Buffers: weight_nf4 (ceil(out*in/2), 1) uint8, absmax (blocks,) uint8; float32 nested_absmax (blocks/256,),
    nested_map (256,), code (16,) and offset (); bias (out,) or absent.
    """

    weight = None
    weight_nf4: Tensor
    absmax: Tensor
    nested_absmax: Tensor
    nested_map: Tensor
    code: Tensor
    offset: Tensor

    @classmethod
    def shapes(cls, in_features: int, out_features: int, scheme: NF4) -> Shapes:
        packed, blocks, nested = scheme.sizes(out_features, in_features)
        return {
            "weight_nf4": ((packed, 1), torch.uint8),
            "absmax": ((blocks,), torch.uint8),
            "nested_absmax": ((nested,), torch.float32),
            "nested_map": ((256,), torch.float32),
            "code": ((16,), torch.float32),
            "offset": ((), torch.float32),
        }

    @staticmethod
    def quantized(weight: Tensor, scheme: NF4) -> dict[str, Tensor]:
        """The buffers that a weight (out, in) becomes; from float32, so bf16 files and upcast models agree.

        The bits of the library's own double quantization. It is done here in slices of whole blocks, because on CPUs
        the library takes ten times what it is given.
        """
        functional = bitsandbytes().functional
        flat = weight.detach().reshape(-1)
        packed, scales, code = [], [], None
        for numbers in flat.split(NF4_SLICE) if flat.numel() else (flat,):
            values, state = functional.quantize_4bit(
                numbers.float(), blocksize=NF4_BLOCK, compress_statistics=False, quant_type="nf4"
            )
            packed.append(values)
            scales.append(state.absmax)
            code = state.code
        absmax = torch.cat(scales)
        offset = absmax.mean()
        nested_values, nested = functional.quantize_blockwise(absmax - offset, blocksize=NF4_NESTED_BLOCK)
        assert code is not None, "a weight has at least one slice"
        return {
            "weight_nf4": torch.cat(packed),
            "absmax": nested_values,
            "nested_absmax": nested.absmax,
            "nested_map": nested.code.clone(),
            "code": code.clone(),
            "offset": offset,
        }

    def quant_state(self, dtype: torch.dtype) -> Any:
        """bitsandbytes' description of the weight, around this layer's buffers; it expands to `dtype`."""
        state = bitsandbytes().functional.QuantState
        nested = state(absmax=self.nested_absmax, code=self.nested_map, blocksize=NF4_NESTED_BLOCK, dtype=torch.float32)
        return state(
            absmax=self.absmax,
            shape=torch.Size((self.out_features, self.in_features)),
            code=self.code,
            blocksize=NF4_BLOCK,
            quant_type="nf4",
            dtype=dtype,
            offset=self.offset,
            state2=nested,
        )

    def problems(self) -> list[str]:
        """What is wrong with the scales: NaN or infinity, which come of such weights or of a damaged file."""
        names = ("nested_absmax", "nested_map", "code", "offset")
        buffers = [(name, getattr(self, name)) for name in names]
        bad = [name for name, b in buffers if has_values(b) and not bool(torch.isfinite(b).all())]
        return [f"{name} must be finite; the file is damaged or not of this kind." for name in bad]

    def dequantized(self) -> Tensor:
        """The weight (out, in) that the layer computes with, float32."""
        return bitsandbytes().functional.dequantize_4bit(self.weight_nf4, self.quant_state(torch.float32))

    @property
    def input_key(self) -> Hashable:
        return NF4.name

    def quantize_input(self, x: Tensor, before: Before | None = None) -> QuantizedInput:
        """Nothing to quantize: part of the protocol, so that callers need not know."""
        x = x if before is None else before(x)
        return QuantizedInput(x, None, tuple(x.shape[:-1]), x.dtype, self.input_key)

    def product(self, quantized: QuantizedInput, dtype: torch.dtype) -> Tensor:
        x = quantized.values.reshape(-1, self.in_features)
        x = x if x.dtype in FLOATS else x.float()  # its kernels take other types for one of these
        if self.backend == "plain":
            return torch.nn.functional.linear(x, self.dequantized().to(x.dtype)).to(dtype)
        if x.shape[0] == 0:
            return x.new_zeros(0, self.out_features, dtype=dtype)
        return bitsandbytes().matmul_4bit(x, self.weight_nf4.t(), quant_state=self.quant_state(x.dtype)).to(dtype)
