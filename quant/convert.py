"""Swap the linears of a module for quantized ones, in place, and tell exactly what was done."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quant.errors import QuantError
from quant.fp8 import Fp8Linear
from quant.int8 import Int8Linear
from quant.linear import QuantizedLinear
from quant.nf4 import NF4Linear
from quant.published import published_linear
from quant.schemes import NF4, Fp8, Int8, Published, Scheme, scheme_named


@dataclass(frozen=True)
class Swap:
    """One linear that became another: its name and what it weighs, bias included."""

    name: str
    in_features: int
    out_features: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class Report:
    """What `convert_` did: the swapped linears and the names of those left alone."""

    scheme: Scheme
    swapped: tuple[Swap, ...]
    kept: tuple[str, ...]

    @property
    def bytes_before(self) -> int:
        """Bytes of the swapped linears before."""
        return sum(swap.bytes_before for swap in self.swapped)

    @property
    def bytes_after(self) -> int:
        """Bytes of the swapped linears now."""
        return sum(swap.bytes_after for swap in self.swapped)

    def __str__(self) -> str:
        return (
            f"{self.scheme.name}: {len(self.swapped)} linears quantized, {len(self.kept)} kept; "
            f"{self.bytes_before / 2**20:.1f} -> {self.bytes_after / 2**20:.1f} MiB"
        )


def convert_(module: nn.Module, scheme: Scheme | str, where: Callable[[str], bool]) -> Report:
    """Replace every `nn.Linear` inside `module` whose full name satisfies `where` by a quantized one.

    `scheme` is one of `quant.schemes`, or the name of one for its default settings.

    On the meta device only shapes and names change, so that quantized tensors can be loaded strictly afterwards
    (`load_state_dict(..., assign=True)` or `assign_`). A linear that appears twice stays one layer. Old weights are
    freed one by one.

    Raises:
        QuantError: nothing satisfies `where`, the module is itself a linear, or the scheme cannot quantize by itself.
    """
    scheme = scheme_named(scheme) if isinstance(scheme, str) else scheme
    if isinstance(module, nn.Linear):
        raise QuantError("convert_ swaps linears inside a module; wrap the linear, e.g. in torch.nn.Sequential.")
    names = [name for name, child in module.named_modules(remove_duplicate=False) if isinstance(child, nn.Linear)]
    chosen = [name for name in names if where(name)]
    if not chosen:
        raise QuantError(f"None of the {len(names)} linears satisfies the predicate; check the names it expects.")
    appearances = Counter(id(module.get_submodule(name)) for name in chosen)
    tied: dict[int, tuple[nn.Module, QuantizedLinear]] = {}  # holds the old linear, so that its id stays its own
    swaps = []
    for name in chosen:
        linear = module.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        if id(linear) in tied:
            layer = tied[id(linear)][1]
        else:
            layer = quantized_linear(linear, scheme, name).train(linear.training)
            before = sum(p.numel() * p.element_size() for p in linear.parameters())
            swaps.append(Swap(name, linear.in_features, linear.out_features, before, layer.weight_bytes()))
            if appearances[id(linear)] > 1:
                tied[id(linear)] = (linear, layer)
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, layer)
    taken = set(chosen)
    return Report(scheme, tuple(swaps), tuple(name for name in names if name not in taken))


def quantized_linear(linear: nn.Linear, scheme: Scheme, name: str = "") -> QuantizedLinear:
    """The quantized layer that stands for `linear` under a scheme; on meta it is only declared."""
    match scheme:
        case Fp8():
            return Fp8Linear.from_linear(linear, scheme, name)
        case Int8():
            return Int8Linear.from_linear(linear, scheme, name)
        case NF4():
            return NF4Linear.from_linear(linear, scheme, name)
        case Published():
            return published_linear(linear, scheme, name)


def quantized_tensors(weight: Tensor, scheme: Scheme) -> dict[str, Tensor]:
    """The buffers, by name within the layer, that a weight (out, in) becomes; equal to what `convert_` would hold."""
    match scheme:
        case Fp8():
            return Fp8Linear.quantized(weight, scheme)
        case Int8():
            return Int8Linear.quantized(weight, scheme)
        case NF4():
            return NF4Linear.quantized(weight, scheme)
        case Published():
            raise QuantError("The published scheme needs calibrated scales; use fp8, or calibrate a model first.")


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


def assign_(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors (full names) in place of declared parameters and buffers, without copying: one shard at a time.

    Quantized numbers and scales must have the declared type; other floats are taken as they come.

    Raises:
        QuantError: a name is not in the module, or shape or type differ; nothing was assigned then.
    """
    places = _places(module)
    for name, tensor in tensors.items():
        declared = _declared(module, name)
        fixed = isinstance(_owner(module, name), QuantizedLinear) and not name.endswith(".bias")
        if tensor.shape != declared.shape or (fixed and tensor.dtype != declared.dtype):
            raise QuantError(
                f"{name} is {tuple(tensor.shape)} {tensor.dtype} in the file, but the model holds "
                f"{tuple(declared.shape)} {declared.dtype}; the file is of another model or scheme."
            )
    for name, tensor in tensors.items():
        declared = _declared(module, name)
        value = nn.Parameter(tensor, declared.requires_grad) if isinstance(declared, nn.Parameter) else tensor
        for owner, attribute in places[id(declared)]:
            setattr(owner, attribute, value)


def _places(module: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Where each tensor is held, by identity: tied weights are held in several places and stored once."""
    found: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for owner in module.modules():
        for attribute, tensor in [*owner._parameters.items(), *owner._buffers.items()]:
            if tensor is not None:
                found[id(tensor)].append((owner, attribute))
    return found


def _owner(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        return None


def _declared(module: nn.Module, name: str) -> Tensor:
    value = getattr(_owner(module, name), name.rpartition(".")[2], None)
    if not isinstance(value, Tensor):
        raise QuantError(f"The model has no tensor {name}; the file is of another model or scheme.")
    return value


def check_(module: nn.Module) -> None:
    """Make sure that every tensor was loaded and every scale makes sense.

    Raises:
        QuantError: something is still on the meta device, or a quantized layer's scales are wrong.
    """
    state = module.state_dict(keep_vars=True)
    empty = [name for name, tensor in state.items() if isinstance(tensor, Tensor) and tensor.is_meta]
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise QuantError(f"The file lacks {empty[0]}{more}; it is incomplete or of another model.")
    for name, layer in module.named_modules():
        if isinstance(layer, QuantizedLinear) and layer.problems():
            raise QuantError(f"{name}: {layer.problems()[0]}")


def set_backend_(module: nn.Module, backend: str) -> None:
    """Force all quantized layers to the "plain" or the "fast" path, or back to "auto"."""
    if backend not in ("auto", "fast", "plain"):
        raise QuantError(f"There is no backend {backend!r}; choose auto, fast or plain.")
    for layer in module.modules():
        if isinstance(layer, QuantizedLinear):
            layer.backend = backend


def dequantized_error(weight: Tensor, tensors: dict[str, Tensor], scheme: Scheme) -> float:
    """|dequantized - weight| / |weight| for the buffers that a weight became."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer = quantized_linear(linear, scheme)
    for name, tensor in tensors.items():
        setattr(layer, name, tensor)
    wide = weight.float()
    return ((layer.dequantized() - wide).norm() / wide.norm().clamp_min(1e-30)).item()  # type: ignore[operator]
