"""Weights that come and go: packed host buffers, streamed layers, swapped modules.

The idea: a module's weights are packed into ONE host buffer, pinned where that is possible; bringing them to the card
is one copy into one device buffer, and the module's tensors are views of whichever buffer is in charge. Leaving costs
nothing, because weights do not change: the views of the host are put back.

The road not taken is accelerate's hooks, which fall short here: `cpu_offload` copies each tensor of a layer by itself,
from pageable memory, in the computing stream, and only when the layer is already waiting for it, so nothing overlaps;
`cpu_offload_with_hook` copies weights that never changed back to the host; neither counts nor gives back pinned
memory; and both replace tensors by name through `set_module_tensor_to_device`, which rebuilds quantized ones.

Without a card the very same code runs with plain copies in order, which is how tests prove it equal, bit for bit.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from magi_lite.machine import devices
from magi_lite.planner.pinned import Blocks, aligned
from magi_lite.sentences import memory_size

_log = logging.getLogger(__name__)
BUFFERS = 2
"""Device buffers of a stack of layers: one computes while the other is filled."""


class PinnedMemory:
    """Host buffers, pinned up to a cap, or what the system allows; else ordinary memory (copied more slowly).

    Torch rounds every pinned allocation up to a power of two, which for a stack of equal layers can double what is
    pinned. So blocks of powers of two are pinned here, as large as what is still `expect`ed, and buffers cut from them
    (`planner.pinned`).
    """

    def __init__(self, cap_bytes: int | None = None, *, pin: bool | None = None) -> None:
        self.cap_bytes = cap_bytes
        self.pin = devices.cuda_available() if pin is None else pin
        self._taken: dict[int, int] = {}
        self._blocks = Blocks()
        self._rest: Tensor | None = None

    @property
    def pinned_bytes(self) -> int:
        """Bytes pinned at present."""
        return sum(self._taken.values())

    def expect(self, sizes: Sequence[int]) -> None:
        """Buffers of these sizes will be taken next."""
        room = None if self.cap_bytes is None else max(0, self.cap_bytes - self.pinned_bytes)
        self._blocks.expect(sizes, room)

    def take(self, size: int) -> Tensor:
        """A host buffer of `size` bytes (uint8)."""
        within = self.cap_bytes is None or self.pinned_bytes + size <= self.cap_bytes
        with torch.inference_mode(False):
            if self.pin and within:
                try:
                    buffer = self._cut(size)
                except Exception as error:
                    if not devices.is_out_of_memory(error):
                        raise
                    # Systems have limits of their own (Windows: about half of the RAM). Slower copies are no reason to
                    # stop, and what is left of the RAM is not to be pinned by trying again.
                    self.cap_bytes = self.pinned_bytes
                    _log.warning("No more than %s could be pinned (%s).", memory_size(self.pinned_bytes), error)
                else:
                    self._taken[id(buffer)] = size
                    return buffer
            return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=False)

    def _cut(self, size: int) -> Tensor:
        """The next `size` bytes of the block at hand, or of a new one."""
        block = self._blocks.cut(size)
        if block:
            self._rest = None
            try:
                self._rest = torch.empty(block, dtype=torch.uint8, device="cpu", pin_memory=True)
            except BaseException:
                self._blocks.drop()
                raise
        assert self._rest is not None
        buffer, self._rest = self._rest[:size], self._rest[aligned(size) :]
        return buffer

    def give_back(self, buffer: Tensor) -> None:
        """Stop counting a buffer; its memory goes when the last view of its block does."""
        self._taken.pop(id(buffer), None)
        if not self._taken:
            self._rest = None
            self._blocks.drop()


def packed_size(module: nn.Module) -> int:
    """Bytes of a module's tensors in one buffer."""
    tables = (table for owner in module.modules() for table in (owner._parameters, owner._buffers))
    return sum(aligned(t.numel() * t.element_size()) for table in tables for t in table.values() if t is not None)


@dataclass(frozen=True)
class _Entry:
    """One tensor of a packed module: where it hangs, and where its bytes lie."""

    owner: nn.Module
    name: str
    is_parameter: bool
    start: int
    shape: torch.Size
    dtype: torch.dtype

    def view(self, buffer: Tensor) -> Tensor:
        size = self.shape.numel() * self.dtype.itemsize
        tensor = buffer[self.start : self.start + size].view(self.dtype).view(self.shape)
        return nn.Parameter(tensor, requires_grad=False) if self.is_parameter else tensor


