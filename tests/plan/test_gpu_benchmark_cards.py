"""What the GPU command does on a card only, with cards of paper: a fake clock, allocator, profiler and kernels."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType

from benchmarks import gpu, gpu_checks, gpu_models, gpu_overlap, gpu_planned, gpu_setup, gpu_windows
from benchmarks.gpu_setup import Setup, pass_bytes
from magi_lite import attention
from magi_lite.machine import cards, devices
from magi_lite.models import DIT_4_5B, VAE_PUBLISHED
from magi_lite.sampling.kv_store import KVRing
from tests.plan.fake_memory import CARD, card
from tests.plan.full_size import build_dit, warm_up

SIZES = ((256, 256), (384, 384), (480, 480), (720, 720))


class Paper(Setup):
    """A setup that believes in its card while tensors are the processor's."""

    @property
    def dry(self) -> bool:
        return False

    def build(self, scheme: str, config: Any = None) -> Any:
        return PaperDiT(self, scheme, (config or self.dit).num_layers)


def paper(name: str, free_gib: float | None = None) -> Paper:
    device = replace(cards.known_card(name), ram_bytes=64 << 30)
    if free_gib is not None:
        device = replace(device, free_bytes=int(free_gib * cards.GIB))
    schemes = ("bf16", "fp8" if device.has_fp8 else "int8", "nf4")
    end = time.perf_counter() + gpu_setup.TIME_LIMIT
    return Paper(device, "cpu", torch.bfloat16, DIT_4_5B, VAE_PUBLISHED, SIZES, schemes, end)


@cache
def pass_seconds(card: str, scheme: str, size: tuple[int, int], window: int) -> float:
    s = paper(card)
    plan = s.plan(size, window, s.execution(scheme))
    return plan.seconds_per_chunk * window / plan.request.steps


class PaperDiT(nn.Module):
    """A transformer whose passes take the seconds that a slow card of the kind would, by the fake clock."""

    slowness = 1.0

    def __init__(self, s: Paper, scheme: str, layers: int) -> None:
        super().__init__()
        self.s, self.scheme, self.config = s, scheme, s.dit
        self.videodit_blocks = nn.Module()
        self.videodit_blocks.layers = nn.ModuleList(nn.Identity() for _ in range(layers))
        self.mlp_slice = self.attention_slice = None
        self.backend: Any = None

    def forward(self, size: tuple[int, int], window: int, **_: Any) -> torch.Tensor:
        share = len(self.videodit_blocks.layers) / self.config.num_layers
        time.sleep(self.slowness * share * pass_seconds(self.s.device.name, self.scheme, size, window))
        return torch.ones(4)


class Clock:
    """`time`, with sleeping instead of waiting."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


def takes(seconds: float) -> Any:
    """A section or measurement of which only the time matters."""

    def work(*_: Any, **__: Any) -> dict[str, Any]:
        time.sleep(seconds)
        return {"took": seconds}

    return work


def paper_generation(s: Paper, dit: Any, vae: Any, execution: Any, size: Any, window: int) -> dict[str, Any]:
    seconds = PaperDiT.slowness * s.plan(size, window, execution).seconds_per_chunk
    time.sleep(gpu.CHUNKS * seconds)
    return {"seconds_per_chunk": seconds, "frames": ["same"]}


def paper_layers(s: Paper, dit: Any, size: Any, *_: Any) -> dict[str, Any]:
    for _ in range(8):
        dit(size, 1)
    return {"equal_bits": True}


@pytest.fixture
def on_paper(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Every section with its own decisions; passes take the fake clock's time, and other work a constant."""

    def inputs(dit: Any, size: Any, window: int, *_: Any, **__: Any) -> dict[str, Any]:
        return {"size": size, "window": window, "kv_ranges": ((0, window + 1),)}

    monkeypatch.setattr(devices, "free_memory", lambda: None)
    for module in (gpu, gpu_planned, gpu_windows):
        monkeypatch.setattr(module, "stage_inputs", inputs)
    monkeypatch.setattr(gpu_planned, "_dearest", lambda work, s: {"dearest_kernels": [str(work())]})
    monkeypatch.setattr(gpu_planned, "_waits", lambda work, s: str(work()))
    monkeypatch.setattr(gpu_planned.roofline, "price", takes_bill)
    monkeypatch.setattr(gpu, "_generation", paper_generation)
    monkeypatch.setattr(gpu_overlap, "keys_and_values", paper_layers)
    monkeypatch.setattr(gpu_overlap, "layers", paper_layers)
    monkeypatch.setattr(gpu_windows, "layers", paper_layers)
    monkeypatch.setattr(gpu_windows, "_attention", takes(3.0))
    monkeypatch.setattr(gpu_windows, "forced", nothing_forced)
    monkeypatch.setattr(Paper, "build_vae", lambda s: None)
    constant = {"versions": 2, "probes": 60, "reference": 10, "attention": 10, "transformer": 15, "encoding": 20,
        "machine": 5, "linears": 20, "quantization": 15, "decoding": 20}  # fmt: skip
    for name, seconds in constant.items():
        monkeypatch.setitem(gpu.SECTIONS, name, takes(seconds))


