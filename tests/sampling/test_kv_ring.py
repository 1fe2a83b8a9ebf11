"""The ring against a store that keeps everything, and its memory, counted."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from magi_lite.models import SamplerSettings
from magi_lite.sampling.kv_store import KVRing, power_of_two_scale
from magi_lite.sampling.results import CleanChunk
from magi_lite.sampling.sampler import Sampler
from tests.sampling.conftest import settings, words

TOKENS, GROUPS, WIDTH = 5, 2, 8
RELATIVE = {"float32": 0.0, "bf16": 2**-8, "fp8": 2**-4}
"""Half a unit in the last place of each format, against the largest number (e4m3: 3 bits of mantissa)."""


def pair(seed: int, chunks: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, chunks * TOKENS, GROUPS, WIDTH)
    scale = torch.tensor([30.0, 0.01])[:, None]  # heads of very different size
    return tuple(torch.randn(shape, generator=generator) * scale for _ in range(2))


def by_chunk(x: Tensor) -> set[bytes]:
    """A range's chunks as a set: their order is free."""
    return {part.contiguous().numpy().tobytes() for part in x.split(TOKENS, 1)}


@pytest.mark.parametrize("place", ["device", "pinned"])
@pytest.mark.parametrize("slots", [1, 3, 4])
def test_reads_give_back_what_was_written(slots: int, place: str) -> None:
    ring, kept = KVRing(slots, place=place), {}
    chooser = random.Random(slots)
    for chunk in range(3, 20):
        for layer in range(3):
            kept[layer, chunk] = pair(1000 * layer + chunk)
            ring.write(layer, chunk, *kept[layer, chunk])
        for _ in range(3):
            first = chooser.randint(max(3, chunk + 1 - slots), chunk)
            last = chooser.randint(first + 1, chunk + 1)
            for layer in range(3):
                ring.prefetch(layer)
                found = ring.read(layer, first, last)
                for part in (0, 1):
                    expected = torch.cat([kept[layer, c][part] for c in range(first, last)], 1)
                    assert found[part].shape == expected.shape
                    assert by_chunk(found[part]) == by_chunk(expected)


@pytest.mark.parametrize("place", ["device", "pinned"])
@pytest.mark.parametrize("dtype", ["float32", "bf16", "fp8"])
def test_smaller_numbers_lose_what_their_format_says(dtype: str, place: str) -> None:
    ring, written = KVRing(2, dtype=dtype, place=place), pair(4)
    ring.write(0, 7, *written)
    for a, b in zip(ring.read(0, 7, 8), written, strict=True):
        assert a.dtype == b.dtype == torch.float32
        error = (a - b).abs().amax((0, 1, 3)) / b.abs().amax((0, 1, 3))  # head by head: each has its own scale
        assert (error <= RELATIVE[dtype]).all()
        assert dtype == "float32" or (error > 0).all()


def test_every_head_of_every_chunk_has_its_own_power_of_two() -> None:
    x = torch.randn(1, 6, 3, 4) * torch.tensor([1e-6, 1.0, 1e6])[:, None]
    scale = power_of_two_scale(x, (1, 3))
    assert scale.shape == (1, 1, 3, 1)
    mantissa, _ = torch.frexp(scale)
    assert (mantissa == 0.5).all()
    largest = (x / scale).abs().amax((1, 3))
    assert ((largest > 224) & (largest <= 448)).all()
    assert torch.isfinite(torch.zeros(1, 2, 3, 4) / power_of_two_scale(torch.zeros(1, 2, 3, 4), (1, 3))).all()


def test_what_it_does_not_hold_cannot_be_read() -> None:
    ring = KVRing(2)
    for chunk in range(4):
        ring.write(0, chunk, *pair(chunk))
    assert [ring.holds(chunk) for chunk in range(5)] == [False, False, True, True, False]
    with pytest.raises(AssertionError, match=r"chunks \[1\] of layer 0"):
        ring.read(0, 1, 3)
    ring.clear()
    assert not ring.holds(3)


def test_several_chunks_are_written_at_once() -> None:
    ring = KVRing(3, chunk_tokens=TOKENS)
    key, value = pair(1, chunks=3)
    ring.write(0, 4, key, value)
    assert by_chunk(ring.read(0, 4, 7)[0]) == by_chunk(key)
    assert torch.equal(ring.read(0, 5, 6)[1], value[:, TOKENS : 2 * TOKENS])


@pytest.mark.parametrize("dtype", ["float32", "bf16", "fp8"])
@pytest.mark.parametrize("place", ["device", "pinned"])
def test_bytes_do_not_grow(dtype: str, place: str) -> None:
    ring, sizes = KVRing(4, dtype=dtype, place=place), set()
    for chunk in range(40):
        for layer in range(3):
            ring.write(layer, chunk, *pair(chunk))
            ring.read(layer, max(0, chunk - 3), chunk + 1)
        sizes.add(ring.bytes())
    assert len(sizes) == 1
    stored = {"float32": 4, "bf16": 2, "fp8": 1}[dtype] * 2 * 4 * TOKENS * GROUPS * WIDTH
    scales = 2 * 4 * GROUPS * 4 if dtype == "fp8" else 0
    layers = 3 if place == "device" else 3 + 2  # two layers' ranges are on the device at a time
    assert sizes == {layers * (stored + scales)}
    assert ring.host_bytes() == (0 if place == "device" else 3 * (stored + scales))


