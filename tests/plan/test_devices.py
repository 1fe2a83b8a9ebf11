"""Cards by name, and every way in which memory is said to have run out."""

from __future__ import annotations

import errno
import os
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from magi_lite import planner
from magi_lite.errors import InputError, PlanError
from magi_lite.machine import cards, devices
from magi_lite.planner.execution import Execution
from magi_lite.request.request import Overrides
from magi_lite.weights.residency import Residency
from tests.plan.asked import request


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("rtx 4070 ti super", "RTX 4070 Ti SUPER"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 4090 Laptop"),
        ("NVIDIA H100 80GB HBM3", "H100 80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("RTX 4060 Ti 8 GB", "RTX 4060 Ti 8GB"),
    ],
)
def test_cards_are_found_by_many_names(name: str, row: str) -> None:
    assert cards.known_card(name).name == row


def test_unknown_cards_are_refused_and_memory_alone_will_do() -> None:
    with pytest.raises(InputError, match="--vram-gb"):
        cards.known_card("Voodoo 2")
    assert cards.generic_card(10).vram_bytes == 10 << 30
    assert cards.with_memory(cards.known_card("4090"), 12).vram_gb == 12
    for card in cards.known_cards():
        assert card.has_fp8 == (card.capability >= (8, 9))


def test_this_machine_is_described() -> None:
    found = devices.detect()
    assert found.kind == ("cuda" if torch.cuda.is_available() else "cpu")
    assert found.ram_bytes and found.ram_bytes > devices.free_ram_bytes() > 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:115] DefaultCPUAllocator: can't allocate memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory_running_out_is_recognised_however_it_is_said(error: BaseException) -> None:
    assert devices.is_out_of_memory(error)
    wrapped = ValueError("while decoding")
    wrapped.__cause__ = error
    assert devices.is_out_of_memory(wrapped)


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (MemoryError(), "ram"),
        (torch.OutOfMemoryError("CUDA out of memory."), "vram"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "vram"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:115] DefaultCPUAllocator: not enough memory"), "ram"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "ram"),
        (RuntimeError("The paging file is too small for this operation to complete. (os error 1455)"), "ram"),
        (OSError(errno.ENOSPC, "disk full"), None),
    ],
)
def test_which_memory_ran_out_is_told(error: BaseException, place: str | None) -> None:
    assert devices.ran_out(error) == place


@pytest.mark.parametrize(
    "error", [None, ValueError("out of memory"), RuntimeError("shape mismatch"), OSError(errno.ENOSPC, "disk full")]
)
def test_other_errors_are_not(error: BaseException | None) -> None:
    assert not devices.is_out_of_memory(error)


def test_a_real_allocation_that_cannot_be_is_recognised() -> None:
    with pytest.raises(Exception) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert devices.is_out_of_memory(caught.value)


def test_freeing_and_measuring_work_without_a_card() -> None:
    devices.free_memory()
    with devices.peak_memory() as peak:
        torch.zeros(10)
    assert peak["peak_bytes"] >= 0
    assert devices.memory_info() is None or devices.memory_info()[1] > 0


