"""Keys and values of clean chunks in a ring: a video of any length takes the memory of its first seconds.

A chunk's queries reach at most four chunks back, and once clean a chunk's own keys and values never change (it sees
only itself). So each layer keeps a fixed number of chunk slots, written round and round; the road not taken, keeping
every chunk in host memory and copying all of them for every pass, costs more with every second.

Where a card is short the slots lie in pinned host memory and each layer's range is copied to the card while the layer
before it computes. Stored in FP8, each head of each chunk has a power-of-two scale, so that reading back is exact.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

KVDtype = Literal["float32", "bf16", "fp8"]
_STORED = {"float32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
E4M3_MAX = 448.0
"""Largest finite float8_e4m3fn."""


class Streams(Protocol):
    """What a pinned store needs to copy beside computation; `magi_lite.machine.devices` is one."""

    def new_stream(self, device: Any) -> Any | None: ...
    def current_stream(self, device: Any) -> Any | None: ...
    def record_event(self, stream: Any | None) -> Any | None: ...
    def on_stream(self, stream: Any | None) -> AbstractContextManager[None]: ...
    def keep_for(self, tensor: Tensor, stream: Any | None) -> None: ...


class HostMemory(Protocol):
    """Where a pinned store takes its memory from: `magi_lite.weights.streaming.PinnedMemory` is one."""

    def expect(self, sizes: Sequence[int]) -> None: ...
    def take(self, size: int) -> Tensor: ...
    def give_back(self, buffer: Tensor) -> None: ...


class _InOrder:
    """No streams: copies happen where they are asked for."""

    def new_stream(self, device: Any) -> None: ...
    def current_stream(self, device: Any) -> None: ...
    def record_event(self, stream: Any | None) -> None: ...
    def keep_for(self, tensor: Tensor, stream: Any | None) -> None: ...

    def on_stream(self, stream: Any | None) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass
class _Slots:
    """One layer's slots: key, value (N, slots, tokens, groups, head_dim); scales of FP8 (N, slots, 1, groups, 1)."""

    key: Tensor
    value: Tensor
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.key, self.value, self.key_scale, self.value_scale) if t is not None]

    @staticmethod
    def parts(shape: torch.Size, dtype: KVDtype) -> list[tuple[torch.Size, torch.dtype]]:
        """Shapes and types of the tensors of a layer whose keys are of `shape`."""
        scales = torch.Size((shape[0], shape[1], 1, shape[3], 1))
        return [(shape, _STORED[dtype])] * 2 + [(scales, torch.float32)] * (2 if dtype == "fp8" else 0)

    @classmethod
    def allocate(cls, shape: torch.Size, dtype: KVDtype, device: Any) -> _Slots:
        """Empty slots on a device."""
        with torch.inference_mode(False):  # written in and out of inference mode
            return cls(*(torch.empty(part, dtype=kind, device=device) for part, kind in cls.parts(shape, dtype)))

    @classmethod
    def within(cls, buffer: Tensor, shape: torch.Size, dtype: KVDtype) -> _Slots:
        """Slots in a buffer of `layer_bytes` bytes."""
        tensors, start = [], 0
        with torch.inference_mode(False):
            for part, kind in cls.parts(shape, dtype):
                size = part.numel() * kind.itemsize
                tensors.append(buffer[start : start + size].view(kind).view(part))
                start += _aligned(size)
        return cls(*tensors)

    @classmethod
    def layer_bytes(cls, shape: torch.Size, dtype: KVDtype) -> int:
        """Bytes of the slots of a layer in one buffer."""
        return sum(_aligned(part.numel() * kind.itemsize) for part, kind in cls.parts(shape, dtype))


@dataclass
class _Staged:
    """A range of a layer on its way to, or on, the device."""

    layer: int
    first: int
    last: int
    arrived: Any | None