class PackedWeights:
    """A module whose tensors are views of one buffer, on the host or on the device.

    Args:
        module: its parameters and buffers are copied into the host buffer and replaced by views of it.
        memory: where host buffers come from.
        front: modules within it whose tensors lie in front, so that they can be copied without the others.
    """

    def __init__(self, module: nn.Module, memory: PinnedMemory, front: Sequence[nn.Module] = ()) -> None:
        self.module = module
        self._entries: list[_Entry] = []
        self.size = self.front_size = 0
        tensors: list[Tensor] = []
        first = [owner for part in front for owner in part.modules()]
        for owner in first:
            tensors += self._place(owner)
        self.front_size = self.size
        for owner in module.modules():
            if owner not in first:
                tensors += self._place(owner)
        self.host = memory.take(self.size)
        self._views: dict[int, list[Tensor]] = {}
        with torch.no_grad():
            for entry, tensor in zip(self._entries, tensors, strict=True):
                entry.view(self.host).copy_(tensor)
                del tensor
        self.bind(self.host)

    def _place(self, owner: nn.Module) -> list[Tensor]:
        """Give a module's own tensors their places behind those placed so far."""
        tensors = []
        for table, is_parameter in ((owner._parameters, True), (owner._buffers, False)):
            for name, tensor in table.items():
                if tensor is not None:
                    self._entries.append(_Entry(owner, name, is_parameter, self.size, tensor.shape, tensor.dtype))
                    tensors.append(tensor)
                    self.size += aligned(tensor.numel() * tensor.element_size())
        return tensors

    def bind(self, buffer: Tensor) -> None:
        """Make the module's tensors views of `buffer` (its first `size` bytes)."""
        key = id(buffer)
        if key not in self._views:
            with torch.inference_mode(False):
                self._views[key] = [entry.view(buffer) for entry in self._entries]
        for entry, view in zip(self._entries, self._views[key], strict=True):
            tables = entry.owner._parameters, entry.owner._buffers
            table = cast("dict[str, Tensor | None]", tables[0] if entry.is_parameter else tables[1])
            table[entry.name] = view

    def copy_to(self, buffer: Tensor, size: int | None = None) -> None:
        """Start copying the weights, or their first `size` bytes, into a device buffer, in the current stream."""
        size = self.size if size is None else size
        buffer[:size].copy_(self.host[:size], non_blocking=True)

    def forget(self, buffer: Tensor) -> None:
        """Drop the views of a buffer, so that its memory can go; the host takes over."""
        self.bind(self.host)
        self._views.pop(id(buffer), None)