@pytest.mark.parametrize(
    ("system", "release", "given", "works", "asked"),
    [
        ("linux", "6.8", "", True, ["expandable_segments:True"]),
        ("linux", "6.8", "", False, ["expandable_segments:True", "expandable_segments:False"]),
        ("linux", "6.8", "max_split_size_mb:64", True, []),
        ("linux", "5.15-microsoft-standard-WSL2", "", True, []),
        ("win32", "10", "", True, []),
    ],
)
def test_segments_grow_where_they_can_and_the_user_did_not_choose(
    system: str, release: str, given: str, works: bool, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def empty(*_: object, **__: object) -> None:
        if not works:
            raise RuntimeError("CUDA driver error: operation not supported")

    monkeypatch.setattr(devices, "cuda_available", lambda: True)
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.release", lambda: release)
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", said.append, raising=False)
    monkeypatch.setattr(torch._C, "_accelerator_getAllocatorSettings", lambda: given, raising=False)
    monkeypatch.setattr(torch, "empty", empty)
    assert devices.grow_segments() is (works and bool(asked))
    assert said == asked


@pytest.mark.parametrize(
    ("given", "grows", "asked"),
    [
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, False, []),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, True, []),
        ({"PYTORCH_CUDA_ALLOC_CONF": ""}, True, ["expandable_segments:True"]),
        ({}, True, ["expandable_segments:True"]),
    ],
)
def test_what_the_user_set_stays_with_an_older_torch(
    given: dict[str, str], grows: bool, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which tells its settings only in a snapshot of the allocator."""
    said: list[str] = []
    monkeypatch.setattr(devices, "cuda_available", lambda: True)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("platform.release", lambda: "6.8")
    monkeypatch.delattr(torch._C, "_accelerator_getAllocatorSettings", raising=False)
    monkeypatch.delattr(torch._C, "_accelerator_setAllocatorSettings", raising=False)
    monkeypatch.setattr(torch._C, "_cuda_cudaCachingAllocator_set_allocator_settings", said.append, raising=False)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: {"allocator_settings": given})
    assert devices.grow_segments() is grows and said == asked


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_whoever_computes_on_a_card_has_prepared_its_memory(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transformer's engine, the text encoder and a decoder that works alone."""
    done: list[str] = []
    monkeypatch.setattr(devices, "grow_segments", lambda: done.append("grow"))
    monkeypatch.setattr(devices, "stay_on_card", lambda: done.append("stay"))
    with Residency(Execution(device=device), pin=False):  # type: ignore[arg-type]
        assert done == (["grow", "stay"] if device == "cuda" else [])


@pytest.mark.parametrize(
    ("program", "cuda", "words"),
    [
        ("", "cuda: Optional[str] = None\n", None),
        ("nvidia-smi", "cuda: Optional[str] = None\n", "pip install --force-reinstall"),
        ("nvidia-smi", "cuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", "update its driver"),
    ],
)
def test_a_card_that_lies_idle_is_said_with_the_cure(
    program: str, cuda: str, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "version.py").write_text(f"debug = False\n{cuda}")
    found = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    monkeypatch.setattr("shutil.which", lambda name: name if name == program else None)
    assert (words or "") in devices.idle_card() and bool(devices.idle_card()) is bool(words)


def test_the_version_of_cuda_is_torchs_own() -> None:
    assert devices.cuda_version() == torch.version.cuda


def test_commands_name_the_newest_torch_that_is_allowed() -> None:
    root = Path(devices.__file__).parents[2]
    (limit,) = re.findall(r"^torch>=.*(<[\d.]+)$", (root / "requirements.txt").read_text(), re.MULTILINE)
    assert f"torch{limit}" in devices.install_command() and f"torch{limit}" in (root / "README.md").read_text()


@pytest.mark.parametrize(
    ("capability", "built_for", "missing"),
    [
        ((8, 9), ["sm_80", "sm_86", "sm_90"], None),  # machine code of its generation serves
        ((8, 6), ["sm_80"], None),
        ((8, 0), ["sm_86"], "cu126"),  # later machine code does not
        ((12, 0), ["sm_75", "sm_80", "sm_86", "sm_90"], "cu128"),
        ((12, 0), ["sm_80", "sm_90", "compute_90"], None),  # code that the driver translates
        ((12, 0), ["sm_100", "sm_120"], None),
        ((10, 3), ["sm_90a", "sm_100f"], None),
        ((9, 0), ["sm_90a"], None),
        ((7, 5), ["sm_80", "compute_120"], "cu126"),
        ((8, 6), [], None),  # nothing is known
    ],
)
def test_a_card_that_this_torch_has_no_code_for_is_named_with_the_cure(
    capability: tuple[int, int], built_for: list[str], missing: str | None
) -> None:
    found = devices.missing_build("NVIDIA GeForce RTX", capability, built_for)
    if missing is None:
        assert found == ""
    else:
        assert found.endswith(f"/whl/{missing}") and "NVIDIA GeForce RTX" in found


def test_a_card_without_code_is_refused_before_anything_is_loaded() -> None:
    sentence = devices.missing_build("RTX 5090", (12, 0), ["sm_90"])
    card = replace(cards.known_card("RTX 5090"), ram_bytes=64 * cards.GIB, missing=sentence)
    with pytest.raises(PlanError, match=r"no code for RTX 5090 .* pip install --force-reinstall .*/cu128 .or choose"):
        planner.plan(request(), device=card)
    on_processor = request(256, 256, overrides=Overrides(device="cpu"))
    assert planner.plan(on_processor, device=card).device.kind == "cpu"


@pytest.mark.parametrize("built_for", [["sm_90"], ["sm_90", "sm_120"]])
def test_beside_a_card_without_code_the_processor_serves(built_for: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """So the demo model runs at once, and what is asked of the card itself is refused with the command that helps."""
    properties = SimpleNamespace(name="NVIDIA GeForce RTX 5090", major=12, minor=0)
    monkeypatch.setattr(devices, "cuda_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (30 * cards.GIB, 32 * cards.GIB))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)
    found = devices.detect()
    if "sm_120" in built_for:
        assert found.kind == "cuda" and found.missing == ""
        return
    assert found.kind == "cpu" and "no code for NVIDIA GeForce RTX 5090" in found.missing
    assert planner.plan(request(256, 256), device=found).device.kind == "cpu"
    with pytest.raises(PlanError, match="pip install --force-reinstall"):
        planner.plan(request(256, 256, overrides=Overrides(device="cuda")), device=found)


@pytest.mark.parametrize(("system", "fraction"), [("linux", None), ("win32", 0.75)])
def test_what_does_not_fit_fails_where_the_driver_would_move_it_to_ram(
    system: str, fraction: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[float] = []
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.release", lambda: "10")
    monkeypatch.setattr(devices, "cuda_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (16 * devices.LEFT_FREE, 24 * devices.LEFT_FREE))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 3 * devices.LEFT_FREE)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", set_to.append)
    devices.stay_on_card()
    assert set_to == ([] if fraction is None else [fraction])


@pytest.mark.parametrize("system", ["linux", "win32"])
def test_events_send_the_batch_where_the_driver_collects_one(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Event:
        def record(self, stream: object) -> None:
            calls.append("record")

        def query(self) -> bool:
            calls.append("query")
            return False

    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.release", lambda: "10")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert devices.record_event(object()) is not None
    assert calls == (["record"] if system == "linux" else ["record", "query"])
    assert devices.record_event(None) is None


def test_windows_is_allowed_more_for_fragments(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planner.plan(request(), "auto", cards.known_card("RTX 4090"))
    there = plan.allowance_bytes
    monkeypatch.setattr(devices, "windows_driver", lambda: True)
    assert plan.allowance_bytes - there == pytest.approx(0.04 * plan.peak_vram_bytes + (192 << 20), rel=1e-6)


def test_a_processor_is_planned_with_what_its_cores_can_do(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    flags = "flags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16"
    file.write_text(f"processor\t: 0\n{flags}\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    features = devices.core_features(file)
    assert features == {"fpu", "avx2", "avx512f", "avx512_vnni", "avx512_bf16"}
    assert devices.core_features(tmp_path / "none") == frozenset()
    plain, wide, best = (cards.cpu_device(64 << 30, 2, having) for having in ((), {"avx2"}, features))
    assert plain.bf16_tflops < wide.bf16_tflops < best.bf16_tflops
    assert plain.cpu_bf16_tflops == wide.cpu_bf16_tflops == 0 < best.cpu_bf16_tflops < best.bf16_tflops
    matrices = cards.cpu_device(64 << 30, 2, {*features, "amx_bf16"})
    assert matrices.cpu_bf16_tflops > 2 * matrices.bf16_tflops == 2 * best.bf16_tflops
    assert best.int8_tops > best.bf16_tflops and wide.int8_tops == wide.bf16_tflops
    assert cards.cpu_device(64 << 30, 4, features).bf16_tflops == pytest.approx(2 * best.bf16_tflops)
    assert 1 <= devices.usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("unit, scheme", [("amx_bf16", "bf16"), ("avx512_bf16", "float32")])
def test_a_processor_computes_in_16_bits_only_where_that_is_faster(unit: str, scheme: str) -> None:
    """Not wherever it has some unit for them: dot products of AVX-512 take twice the time of float32's."""
    here = cards.cpu_device(64 << 30, 2, {"avx512f", unit})
    assert planner.plan(request(128, 128), "auto", here).execution.scheme == scheme


def test_the_processor_beside_the_card_is_planned_as_the_one_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own rates and free RAM; beside a card that is only planned for, any processor's."""
    free = 20 << 30
    mine = replace(cards.cpu_device(64 << 30, 2, {"avx512f"}), free_bytes=free)
    monkeypatch.setattr(devices, "processor", lambda: mine)
    card, asked = replace(cards.known_card("RTX 4090"), ram_bytes=64 << 30), request(128, 128)
    asked = replace(asked, overrides=Overrides(device="cpu"))
    assert planner.plan(asked, "auto", card, here=True).device == mine
    assert planner.plan(asked, "auto", card).device == cards.cpu_device(64 << 30)


HELD = """
import contextlib
import sys
import torch
from magi_lite.machine import devices

COUNT, NUMBERS, ROUNDS = int(sys.argv[2]), int(sys.argv[3]) << 20, int(sys.argv[4])

def taken():  # what a pass takes and frees; the share of it that still holds what the last one wrote
    tensors = [torch.empty(NUMBERS) for _ in range(COUNT)]
    share = sum(int((tensor == 7).sum()) for tensor in tensors) / (COUNT * NUMBERS)
    for tensor in tensors:
        tensor.fill_(7)
    return share

with devices.freed_memory_kept() if sys.argv[1] == "kept" else contextlib.nullcontext():
    for _ in range(ROUNDS):  # an aligned piece fits its own old place only together with a free neighbour's
        share = taken()
    print(share)
devices.free_memory()
print(taken())
"""
"""The system's pages come as zeros. Page faults and resident memory are not counted by every kernel."""


@pytest.mark.skipif(not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc", reason="glibc's")
@pytest.mark.parametrize("sizes", [(30, 1, 2), (8, 9, 4)], ids=["many small pieces", "pieces mapped apart"])
def test_freed_memory_is_kept_for_the_next_layer_and_given_back_at_the_end(sizes: tuple[int, int, int]) -> None:
    found = {}
    for way in ("kept", "as it is"):
        command = [sys.executable, "-c", HELD, way, *map(str, sizes)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[way] = tuple(map(float, done.stdout.split()))
    (kept, at_the_end), (otherwise, _) = found["kept"], found["as it is"]
    assert otherwise < 0.2 < 0.5 < kept
    assert at_the_end < 0.2


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    devices._c_library.cache_clear()
    try:
        with devices.freed_memory_kept():
            assert devices._c_library() is None
        devices.free_memory()
    finally:
        devices._c_library.cache_clear()
