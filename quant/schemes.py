"""What a quantization scheme is, and what a linear weighs under it. Standard library only, so planners can use it.

| scheme | weights | activations | bytes per weight |
|---|---|---|---|
| Fp8 | e4m3 | e4m3, scaled while running | 1 |
| Int8 | int8, a scale per output channel | int8, a scale per token | 1 |
| NF4 | 4-bit normal floats, blocks of 64, scales quantized again | as they come | about 0.516 |
| Published | e4m3 | e4m3, scales fixed by calibration (the MAGI-1 fp8 checkpoints) | 1 |
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from quant.errors import QuantError

FP8_MAX = 448.0
"""Largest finite e4m3fn number."""
INT8_MAX = 127.0
"""Largest magnitude used of int8: symmetric, -128 stays unused."""
NF4_BLOCK = 64
"""Weights that share one scale."""
NF4_NESTED_BLOCK = 256
"""Scales that share one scale of their own (double quantization)."""
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Fp8:
    """Dynamic FP8. `row`: a scale per token and per output channel; `tensor`: one scale each (faster on sm89)."""

    granularity: Literal["row", "tensor"] = "row"
    fast_accumulate: bool = True
    """Let tensor cores add in their reduced-precision accumulator, as the official program does."""
    name: ClassVar[str] = "fp8"

    def __post_init__(self) -> None:
        if self.granularity not in ("row", "tensor"):
            raise QuantError(f"fp8 has no granularity {self.granularity!r}; choose row or tensor.")

    def weight_bytes(self, out_features: int, in_features: int, layer: str = "") -> int:
        """Bytes of the weight with its scales; a bias comes on top."""
        return out_features * in_features + FLOAT32_BYTES * (out_features if self.granularity == "row" else 1)


@dataclass(frozen=True)
class Int8:
    """Dynamic INT8: for cards without FP8 (Turing, Ampere)."""

    name: ClassVar[str] = "int8"

    def weight_bytes(self, out_features: int, in_features: int, layer: str = "") -> int:
        """Bytes of the weight with its scales; a bias comes on top."""
        return out_features * in_features + FLOAT32_BYTES * out_features


@dataclass(frozen=True)
class NF4:
    """bitsandbytes' 4-bit normal floats with double quantization: the smallest; saves memory, not time."""

    name: ClassVar[str] = "nf4"

    def weight_bytes(self, out_features: int, in_features: int, layer: str = "") -> int:
        """Bytes of the packed weight, its quantized scales and the two lookup tables; a bias comes on top."""
        packed, blocks, nested = self.sizes(out_features, in_features)
        tables_and_offset = FLOAT32_BYTES * (16 + 256 + 1)
        return packed + blocks + FLOAT32_BYTES * nested + tables_and_offset

    @staticmethod
    def sizes(out_features: int, in_features: int) -> tuple[int, int, int]:
        """(packed bytes, one-byte block scales, float32 scales of those scales)."""
        weights = out_features * in_features
        blocks = -(-weights // NF4_BLOCK)
        return -(-weights // 2), blocks, -(-blocks // NF4_NESTED_BLOCK)


@dataclass(frozen=True)
class Published:
    """Static FP8 as in the MAGI-1 fp8 checkpoints: per-tensor layers, and smooth layers chosen by name."""

    smooth_layers: str = r"(^|\.)(linear_proj|linear_fc2)$"
    """Regular expression: names of the per-channel (SmoothQuant) layers."""
    fast_accumulate: bool = True
    name: ClassVar[str] = "published"

    def is_smooth(self, layer: str) -> bool:
        """Whether the layer of that name divides its input per channel."""
        return re.search(self.smooth_layers, layer) is not None

    def weight_bytes(self, out_features: int, in_features: int, layer: str = "") -> int:
        """Bytes of weight, weight_scale, input_scale and (smooth layers) smooth_scale; a bias comes on top."""
        scales = in_features + (2 if self.is_smooth(layer) else 1)
        return out_features * in_features + FLOAT32_BYTES * scales


Scheme = Fp8 | Int8 | NF4 | Published
SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in (Fp8(), Int8(), NF4(), Published())}
"""Every scheme with its default settings, by name."""


def scheme_named(name: str) -> Scheme:
    """The scheme of that name with default settings.

    Raises:
        QuantError: there is none.
    """
    if name not in SCHEMES:
        raise QuantError(f"There is no quantization scheme {str(name)[:40]!r}; choose one of {', '.join(SCHEMES)}.")
    return SCHEMES[name]


def scheme_to_dict(scheme: Scheme) -> dict[str, Any]:
    """JSON form, read back by `scheme_from_dict`."""
    return {"name": scheme.name, **asdict(scheme)}


def scheme_from_dict(data: dict[str, Any]) -> Scheme:
    """Read what `scheme_to_dict` wrote.

    Raises:
        QuantError: unknown name or setting.
    """
    settings = dict(data)
    kind = type(scheme_named(str(settings.pop("name", ""))))
    try:
        return kind(**settings)
    except TypeError as error:
        raise QuantError(f"The scheme {kind.name} does not have these settings: {sorted(settings)}.") from error


_MARKS: dict[str, Scheme] = {"weight_e4m3": Fp8(), "weight_int8": Int8(), "weight_nf4": NF4()}
"""Which buffer only one scheme has."""


def detect(names: Iterable[str]) -> Scheme | None:
    """The scheme whose tensors a state dict with these names holds; None: nothing is quantized.

    Settings that names do not tell (granularity) are the defaults: a converted folder's manifest knows them.
    """
    ends = {name.rpartition(".")[2] for name in names}
    if "input_scale" in ends:
        return Published()
    return next((scheme for mark, scheme in _MARKS.items() if mark in ends), None)


def quantized_names(names: Iterable[str]) -> frozenset[str]:
    """The layers that a state dict with these names holds quantized: the `where` for `convert_`."""
    marks = {"input_scale", *_MARKS}
    return frozenset(path for path, _, end in (name.rpartition(".") for name in names) if end in marks)