class LayerStreamer:
    """Streams a stack of layers through two device buffers: while one computes, the next is copied on a side stream.

    The methods that compute are wrapped on each layer: the model knows nothing of it. (A forward hook would serve
    `forward` alone.) Layers are meant to be called in order, round and round; a call out of order is right too, only
    slower.

    Args:
        layers: the stack.
        device: where it computes.
        memory: where host buffers come from.
        methods: the layers' methods that compute with all their weights.
        part_methods: those that compute with some only, for which nothing else is copied.
        part: the modules of a layer that these compute with.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        device: torch.device | str,
        memory: PinnedMemory,
        methods: Sequence[str] = ("forward",),
        part_methods: Sequence[str] = (),
        part: Callable[[Any], Sequence[nn.Module]] = lambda layer: (),
    ) -> None:
        self.device = torch.device(device)
        memory.expect([packed_size(layer) for layer in layers])
        self._packed = [PackedWeights(layer, memory, part(layer)) for layer in layers]
        self._buffers: list[Tensor] = []
        self._holds: list[tuple[int, int] | None] = [None] * BUFFERS
        """Of each buffer the layer in it, and how many of its bytes."""
        self._arrived: list[Any | None] = [None] * BUFFERS
        self._free: list[Any | None] = [None] * BUFFERS
        self._side = devices.new_stream(self.device)
        self._wrapped = [(layer, name) for layer in layers for name in (*methods, *part_methods)]
        for index, layer in enumerate(layers):
            for name in (*methods, *part_methods):
                setattr(layer, name, self._with_weights(index, getattr(layer, name), name in part_methods))

    @property
    def device_bytes(self) -> int:
        """Bytes of the device buffers."""
        return sum(buffer.numel() for buffer in self._buffers)

    @property
    def host_bytes(self) -> int:
        """Bytes of the host buffers."""
        return sum(packed.size for packed in self._packed)

    def _with_weights(self, index: int, method: Callable[..., Any], some: bool) -> Callable[..., Any]:
        """A layer's method that has the layer's weights, or some of them, on the device while it computes."""

        @functools.wraps(method)
        def computing(*args: Any, **kwargs: Any) -> Any:
            self._before(index, some)
            try:
                return method(*args, **kwargs)
            finally:
                self._after(index)

        return computing

    def _before(self, index: int, some: bool) -> None:
        """The layer is about to compute: its weights must be there, and the next layer's may start."""
        if not self._buffers:
            largest = max(packed.size for packed in self._packed)
            count = min(BUFFERS, len(self._packed))
            with torch.inference_mode(False):
                self._buffers = [torch.empty(largest, dtype=torch.uint8, device=self.device) for _ in range(count)]
            # Their memory may have belonged to tensors that the computing stream has still to read.
            now = devices.record_event(devices.current_stream(self.device))
            self._free = [now] * BUFFERS
        slot = self._send(index, some)
        computing, arrived = devices.current_stream(self.device), self._arrived[slot]
        if computing is not None and arrived is not None:
            computing.wait_event(arrived)
        self._packed[index].bind(self._buffers[slot])
        if len(self._buffers) > 1:
            self._send((index + 1) % len(self._packed), some, avoid=slot)

    def _after(self, index: int) -> None:
        """The layer has computed: its buffer is free once the device gets here."""
        for slot, held in enumerate(self._holds):
            if held is not None and held[0] == index:
                self._free[slot] = devices.record_event(devices.current_stream(self.device))
        self._packed[index].bind(self._packed[index].host)

    def _send(self, index: int, some: bool, avoid: int | None = None) -> int:
        """Copy a layer into a buffer, unless one holds as much of it already; returns which."""
        packed = self._packed[index]
        size = packed.front_size if some else packed.size
        slot = index % len(self._buffers)
        if slot == avoid:
            slot = (slot + 1) % len(self._buffers)
        for place, held in enumerate(self._holds):
            if held is not None and held[0] == index:
                if held[1] >= size:
                    return place
                slot = place
        if self._side is not None and self._free[slot] is not None:
            self._side.wait_event(self._free[slot])  # what still reads the buffer comes first
        with devices.on_stream(self._side):
            packed.copy_to(self._buffers[slot], size)
            self._arrived[slot] = devices.record_event(self._side)
        self._holds[slot] = (index, size)
        return slot

    def close(self) -> None:
        """Unwrap the methods and give the device buffers back; the layers stay on the host, whole.

        They stay in pinned memory, which goes with them: who closes is about to drop them, and moving them to ordinary
        memory first would hold all of them twice.
        """
        for layer, name in self._wrapped:
            delattr(layer, name)
        self._wrapped = []
        self._give_buffers_back()
        devices.free_memory()

    def _give_buffers_back(self) -> None:
        devices.synchronize()
        for packed in self._packed:
            for buffer in self._buffers:
                packed.forget(buffer)
        self._buffers, self._holds = [], [None] * BUFFERS
        self._arrived, self._free = [None] * BUFFERS, [None] * BUFFERS


class SwappedModule:
    """A module that is on the device only inside `at_work`, brought there by one copy."""

    def __init__(self, module: nn.Module, device: torch.device | str, memory: PinnedMemory) -> None:
        self.module, self.device = module, torch.device(device)
        self._packed = PackedWeights(module, memory)

    @contextmanager
    def at_work(self) -> Iterator[nn.Module]:
        """The module on its device; gone from there afterwards."""
        with torch.inference_mode(False):
            buffer = torch.empty(self._packed.size, dtype=torch.uint8, device=self.device)
        self._packed.copy_to(buffer)
        self._packed.bind(buffer)
        try:
            yield self.module
        finally:
            self._packed.forget(buffer)
