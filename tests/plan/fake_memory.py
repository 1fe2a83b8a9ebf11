"""A card without a card: full-size models run on tensors without data while every live storage is counted.

The device `meta` plays the graphics card. Large host tensors are made on `meta` too, so that they take no memory
either, but are marked and counted as the host's. Storages are counted when an operation returns them and forgotten when
Python frees them, each rounded up to 512 bytes as CUDA's allocator does, so `peak["card"]` is what
`torch.cuda.max_memory_allocated` would show.

Attention is sent to the flash kernel, as on a card: the fallback that `meta` would take materialises the scores. Code
with a branch for cards takes it for `meta` too (the transformer's single linear, the FP8 product).

`meta` kernels are slow Python, and a model repeats its shapes: what an operation made of given shapes is remembered,
and made again without asking the kernel. FakeTensorMode gives the same figures, many times slower.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from magi_lite import attention

CARD = torch.device("meta")
ROUND = 512
LARGE = 1 << 18
"""Numbers from which a host tensor is made without data."""
aten = torch.ops.aten
FACTORIES = {aten.empty.memory_format, aten.zeros.default, aten.full.default, aten.ones.default}


class LiveBytes(TorchDispatchMode):
    """Counts bytes of live storages on card and host, their peaks, and on request what was alive at the card's peak."""

    def __init__(self, explain: bool = False) -> None:
        super().__init__()
        self.live = {"card": 0, "host": 0}
        self.peak = {"card": 0, "host": 0}
        self.explain = explain
        self.at_peak: dict[int, tuple[int, str]] = {}
        self._seen: dict[int, tuple[int, str]] = {}
        self._made: dict[Any, Any] = {}

    def reset_peak(self) -> None:
        """Peaks start again from what is alive now."""
        self.peak = dict(self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        place = None
        if _writes_first(func) and any(isinstance(arg, torch.Tensor) and arg.is_meta for arg in args):
            return args[0]
        if func in FACTORIES and torch.device(kwargs.get("device") or "cpu").type == "cpu" and _numel(args[0]) >= LARGE:
            kwargs, place = {**kwargs, "device": CARD, "pin_memory": False}, "host"
        out = self._make(func, args, kwargs)
        for leaf in out if isinstance(out, tuple | list) else (out,):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf, str(func), place)
        return out

    def _make(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """The operation's result: by its kernel the first time, from the remembered shapes afterwards."""
        if not _makes_anew(func):
            return func(*args, **kwargs)
        key = (func, _outline(args), _outline(kwargs))
        if key not in self._made:
            out = func(*args, **kwargs)
            leaves = out if isinstance(out, tuple | list) else (out,)
            plain = all(isinstance(x, torch.Tensor) and x.device.type == "meta" for x in leaves)
            plain = plain and not _storages(leaves) & _storages(args)  # `_unsafe_view` does, and does not say so
            shapes = [(x.shape, x.stride(), x.dtype) for x in leaves] if plain else None
            self._made[key] = None if shapes is None else (isinstance(out, tuple | list), shapes)
            return out
        made = self._made[key]
        if made is None:
            return func(*args, **kwargs)
        several, shapes = made
        outs = [torch.empty_strided(shape, stride, dtype=dtype, device=CARD) for shape, stride, dtype in shapes]
        return tuple(outs) if several else outs[0]

    def count(self, tensor: torch.Tensor, name: str, place: str | None = None) -> None:
        """Count a tensor's storage if it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        place = place or ("card" if tensor.device.type == "meta" else "host")
        size = -(-storage.nbytes() // ROUND) * ROUND
        self._seen[key] = (size, f"{place} {name} {tuple(tensor.shape)} {tensor.dtype}")
        self.live[place] += size
        weakref.finalize(storage, self._free, key, place, size)
        if self.live[place] > self.peak[place]:
            self.peak[place] = self.live[place]
            if self.explain and place == "card":
                self.at_peak = dict(self._seen)

    def _free(self, key: int, place: str, size: int) -> None:
        self._seen.pop(key, None)
        self.live[place] -= size


@cache
def _writes_first(func: Any) -> bool:
    """In-place operations: they give back their first argument."""
    arguments, returns = func._schema.arguments, func._schema.returns
    first = arguments[0].alias_info if arguments else None
    return bool(first is not None and first.is_write and len(returns) == 1 and returns[0].alias_info is not None)


@cache
def _makes_anew(func: Any) -> bool:
    """Operations whose results share memory with nothing."""
    aliases = [item.alias_info for item in (*func._schema.arguments, *func._schema.returns)]
    return all(alias is None for alias in aliases) and bool(func._schema.arguments)


def _storages(values: Any) -> set[int]:
    return {x.untyped_storage()._cdata for x in values if isinstance(x, torch.Tensor)}


def _outline(value: Any) -> Any:
    """What of an argument decides the shape of a result."""
    if isinstance(value, torch.Tensor):
        return (value.shape, value.stride(), value.dtype, value.device.type)
    if isinstance(value, dict):
        return tuple((name, _outline(item)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_outline(item) for item in value)
    return value if not isinstance(value, float) else float


def _numel(size: Any) -> int:
    return torch.Size(size).numel()


class CardFunctions(TorchFunctionMode):
    """Sends attention to the kernels a card would use."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(query: Any, key: Any, value: Any, attn_mask: Any = None, enable_gqa: bool = False, **_: Any) -> Any:
    if attn_mask is None:
        return aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False)[0]
    repeat = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeat, 1) for x in (key, value))
    return aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, False)[0]


class Launched:
    """Stands in for a Triton kernel: `kernel[grid](...)` does nothing."""

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return lambda *_, **__: None


@contextmanager
def our_kernels() -> Iterator[None]:
    """Our Triton kernels serve for tensors of the card, under the conditions that cards have."""
    from magi_lite import fused
    from magi_lite import kernels as of_layers
    from quant import gate
    from quant import kernels as of_quantization

    with ExitStack() as stack:
        for owner, choices, module in (
            (gate, ("_for_activations", "_for_products"), of_quantization),
            (fused, ("_heads", "_residual"), of_layers),
        ):
            stack.enter_context(mock.patch.object(owner, "_on_a_card", lambda x: x.is_meta))
            for name in choices:
                stack.enter_context(mock.patch.object(owner, name, lambda *_, module=module: module))
            for name in (name for name in vars(module) if name.endswith("_kernel")):
                stack.enter_context(mock.patch.object(module, name, Launched()))
        yield


@contextmanager
def card(explain: bool = False, *, fused_attention: bool = True, kernels: bool = False) -> Iterator[LiveBytes]:
    """Everything inside runs without data and without gradients, and is counted.

    Args:
        fused_attention: False: torch has no fused kernel for this card.
        kernels: whether our Triton kernels serve; their functions run and make their tensors, and launch nothing.
    """
    counter = LiveBytes(explain)
    with torch.no_grad(), counter, ExitStack() as stack:
        if kernels:
            stack.enter_context(our_kernels())
        if fused_attention:
            stack.enter_context(CardFunctions())
        else:
            stack.enter_context(mock.patch.object(attention, "serves", lambda *_, **__: False))
            stack.enter_context(mock.patch.object(attention, "_by_cudnn", lambda *_: None))
        yield counter