class CountingDiT:
    """The least that a sampler can drive: velocity towards zero, and one layer's keys and values written when asked."""

    config = SimpleNamespace(latent_channels=1)

    def encode_captions(self, embeddings: Tensor, mask: Any, dropped: bool) -> Any:
        from magi_lite.dit.captions import CaptionContext, CaptionEncoding

        return CaptionContext.of(CaptionEncoding((), (embeddings.shape[1],), torch.zeros(1, 1)))

    def __call__(self, latents: Tensor, timesteps: Tensor, captions: Any, **named: Any) -> Tensor:
        store, first = named.get("store"), named["first_chunk"]
        if named.get("write"):
            store.write(0, first, latents.flatten(2).mT[:, :, None], latents.flatten(2).mT[:, :, None])
        elif store is not None:
            low = min(a for a, _ in named["kv_ranges"])
            if low < first:
                store.read(0, low, first)
        return -latents


def held_bytes(root: object) -> int:
    """Bytes of every tensor that can be reached from an object of ours."""
    seen: set[int] = set()
    storages: dict[int, int] = {}

    def walk(thing: Any) -> None:
        if id(thing) in seen:
            return
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, dict):
            for part in thing.values():
                walk(part)
        elif isinstance(thing, (list, tuple, set)):
            for part in thing:
                walk(part)
        elif type(thing).__module__.startswith("magi_lite") and hasattr(thing, "__dict__"):
            walk(vars(thing))

    walk(root)
    return sum(storages.values())


@pytest.mark.parametrize(("chosen", "most"), [(settings(4, 4), 10_000), (settings(4, 1), 1000)])
def test_ten_thousand_seconds_take_the_memory_of_ten(chosen: SamplerSettings, most: int) -> None:
    run: Callable[..., Sampler] = lambda chunks: Sampler(  # noqa: E731
        CountingDiT(), chosen, latent_size=(2, 2), chunks=chunks, null_caption=words(0, 2),
        caption=lambda chunk, remaining: words(1, 3), noise=lambda chunk: torch.ones(1, 1, 6, 2, 2),
    )  # fmt: skip
    sizes: dict[int, int] = {}
    sampler, states = run(None), {}
    for event in sampler.run():
        if isinstance(event, CleanChunk) and event.index + 1 in (10, 100, most):
            sizes[event.index + 1] = held_bytes(sampler)
            states[event.index + 1] = sum(t.numel() for t in sampler.state().tensors.values())
            assert sampler.bytes() <= sizes[event.index + 1]
            if event.index + 1 == most:
                break
    assert sizes[10] == sizes[100] == sizes[most] > 0
    assert states[10] == states[100] == states[most]


class Host:
    """Host memory that knows what is taken."""

    def __init__(self) -> None:
        self.taken: dict[int, int] = {}

    def expect(self, sizes: Any) -> None:
        pass

    def take(self, size: int) -> Tensor:
        buffer = torch.empty(size, dtype=torch.uint8)
        self.taken[id(buffer)] = size
        return buffer

    def give_back(self, buffer: Tensor) -> None:
        del self.taken[id(buffer)]


@pytest.mark.parametrize("dtype", ["float32", "fp8"])
@pytest.mark.parametrize("place", ["device", "pinned", "host"])
@pytest.mark.parametrize("seed", range(4))
def test_a_ring_of_another_size_keeps_what_it_still_holds(place: str, dtype: str, seed: int) -> None:
    """Bit for bit, and where a new ring of that size would have put it, so that reads come in the same order."""
    chooser, host = random.Random(seed), Host() if place == "host" else None
    options: dict[str, Any] = {"dtype": dtype, "place": "pinned" if host else place, "host": host, "layers": 2}
    ring, end, first = KVRing(chooser.randint(1, 6), **options), 0, 0
    for _ in range(6):
        for _ in range(chooser.randint(1, 5)):
            for layer in range(2):
                ring.write(layer, end, *pair(100 * layer + end))
            end += 1
        slots = chooser.randint(1, 8)
        first = max(first, end - ring.slots, end - slots)
        ring.resize(slots, end)
        fresh = KVRing(slots, dtype=dtype)
        for chunk in range(first, end):
            for layer in range(2):
                fresh.write(layer, chunk, *pair(100 * layer + chunk))
        for layer in range(2):
            for a in range(first, end):
                for ours, theirs in zip(ring.read(layer, a, end), fresh.read(layer, a, end), strict=True):
                    assert torch.equal(ours, theirs)
        assert ring.holds(end - 1) and ring.holds(first) and not ring.holds(first - 1)
        assert host is None or len(host.taken) == 2
