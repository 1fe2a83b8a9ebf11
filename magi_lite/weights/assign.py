"""A checkpoint's tensors into a model that was built on the meta device: strictly, one after the other.

Tensors are read in the order in which they lie in the files. One that a model takes as it is stays mapped; of others,
and of weights that are quantized on the way, only the result is kept: beside the model, one tensor is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from magi_lite.errors import CheckpointError, LoadCancelled
from magi_lite.files import storage_errors
from quant import QuantError, Scheme, convert_
from quant.convert import finite_tensors
from quant.storage.headers import FLOATS, TensorInfo
from quant.storage.shards import Checkpoint, Expected
from quant.storage.tensors import MappedFile, kind_of, torch_type

_MAPPED: WeakKeyDictionary[nn.Module, tuple[MappedFile, ...]] = WeakKeyDictionary()
"""The files that a model's tensors are mapped from."""


@dataclass(frozen=True)
class Conversion:
    """Linears that are quantized while they are read.

    scheme: to which; layers: their names; at: where it is computed (a card is faster by far);
    place: what to call the part of the model that a tensor belongs to, in a message.
    """

    scheme: Scheme
    layers: frozenset[str]
    at: torch.device | str
    place: Callable[[str], str]


def assign(
    model: nn.Module,
    checkpoint: Checkpoint,
    dtype_of: Callable[[str], torch.dtype],
    device: torch.device | str,
    what: str,
    *,
    fixed: frozenset[str] = frozenset(),
    conversion: Conversion | None = None,
    tied: Mapping[str, str] | None = None,
    stored_as: Mapping[str, str] | None = None,
    ignore: Callable[[str], bool] = lambda name: False,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Give a model its tensors, each in its type; frozen, in eval mode.

    Args:
        what: the model, for messages.
        fixed: tensors that must be stored in the model's own type and stay in it (quantized numbers, their scales).
        tied: tensors that are one with another of the model and not read.
        stored_as: names in the checkpoint of tensors that are called otherwise there.
        ignore: names of surplus tensors in the checkpoint that do no harm.
        cancelled: asked between tensors.

    Raises:
        CheckpointError: the checkpoint does not hold exactly the model's tensors, or a weight cannot be quantized.
        LoadCancelled: `cancelled()`.
        WeightsError, DiskError: of the files (`files.storage_errors`).
    """
    tied, called = tied or {}, stored_as or {}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    names = {called.get(name, name): name for name in wanted}
    expected = expected_of(wanted, fixed)
    checkpoint.require({stored: expected[name] for stored, name in names.items()}, what, ignore)
    if conversion is not None:
        convert_(model, conversion.scheme, conversion.layers.__contains__)
    state: dict[str, Tensor] = {}
    for info in sorted((checkpoint.tensors[stored] for stored in names), key=_position):
        if cancelled():
            raise LoadCancelled(f"Loading {what} was stopped.")
        name = names[info.name]
        layer, _, part = name.rpartition(".")
        if conversion is not None and layer in conversion.layers and part == "weight":
            weight = checkpoint.read(info.name, own=True).to(conversion.at)
            parts = _quantized(weight, conversion, layer)
            state |= {f"{layer}.{key}": tensor.to(device) for key, tensor in parts.items()}
        else:
            dtype = wanted[name].dtype if name in fixed else dtype_of(name)
            as_it_is = dtype == torch_type(info) and torch.device(device).type == "cpu"
            state[name] = checkpoint.read(info.name, own=not as_it_is).to(device=device, dtype=dtype)
    state |= {name: state[other] for name, other in tied.items()}
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:  # quantized layers refuse scales that make no sense
        reason = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(f"The weights in {checkpoint.place} cannot be used: {reason}") from error
    model.requires_grad_(False).eval()
    _MAPPED[model] = tuple(checkpoint.mapped.values())


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Refuse to compute with mapped weights whose files are written to before the block or inside it.

    Whoever cuts a mapped file ends the program that reads behind its end, and whoever writes to it changes what is
    computed. So it is asked before each use, and again before anything is made of the result.

    Raises:
        CheckpointError: names the file.
    """
    with storage_errors():
        for file in _MAPPED.get(model, ()):
            file.check()
    yield
    with storage_errors():
        for file in _MAPPED.get(model, ()):
            file.check()


def expected_of(wanted: Mapping[str, Tensor], fixed: frozenset[str] = frozenset()) -> dict[str, Expected]:
    """What a model's declared tensors want of a file; those of `fixed` in exactly their type."""
    return {
        name: Expected(tuple(tensor.shape), (kind_of(tensor.dtype),) if name in fixed else FLOATS)
        for name, tensor in wanted.items()
    }


def _position(info: TensorInfo) -> tuple[str, int]:
    return info.file.name, info.start


def _quantized(weight: Tensor, conversion: Conversion, layer: str) -> dict[str, Tensor]:
    try:
        return finite_tensors(weight, conversion.scheme, layer)
    except QuantError as error:
        place, scheme = conversion.place(layer), conversion.scheme.name
        raise CheckpointError(f"{place} cannot be run as {scheme}: {error}") from error