def power_of_two_scale(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The smallest power of two that brings x (over `dims`, kept) within the e4m3 range; float32, no host sync."""
    largest = x.abs().amax(dim=dims, keepdim=True).float().clamp_min(torch.finfo(torch.float32).tiny * 1024)
    mantissa, exponent = torch.frexp(largest / E4M3_MAX)  # exact, where a device's log2 and exp2 need not be
    return torch.ldexp(torch.ones_like(largest), exponent - (mantissa == 0.5).to(exponent.dtype))


class KVRing:
    """A KV store of `slots` chunks per layer.

    Args:
        slots: chunks kept; `Schedule.reach` is enough for any length.
        dtype: in which numbers keys and values are stored; reads return the numbers that were written.
        place: "device", or "pinned" host memory with two layers' ranges at a time on the device.
        device: where reads must arrive.
        streams: for "pinned" on a card: how to copy beside computation (`magi_lite.machine.devices`).
        chunk_tokens: tokens of a chunk; None: the first write is of one chunk and tells.
        host, layers: for "pinned" on a card: where its memory comes from, and for how many layers; None: each layer
            is pinned by itself, which torch rounds up to a power of two.
    """

    def __init__(
        self,
        slots: int,
        *,
        dtype: KVDtype = "float32",
        place: Literal["device", "pinned"] = "device",
        device: torch.device | str = "cpu",
        streams: Streams | None = None,
        chunk_tokens: int | None = None,
        host: HostMemory | None = None,
        layers: int = 1,
    ) -> None:
        self.slots, self.dtype, self.place, self.device = slots, dtype, place, torch.device(device)
        self._chunk_tokens = chunk_tokens
        self._streams: Streams = streams or _InOrder()
        self._side = self._streams.new_stream(self.device) if place == "pinned" else None
        self._host, self._layers_in_all = (host if place == "pinned" else None), layers
        self._buffers: list[Tensor] = []
        """What was taken of the host's memory; given back when this store goes."""
        if self._host is not None:
            weakref.finalize(self, _give_back, self._host, self._buffers)
        self._layers: dict[int, _Slots] = {}
        self._held: dict[int, list[int | None]] = {}
        self._written_in = torch.float32
        self._stage: list[_Slots] = []
        self._staged: list[_Staged | None] = [None, None]
        self._reading: int | None = None
        self._so_far: tuple[int, int] | None = None
        self._widest: tuple[int, int] | None = None

    # --- writing -----------------------------------------------------------------------------------------------------

    def write(self, layer: int, first_chunk: int, key: Tensor, value: Tensor) -> None:
        """Take whole chunks from `first_chunk` on, replacing the oldest.

        Args:
            key, value: (N, chunks * tokens, groups, head_dim).
        """
        key, value = key.detach(), value.detach()
        if layer not in self._layers:
            n, tokens, groups, width = key.shape
            shape = torch.Size((n, self.slots, self._chunk_tokens or tokens, groups, width))
            self._layers[layer] = self._new_slots(shape)
            self._held[layer] = [None] * self.slots
        self._written_in = key.dtype
        slots = self._layers[layer]
        tokens = slots.key.shape[2]
        for i, (k, v) in enumerate(zip(key.split(tokens, 1), value.split(tokens, 1), strict=True)):
            slot = (first_chunk + i) % self.slots
            self._put(k, slots.key[:, slot], slots.key_scale, slot)
            self._put(v, slots.value[:, slot], slots.value_scale, slot)
            self._held[layer][slot] = first_chunk + i
        self._staged = [None if s is not None and s.layer == layer else s for s in self._staged]

    def _new_slots(self, shape: torch.Size) -> _Slots:
        """Slots of one more layer."""
        if self.place == "device":
            return _Slots.allocate(shape, self.dtype, self.device)
        size = _Slots.layer_bytes(shape, self.dtype)
        if self._host is not None:
            if not self._layers:
                self._host.expect([size] * self._layers_in_all)
            self._buffers.append(self._host.take(size))
            return _Slots.within(self._buffers[-1], shape, self.dtype)
        with torch.inference_mode(False):
            pin = self.device.type == "cuda"
            buffer = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pin)
        return _Slots.within(buffer, shape, self.dtype)

    def _put(self, x: Tensor, into: Tensor, scales: Tensor | None, slot: int) -> None:
        """x (N, tokens, groups, head_dim) -> one slot."""
        if scales is not None:
            scale = power_of_two_scale(x, (1, 3))
            scales[:, slot].copy_(scale, non_blocking=True)
            x = (x.float() / scale).to(torch.float8_e4m3fn)
        into.copy_(x, non_blocking=True)

    def resize(self, slots: int, end: int) -> None:
        """Have another number of slots, and keep what is held of the last `slots` chunks before chunk `end`.

        A layer at a time, so that hardly more than the larger of both stores is in memory at once. Every chunk comes
        to lie where a new store of that size would have put it.
        """
        kept = range(max(0, end - slots), end)
        for index, (layer, old) in enumerate(list(self._layers.items())):
            held = self._held[layer]
            shape = torch.Size((old.key.shape[0], slots, *old.key.shape[2:]))
            moved = {chunk: held.index(chunk) for chunk in kept if chunk in held}
            if self._host is not None and slots < self.slots:  # in the memory that it has: pinning takes long
                parts = [[t[:, slot].clone() for t in old.tensors()] for slot in moved.values()]
                new = _Slots.within(self._buffers[index], shape, self.dtype)
            else:
                parts = [[t[:, slot] for t in old.tensors()] for slot in moved.values()]
                new = self._new_slots(shape)
            for chunk, tensors in zip(moved, parts, strict=True):
                for into, part in zip(new.tensors(), tensors, strict=True):
                    into[:, chunk % slots].copy_(part, non_blocking=True)
            if len(self._buffers) > len(self._layers) and self._host is not None:
                before, self._buffers[index] = self._buffers[index], self._buffers.pop()
                self._host.give_back(before)
            self._layers[layer] = new
            self._held[layer] = [None] * slots
            for chunk in moved:
                self._held[layer][chunk % slots] = chunk
        self.slots = slots
        self._stage, self._staged = [], [None, None]
        self._widest = self._so_far = self._reading = None

    # --- reading -----------------------------------------------------------------------------------------------------

    def read(self, layer: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Keys and values of chunks [first, last), (N, chunks * tokens, groups, head_dim) each, in any order of chunks.

        What is returned may be a view: it holds until the next write, or (pinned) until the next but one layer's read.
        """
        held = self._held.get(layer, [])
        missing = [chunk for chunk in range(first, last) if chunk not in held]
        assert not missing, f"chunks {missing} of layer {layer} are not in the store, which holds {held}"
        slots = self._layers[layer] if self.place == "device" else self._arrived(layer, first, last)
        pieces = self._pieces(first, last)
        return self._take(slots.key, slots.key_scale, pieces), self._take(slots.value, slots.value_scale, pieces)

    def _pieces(self, first: int, last: int) -> list[tuple[int, int]]:
        """The slots of a range as one run of slots, or two where the ring wraps."""
        count, start = last - first, first % self.slots
        if count == self.slots:
            return [(0, self.slots)]  # all of them: their order is free
        if start + count <= self.slots:
            return [(start, start + count)]
        return [(start, self.slots), (0, start + count - self.slots)]

    def _take(self, x: Tensor, scales: Tensor | None, pieces: list[tuple[int, int]]) -> Tensor:
        found = []
        for a, b in pieces:
            part = x[:, a:b]
            if scales is not None:
                part = part.to(self._written_in) * scales[:, a:b].to(self._written_in)
            found.append(part.flatten(1, 2).to(self._written_in))
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    # --- host memory -------------------------------------------------------------------------------------------------

    def prefetch(self, layer: int) -> None:
        """A hint that `layer` is read next, over what the layer before it read in all."""
        if self.place == "device" or self._widest is None or layer not in self._layers:
            return
        if all(chunk in self._held[layer] for chunk in range(*self._widest)):
            self._send(layer, *self._widest)

    def _arrived(self, layer: int, first: int, last: int) -> _Slots:
        """The range on the device, waited for by the computing stream only; the next layer's is sent meanwhile."""
        if layer != self._reading:
            self._reading, self._widest, self._so_far = layer, self._so_far or (first, last), (first, last)
        elif self._so_far is not None:
            self._so_far = (min(first, self._so_far[0]), max(last, self._so_far[1]))
        staged = self._send(layer, first, last)
        computing = self._streams.current_stream(self.device)
        if computing is not None and staged.arrived is not None:
            computing.wait_event(staged.arrived)
        self.prefetch(layer + 1)
        return self._stage[layer % 2]

    def _send(self, layer: int, first: int, last: int) -> _Staged:
        staged = self._staged[layer % 2]
        if staged is not None and staged.layer == layer and staged.first <= first and last <= staged.last:
            return staged
        source = self._layers[layer]
        while len(self._stage) < 2:
            self._stage.append(_Slots.allocate(source.key.shape, self.dtype, self.device))
            for part in self._stage[-1].tensors():  # a copy that nobody waited for may be under way when they go
                self._streams.keep_for(part, self._side)
        done = self._streams.record_event(self._streams.current_stream(self.device))
        if self._side is not None and done is not None:
            self._side.wait_event(done)  # what still reads this half of the stage, or writes the slots, comes first
        with self._streams.on_stream(self._side):
            for a, b in self._pieces(first, last):
                for target, origin in zip(self._stage[layer % 2].tensors(), source.tensors(), strict=True):
                    target[:, a:b].copy_(origin[:, a:b], non_blocking=True)
        staged = _Staged(layer, first, last, self._streams.record_event(self._side))
        self._staged[layer % 2] = staged
        return staged

    # --- accounting --------------------------------------------------------------------------------------------------

    def holds(self, chunk: int) -> bool:
        """Whether every layer written so far has this chunk."""
        return bool(self._held) and all(chunk in held for held in self._held.values())

    def clear(self) -> None:
        """Forget all chunks; the memory stays."""
        self._held = {layer: [None] * self.slots for layer in self._held}
        self._staged = [None, None]

    def device_bytes(self) -> int:
        """Bytes on the computing device."""
        on_device = list(self._layers.values()) if self.place == "device" else []
        return _size([*on_device, *self._stage])

    def host_bytes(self) -> int:
        """Bytes in host memory for want of room on the device."""
        return 0 if self.place == "device" else _size(list(self._layers.values()))

    def bytes(self) -> int:
        """All bytes of the store."""
        return self.device_bytes() + self.host_bytes()


def _give_back(host: HostMemory, buffers: list[Tensor]) -> None:
    """Let the host's memory be taken by others."""
    for buffer in buffers:
        host.give_back(buffer)


def _aligned(size: int) -> int:
    """Bytes to where the next tensor of a buffer may start."""
    return -(-size // 16) * 16


def _size(slots: list[_Slots]) -> int:
    return sum(t.numel() * t.element_size() for s in slots for t in s.tensors())