def takes_bill(case: Any) -> dict[str, Any]:
    time.sleep(3)
    return {"window pass": SimpleNamespace(seconds=1.0, floor=0.5)}


@contextmanager
def nothing_forced(s: Setup) -> Iterator[dict[str, Any]]:
    yield {}


def unanswered(value: Any) -> bool:
    """Whether a section, or every row of it, was left out for want of time."""
    if isinstance(value, list):
        return all(unanswered(row) for row in value)
    return value.get("skipped") == "out of time"


@pytest.mark.usefixtures("on_paper")
@pytest.mark.parametrize("slowness", [1.0, 1.6])
@pytest.mark.parametrize("name", ["RTX 3060", "RTX 3090", "RTX 4090"])
def test_it_ends_in_time_with_the_answers_of_most_worth(
    name: str, slowness: float, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PaperDiT, "slowness", slowness)
    setup = paper(name)
    monkeypatch.setattr(gpu, "setup", lambda dry: setup)
    began = clock.now
    results = gpu.run()
    assert [value for value in results.values() if isinstance(value, dict) and "error" in value] == []
    assert clock.now - began < gpu.LAST_SECOND
    planned = results["planned"]
    assert planned["price"]["ratio"] > 0 and planned["few_layers"]["seconds"] > 0
    if (name, slowness) != ("RTX 3060", 1.6):  # there the whole pass takes two minutes, and its layers say as much
        assert planned["seconds"] == pytest.approx(planned["expected_seconds"], rel=0.1)
    wanted = list(gpu.SECTIONS)[: list(gpu.SECTIONS).index("encoding") + 1]
    assert [name for name in wanted if name != "planned" and unanswered(results[name])] == []
    assert {row["what"] for row in results["streaming"] if "equal_bits" in row} == {"keys and values", "layers"}
    assert "window_4" in results["windows"]["as_here"] and "window_4" in results["windows"]["as_windows"]
    assert sum("seconds" in row for row in results["slices"]) >= 2
    if name == "RTX 4090":
        assert any("share_of_roofline" in row for row in results["passes"])


@pytest.mark.slow
def test_a_pass_as_planned_takes_what_it_is_held_against() -> None:
    """The full-size pass byte by byte: with the whole phase's promise a perfect card would look a fifth off."""
    plan = gpu_planned.chosen(paper("RTX 3090"))
    assert plan.execution.decode_beside and plan.request.width == 720
    warm_up(plan.execution.scheme)
    with card() as counter:
        dit = build_dit(plan, CARD)
        store = KVRing(gpu_models.slots_of(plan.window), dtype="bf16", device=CARD)
        given = gpu_models.stage_inputs(dit, (720, 720), plan.window, CARD, torch.bfloat16, store=store)
        counter.reset_peak()
        dit(**given)
    assert counter.peak["card"] == pytest.approx(pass_bytes(plan), rel=0.02)
    assert plan.peak_per_phase["denoise"] > 1.2 * pass_bytes(plan)


@pytest.mark.parametrize("free_gib", [None, 8.0, 5.5])
def test_the_planned_pass_is_placed_as_the_plan_of_the_card_says(free_gib: float | None) -> None:
    plan = gpu_planned.chosen(paper("RTX 3060", free_gib))
    assert plan.fits
    on_card = plan.execution.layers == "resident" and plan.execution.kv_place == "device"
    assert on_card == (free_gib is None)


def rows(*given: tuple[str, DeviceType, float, float]) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(key=key, count=2, device_type=kind, self_device_time_total=card, self_cpu_time_total=host)
        for key, kind, card, host in given
    ]


def test_kernels_are_listed_once_and_apart_from_the_operators_that_launch_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = rows(
        ("aten::mm", DeviceType.CPU, 3000.0, 10.0), ("small", DeviceType.CUDA, 1000.0, 0.0),
        ("gemm", DeviceType.CUDA, 3000.0, 0.0), ("cudaLaunchKernel", DeviceType.CPU, 0.0, 40.0),
    )  # fmt: skip

    @contextmanager
    def profile(activities: list[Any]) -> Iterator[Any]:
        assert len(activities) == 2
        yield SimpleNamespace(key_averages=lambda: seen)

    monkeypatch.setattr("torch.profiler.profile", profile)
    found = gpu_planned._dearest(lambda: None, paper("RTX 3090"))
    assert [(row["kernel"], row["ms"]) for row in found["dearest_kernels"]] == [("gemm", 3.0), ("small", 1.0)]
    assert found["kernels_ms"] == 4.0
    assert [row["operator"] for row in found["dearest_operators"]] == ["cudaLaunchKernel", "aten::mm"]
    assert gpu_checks._kernel_names(lambda: None, paper("RTX 3090")) == ["gemm", "small"]


