"""Swap the linears of a module for quantized ones, in place, and tell exactly what was done."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quant.errors import QuantError
from quant.fp8 import Fp8Linear
from quant.int8 import Int8Linear
from quant.kinds import WEIGHT_VALUES, slices
from quant.linear import QuantizedLinear
from quant.nf4 import NF4Linear
from quant.published import published_linear
from quant.schemes import NF4, Fp8, Int8, Published, Scheme, scheme_named

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""Types of weights that are numbers by themselves; float8 ones need scales that are somewhere else."""


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
    """Replace every plain `nn.Linear` inside `module` whose full name satisfies `where` by a quantized one.

    `scheme` is one of `quant.schemes`, or the name of one for its default settings. Left alone, and reported,
    are linears with a forward of their own, which may compute something else than x W^T + b (unless their class says
    `formula = "linear"`), or whose parent reads the weight itself (`nn.MultiheadAttention`), or that hold no weights in
    an ordinary float type.

    On the meta device only shapes and names change, so that quantized tensors can be loaded strictly afterwards
    (`load_state_dict(..., assign=True)` or `assign_`). A linear, or a block, that appears twice stays one. Old weights
    are freed one by one. Results carry no gradient back to the input, except with NF4.

    Raises:
        QuantError: nothing satisfies `where`, the module is itself a linear, a linear has hooks, or the scheme cannot
            quantize by itself: nothing is swapped then. Or a weight is not finite: linears before it are swapped.
    """
    scheme = scheme_named(scheme) if isinstance(scheme, str) else scheme
    if isinstance(module, nn.Linear):
        raise QuantError("convert_ swaps linears inside a module; wrap the linear, e.g. in torch.nn.Sequential.")
    linears = {n: m for n, m in module.named_modules(remove_duplicate=False) if isinstance(m, nn.Linear)}
    plain = [name for name, linear in linears.items() if is_plain(linear)]
    chosen = [name for name in plain if where(name)]
    if not plain:
        raise QuantError("The module has no plain torch.nn.Linear left to quantize.")
    if not chosen:
        raise QuantError(f"None of the {len(plain)} linears satisfies the predicate; check the names it expects.")
    for name in chosen:
        _check_swappable(linears[name], name)
    appearances = Counter(id(linears[name]) for name in chosen)
    names = list(linears)
    del linears  # old weights are freed one by one
    tied: dict[int, tuple[nn.Module, QuantizedLinear]] = {}  # holds the old linear, so that its id stays its own
    swaps = []
    for name in chosen:
        linear = module.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            continue  # in a block that appears twice: swapped there before
        if id(linear) in tied:
            layer = tied[id(linear)][1]
        else:
            layer = quantized_linear(linear, scheme, name)
            swaps.append(swap_of(name, linear, layer))
            if appearances[id(linear)] > 1:
                tied[id(linear)] = (linear, layer)
        parent, _, attribute = name.rpartition(".")
        put_(module.get_submodule(parent), attribute, layer)
    kept = tuple(name for name in names if isinstance(module.get_submodule(name), nn.Linear))
    return Report(scheme, tuple(swaps), kept)


def is_plain(linear: nn.Linear) -> bool:
    """Whether a linear is x W^T + b and no more, and its weight an ordinary one that only it reads."""
    own = type(linear).forward is not nn.Linear.forward and getattr(type(linear), "formula", None) != "linear"
    if own or "forward" in vars(linear):
        return False  # a subclass (adapters, bitsandbytes) or a wrapped one: something else than the product
    if isinstance(linear, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False  # torch's own name for the projection whose weight nn.MultiheadAttention reads
    lazy = isinstance(linear.weight, nn.parameter.UninitializedParameter)  # refused with a word of its own
    return lazy or (linear.weight.dtype in FLOATS and linear.weight.numel() > 0)


def _check_swappable(linear: nn.Linear, name: str) -> None:
    if isinstance(linear.weight, nn.parameter.UninitializedParameter):
        raise QuantError(f"The linear {name} has no weights yet; run the model once before converting it.")
    if linear._forward_hooks or linear._forward_pre_hooks:
        raise QuantError(
            f"The linear {name} has hooks, which the swap would lose; remove them first, register them afterwards."
        )


def put_(parent: nn.Module, attribute: str, layer: QuantizedLinear) -> None:
    """Set a quantized layer in a linear's place."""
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0  # its fused path would read the weights; 0 is torch's word for "none"
    setattr(parent, attribute, layer)


def swap_of(name: str, linear: nn.Linear, layer: QuantizedLinear) -> Swap:
    """Finish the layer that stands for a linear, and tell of it.

    Raises:
        QuantError: its scales make no sense, because the weight is not finite.
    """
    if layer.problems():
        raise QuantError(_not_finite(name))
    layer.train(linear.training)
    before = sum(p.numel() * p.element_size() for p in linear.parameters())
    return Swap(name, linear.in_features, linear.out_features, before, layer.weight_bytes())


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
    raise QuantError(f"{scheme!r} is no scheme; choose one of quant.SCHEMES.")


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
    raise QuantError(f"{scheme!r} is no scheme; choose one of quant.SCHEMES.")


def finite_tensors(weight: Tensor, scheme: Scheme, name: str) -> dict[str, Tensor]:
    """As `quantized_tensors`, for the layer of that name.

    Raises:
        QuantError: also where the weight is not finite.
    """
    tensors = quantized_tensors(weight, scheme)
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.dtype == torch.float32):
        raise QuantError(_not_finite(name))
    return tensors


def _not_finite(name: str) -> str:
    return f"The linear {name} holds NaN or infinite weights; mend them, or leave this layer out."


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
    unstored = next((name for name, buffer in module.named_buffers() if buffer.is_meta), None)
    if unstored is not None:
        raise QuantError(f"No file holds {unstored}; build the model with numbers in it, not on the meta device.")
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
    found, off, whole = layer.dequantized(), 0.0, 0.0  # type: ignore[operator]
    for rows in slices(weight, WEIGHT_VALUES):
        wide = weight[rows].float()
        off += (found[rows] - wide).double().square().sum().item()
        whole += wide.double().square().sum().item()
    return math.sqrt(off / whole) if whole else math.sqrt(off)
