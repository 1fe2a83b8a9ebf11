"""Pinned memory: capped, counted, cut from few blocks, given back, and done without where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from magi_lite.planner.pinned import ALIGNMENT, Blocks
from magi_lite.weights.streaming import LayerStreamer, PinnedMemory


def test_pinned_memory_is_capped_counted_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    original = torch.empty

    def empty(*args: object, pin_memory: bool = False, **kwargs: object) -> torch.Tensor:
        asked.append(pin_memory)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", empty)
    memory = PinnedMemory(cap_bytes=1000, pin=True)
    first, second, third = memory.take(600), memory.take(600), memory.take(400)
    assert asked == [True, False, True] and memory.pinned_bytes == 1000
    memory.give_back(first)
    assert memory.pinned_bytes == 400
    assert second.numel() == 600 and third.numel() == 400

    layers = [nn.Linear(8, 8) for _ in range(3)]
    memory = PinnedMemory(pin=True)
    streamer = LayerStreamer(layers, "cpu", memory)
    x = torch.randn(1, 8)
    expected = nn.Sequential(*layers)(x)
    assert memory.pinned_bytes == streamer.host_bytes > 0
    assert torch.equal(nn.Sequential(*layers)(x), expected)
    streamer.close()
    assert torch.equal(nn.Sequential(*layers)(x), expected)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDA error: out of memory")]
)
def test_where_the_system_pins_no_more_ordinary_memory_serves(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original, pinned = torch.empty, []

    def empty(size: int, *, pin_memory: bool = False, **kwargs: object) -> torch.Tensor:
        if pin_memory:
            pinned.append(size)
            if sum(pinned) > 1000:
                raise error
        return original(size, **kwargs)

    monkeypatch.setattr(torch, "empty", empty)
    layers = [nn.Linear(8, 8) for _ in range(6)]
    x = torch.randn(1, 8)
    expected = nn.Sequential(*layers)(x)
    memory = PinnedMemory(pin=True)
    streamer = LayerStreamer(layers, "cpu", memory)
    assert 0 < len(pinned) <= 3 and sum(pinned[:-1]) <= 1000 < sum(pinned), "not tried again for every layer"
    assert memory.pinned_bytes <= 1000 and "could be pinned" in caplog.text
    assert torch.equal(nn.Sequential(*layers)(x), expected)
    streamer.close()
    monkeypatch.setattr(torch, "empty", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        PinnedMemory(pin=True).take(10)


def test_equal_buffers_are_pinned_in_blocks_of_powers_of_two_without_much_waste(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch rounds a pinned allocation up to a power of two: a stack of layers must not become twice as large."""
    blocks: list[int] = []
    original = torch.empty

    def empty(size: int, *, pin_memory: bool = False, **kwargs: object) -> torch.Tensor:
        blocks.append(size)
        return original(size, **kwargs)

    monkeypatch.setattr(torch, "empty", empty)
    memory = PinnedMemory(pin=True)
    sizes = [66_000] * 34  # a little above a power of two: the worst case
    memory.expect(sizes)
    buffers = [memory.take(size) for size in sizes]
    assert all(block & (block - 1) == 0 for block in blocks)
    assert sum(sizes) <= sum(blocks) <= 1.2 * sum(sizes)
    for number, buffer in enumerate(buffers):
        buffer.fill_(number)
    assert all(bool((buffer == number).all()) for number, buffer in enumerate(buffers))
    assert all(buffer.storage_offset() % ALIGNMENT == 0 for buffer in buffers)
    assert memory.pinned_bytes == sum(sizes)


def test_closing_does_not_hold_the_weights_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, pin_memory=False, **kwargs: original(*args, **kwargs))
    layers = [nn.Linear(8, 8) for _ in range(3)]
    x = torch.randn(1, 8)
    expected = nn.Sequential(*layers)(x)
    streamer = LayerStreamer(layers, "cpu", PinnedMemory(pin=True))
    assert torch.equal(nn.Sequential(*layers)(x), expected)
    hosts = [packed.host.data_ptr() for packed in streamer._packed]
    streamer.close()
    assert [packed.host.data_ptr() for packed in streamer._packed] == hosts
    assert streamer.device_bytes == 0
    assert torch.equal(nn.Sequential(*layers)(x), expected)


def test_layers_that_move_into_pinned_memory_are_never_all_there_twice() -> None:
    """A block is pinned as a whole before the first layer has moved: it must be small beside what moves."""
    blocks = Blocks()
    sizes = [124 << 20] * 34
    blocks.expect(sizes)
    taken = [block for size in sizes if (block := blocks.cut(size))]
    assert max(taken) <= 1 << 30
    assert sum(sizes) <= sum(taken) <= 1.15 * sum(sizes)