def test_what_makes_the_processor_wait_is_named_and_the_mode_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[Any] = [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def waits() -> None:
        assert modes[-1] == "error"
        raise RuntimeError("called a synchronizing CUDA operation\nmore")

    assert gpu_planned._waits(waits, paper("RTX 3090")) == "called a synchronizing CUDA operation"
    assert gpu_planned._waits(lambda: None, paper("RTX 3090")) == ""
    assert modes == [0, "error", 0, "error", 0]


@pytest.mark.parametrize(("kernels", "found"), [(None, "not run"), (0.0, 0.0), (0.5, 0.5)])
def test_kernels_are_compared_with_plain_arithmetic_only_where_one_serves(
    kernels: float | None, found: float | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = SimpleNamespace(ask=lambda: kernels)

    def work() -> torch.Tensor:
        off = choice.ask()
        return torch.ones(8) * (1 + (off or 0))

    result = gpu_checks._against_plain(work, [(choice, "ask")])
    assert result == found if kernels is not None else str(result).startswith("not run")
    assert choice.ask() is kernels


class PaperAllocator:
    """What is asked of torch's allocator and of its switches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, settings: str, physical: int, refuses: bool) -> None:
        self.settings, self.fractions, self.refuses = [settings], [], refuses
        monkeypatch.setattr(devices, "cuda_available", lambda: True)
        monkeypatch.setattr(devices, "free_memory", lambda: None)
        monkeypatch.setattr(devices, "memory_info", lambda: (physical, physical))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (physical, physical))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", self.fractions.append)
        monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", self.settings.append, raising=False)
        monkeypatch.setattr(
            torch._C, "_accelerator_getAllocatorSettings", lambda: self.settings[-1], raising=False
        )
        monkeypatch.setattr(torch, "empty", self.empty)

    def empty(self, size: int, **_: Any) -> None:
        assert size < devices.memory_info()[0], "a card without a limit has room for it"  # type: ignore[index]
        if self.refuses:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("refuses", [True, False])
@pytest.mark.parametrize("settings", ["expandable_segments:True", "max_split_size_mb:64,expandable_segments:True"])
def test_windows_paths_are_forced_and_undone(
    settings: str, refuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocator = PaperAllocator(monkeypatch, settings, 32 * devices.LEFT_FREE, refuses)
    before = torch.backends.cuda.flash_sdp_enabled(), devices.windows_driver(), attention.reads_groups
    query = torch.zeros(1, 4, 2, 8)
    with pytest.raises(ZeroDivisionError), gpu_windows.forced(paper("RTX 3090")) as done:
        assert allocator.settings[-1] == settings.replace("True", "False")
        assert allocator.fractions == [pytest.approx(31 / 32)]
        assert devices.windows_driver() and not attention.reads_groups(query)
        assert not torch.backends.cuda.flash_sdp_enabled()
        raise ZeroDivisionError
    assert done["fixed_segments"] == "yes" and done["memory_fraction"]["works"] is refuses
    assert allocator.settings[-1] == settings and allocator.fractions[-1] == 1.0
    assert before == (torch.backends.cuda.flash_sdp_enabled(), devices.windows_driver(), attention.reads_groups)


def test_an_allocator_that_cannot_change_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = PaperAllocator(monkeypatch, "", 32 * devices.LEFT_FREE, True)

    def refuse(settings: str) -> None:
        raise RuntimeError("it is too late")

    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", refuse, raising=False)
    with gpu_windows.forced(paper("RTX 3090")) as done:
        assert done["fixed_segments"] == "not run: it is too late"
    assert allocator.fractions[-1] == 1.0


@pytest.mark.parametrize(("both", "overlap"), [(5.0, 0.0), (3.0, 1.0), (4.0, 0.5)])
def test_overlap_is_the_part_of_the_shorter_that_is_hidden(both: float, overlap: float) -> None:
    times = [{"seconds": seconds} for seconds in (3.0, 2.0, both)]
    found = gpu_overlap._overlap(paper("RTX 3090"), *times, moved=4_000_000_000)
    assert found["overlap"] == pytest.approx(overlap) and found["gbs"] == pytest.approx(2.0)
    assert found["seconds"] == both and found["resident"] == 3.0 and found["copying"] == 2.0


def test_a_measurement_that_fails_says_why_and_hides_no_other(clock: Clock) -> None:
    s = paper("RTX 3090").within(50.0)

    def fails() -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert s.attempt({"a": 1}, 49.0, lambda: {"b": 2}) == {"a": 1, "b": 2}
    assert s.attempt({"a": 1}, 51.0, fails) == {"a": 1, "skipped": "out of time"}
    assert s.attempt({"a": 1}, 49.0, fails) == {"a": 1, "failed": "out of memory: CUDA out of memory"}
    clock.sleep(30)
    assert s.attempt({}, 30.0, fails) == {"skipped": "out of time"}
