"""What is in this machine, and the only home of `torch.cuda` calls.

Importing this module needs no torch; functions that look at the machine import it when called.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from magi_lite.machine import cgroups
from magi_lite.machine.cards import GIB, Device, cpu_device, find_card, generic_card
from quant.storage.files import parse_json

_log = logging.getLogger(__name__)
LEFT_FREE = 256 << 20
"""Of the card's free memory what is left to the driver, bytes: the window system takes some now and then."""
SEGMENT_BYTES = 1 << 26
"""A tensor that the allocator has nothing at hand for, to try a new segment with."""


def detect() -> Device:
    """The device that runs here: the first CUDA card, or else the CPU; its RAM and free memory included.

    With a card that this PyTorch has no code for it is the CPU, and `missing` says why. A process that has not loaded
    torch does not load it for this; see `cards`.
    """
    card = _card(0) if "torch" in sys.modules and cuda_available() else next(iter(cards()), None)
    if card is not None and not card.missing:
        return card
    if card is None:
        if idle := idle_card():
            _warn_once(f"{idle}. Until then the processor computes.")
        return processor()
    _warn_once(f"{card.missing}. Until then the processor computes.")
    return replace(processor(), missing=card.missing)


def processor() -> Device:
    """The CPU that runs here, with its RAM, what of it is free, and the rates of its cores."""
    return replace(cpu_device(ram_bytes(), usable_cores(), core_features()), free_bytes=free_ram_bytes())


@lru_cache
def _warn_once(sentence: str) -> None:
    _log.warning(sentence)


def cards() -> list[Device]:
    """The CUDA cards that can be used here, by number.

    A process that has not loaded torch does not load it for this: a short-lived one looks in its place, once.
    """
    if "torch" in sys.modules:
        return cards_here()
    with _LOOKING:
        return list(_cards_apart())


_LOOKING = threading.Lock()
_PROBE = (
    "import sys; sys.path.insert(0, sys.argv[1]); import dataclasses, json; "
    "from magi_lite.machine.devices import cards_here; print(json.dumps([dataclasses.asdict(c) for c in cards_here()]))"
)


@lru_cache
def _cards_apart() -> tuple[Device, ...]:
    if not cuda_driver():
        return ()
    command = [sys.executable, "-c", _PROBE, str(Path(__file__).resolve().parents[2])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        found = parse_json(done.stdout.splitlines()[-1])
        return tuple(Device(**card | {"capability": tuple(card["capability"])}) for card in found)
    except (OSError, subprocess.SubprocessError, ValueError, TypeError, IndexError, KeyError) as error:
        _log.warning("The cards cannot be asked what they are: %s", error)
        return ()


@lru_cache
def cuda_driver() -> bool:
    """Whether there is a driver for cards that torch may use; looked up without torch."""
    names = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")
    for name in names:
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
            return True
    return Path("/dev/kfd").exists()  # an AMD card, which torch calls CUDA, too


def cards_here() -> list[Device]:
    """As `cards`, by this process's own torch."""
    if not cuda_available():
        return []
    import torch

    return [_card(number) for number in range(torch.cuda.device_count())]


def _card(number: int) -> Device:
    import torch

    properties = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    capability = (properties.major, properties.minor)
    known = find_card(properties.name, total)
    if known is None:
        known = generic_card(total / GIB, properties.name)
        if capability < (8, 9):
            known = replace(known, fp8_tflops=0.0)
    return replace(
        known,
        name=properties.name,
        vram_bytes=total,
        capability=capability,
        ram_bytes=ram_bytes(),
        free_bytes=free,
        missing=missing_build(properties.name, capability, () if torch.version.hip else torch.cuda.get_arch_list()),
    )


def missing_build(name: str, capability: tuple[int, int], built_for: Sequence[str]) -> str:
    """Why this PyTorch cannot run on a card, with the command that mends it; empty where it can.

    Args:
        capability: the card's. built_for: what PyTorch has machine code ("sm_86") or code to translate at loading
            ("compute_90") for. Machine code serves later cards of the same generation; code to translate, all later.
    """
    major, minor = capability
    for entry in built_for:
        kind, _, number = entry.partition("_")
        digits = number.rstrip("af")
        if not digits.isdigit():
            continue
        found = (int(digits[:-1]), int(digits[-1]))
        same = found[0] == major and found[1] <= minor
        if (kind == "compute" and found <= capability) or (kind == "sm" and same):
            return ""
    if not built_for:  # nothing is known
        return ""
    return (
        f"This PyTorch has no code for {name} (compute capability {major}.{minor}); install one that has: "
        f"{install_command('cu128' if major >= 10 else 'cu126')}"
    )


def install_command(build: str = "cu128") -> str:
    """The command that puts a CUDA build of PyTorch in the place of whatever is installed.

    Without --force-reinstall pip keeps a build whose number is the same or higher.
    """
    return f'pip install --force-reinstall "torch<2.14" --index-url https://download.pytorch.org/whl/{build}'


def idle_card() -> str:
    """Why the NVIDIA card of a machine without a usable one does not serve, with the cure; empty: there is none."""
    if not shutil.which("nvidia-smi"):
        return ""
    if cuda_version() is None:
        why = f"this PyTorch has no CUDA in it; install one that has: {install_command()}"
    else:
        why = "this PyTorch cannot use it; update its driver, or see what nvidia-smi says"
    return f"There is an NVIDIA card, but {why}"


def cuda_version() -> str | None:
    """The version of CUDA that the installed torch was built with, read without loading it; None: for processors."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    match = re.search(r"^cuda\b.*=\s*'([\d.]+)'", text, re.MULTILINE)
    return match.group(1) if match else None


@lru_cache
def capability(index: int | None = None) -> tuple[int, int]:
    """Compute capability of a CUDA card: of number `index`, or of the current one."""
    import torch

    return torch.cuda.get_device_capability() if index is None else _capability_of(index)


@lru_cache
def _capability_of(index: int) -> tuple[int, int]:
    """Remembered, for attention asks at every call."""
    import torch

    return torch.cuda.get_device_capability(index)


def identity(index: int = 0) -> str:
    """A card, its driver and this PyTorch in one phrase: what a finding about a card hangs on."""
    import torch

    properties = torch.cuda.get_device_properties(index)
    driver = getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)()
    with contextlib.suppress(OSError, AttributeError):
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
        match = re.search(r"\d+\.\d+(\.\d+)?", text)
        driver = match.group() if match else driver
    capability = f"{properties.major}.{properties.minor}"
    return f"{properties.name}, {capability}, driver {driver}, torch {torch.__version__}"


def cuda_available() -> bool:
    """Whether a CUDA card can be used here."""
    import torch

    return torch.cuda.is_available()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def core_features(file: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What this processor's cores can do, by Linux's names; empty where that is not known."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())


def ram_bytes() -> int:
    """RAM of this machine, or what its container may take of it, bytes."""
    import psutil

    limit, _ = cgroups.least()
    total = int(psutil.virtual_memory().total)
    return total if limit is None else min(total, limit)


def free_ram_bytes() -> int:
    """RAM that this program can still take without swapping, bytes."""
    import psutil

    _, free = cgroups.least()
    available = int(psutil.virtual_memory().available)
    return available if free is None else min(available, free)


def memory_info() -> tuple[int, int] | None:
    """(free, total) bytes of the card, or None without one."""
    if not cuda_available():
        return None
    import torch

    free, total = torch.cuda.mem_get_info(0)
    return int(free), int(total)


def free_memory() -> None:
    """Collect garbage and hand cached device and pinned memory back."""
    import gc

    gc.collect()
    give_back = getattr(_c_library(), "malloc_trim", None)
    if give_back is not None:
        give_back(0)
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        release_pinned = getattr(torch._C, "_host_emptyCache", None)
        if release_pinned is not None:
            release_pinned()


KEPT_BYTES = 1 << 30
"""Freed memory at the heap's end that the C library keeps; a pass whose activations take more pays for the rest."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MAPPED_BYTES, _MAPPED_PIECES = 32 << 20, 65536
"""Size from which a piece is mapped apart, and how many may be: the most, and the usual one."""


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let the C library keep what a processor's pass frees during the block, for the next layer takes as much again.

    glibc gives the heap's end back to the system as soon as some MB of it are free, and every large piece at once. Of a
    pass of the demo model that was 15,000 pages, taken back and filled with zeros: an eighth of its time; of one at
    hidden size 1024, whose pieces are mapped apart, 80,000. What is kept goes back in `free_memory`, and models are
    loaded outside the block, for pieces that stay would cut the heap up.
    """
    set_option = getattr(_c_library(), "mallopt", None)
    if set_option is None:
        yield
        return
    set_option(_MMAP_THRESHOLD, _MAPPED_BYTES)  # it would stay at 128 KB once another one is set
    set_option(_TRIM_THRESHOLD, KEPT_BYTES)
    set_option(_MMAP_MAX, 0)
    try:
        yield
    finally:
        set_option(_MMAP_MAX, _MAPPED_PIECES)


@lru_cache
def _c_library() -> Any:
    """glibc, or None: others do not know these options."""
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return None
    return ctypes.CDLL(None)


def windows_driver() -> bool:
    """Whether cards are driven by Windows, directly or under WSL.

    Its driver cannot grow segments, moves what does not fit the card into RAM instead of failing, at a hundredth of the
    speed, and hands work to the card in batches.
    """
    return sys.platform == "win32" or "microsoft" in platform.release().lower()


def stay_on_card() -> None:
    """Let an allocation fail that the card has no room for, where the driver would rather move memory to RAM.

    A run that runs out of memory goes on with a smaller plan; one in RAM would crawl, and nobody would know why. The
    limit is what is free, not what is planned: a plan that was a little short should still come to its end.
    """
    if not cuda_available() or not windows_driver():
        return
    import torch

    free, total = torch.cuda.mem_get_info()
    ours = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.05, (free + ours - LEFT_FREE) / total)))


def grow_segments() -> bool:
    """Let the card's allocator grow its segments in place; whether it does now.

    Passes ask for other sizes than the ones before, and segments of fixed size would be left with more fragments than
    a plan allows for. Not on Windows, whose driver cannot; elsewhere it is tried, and undone where it fails. What the
    user set for torch's allocator stays.
    """
    if not cuda_available() or windows_driver():
        return False
    import torch

    change, known = allocator_settings()
    if change is None or known:
        return "expandable_segments:True" in known
    try:
        change("expandable_segments:True")
        torch.empty(SEGMENT_BYTES, dtype=torch.uint8, device="cuda")
    except (RuntimeError, ValueError) as error:
        change("expandable_segments:False")
        _log.info("The card's memory is kept in segments of fixed size: %s", error)
        return False
    return True


def allocator_settings() -> tuple[Callable[[str], None] | None, str]:
    """What changes the settings of torch's allocator (None: this torch cannot), and what they are, as far as known."""
    import torch

    change = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    change = change or getattr(torch._C, "_cuda_cudaCachingAllocator_set_allocator_settings", None)
    return change, getattr(torch._C, "_accelerator_getAllocatorSettings", _settings_in_snapshot)()


def _settings_in_snapshot() -> str:
    """What the user set for the allocator, from versions of torch that tell it only with everything else."""
    import torch

    with contextlib.suppress(RuntimeError, KeyError, TypeError):
        return str(torch.cuda.memory._snapshot()["allocator_settings"]["PYTORCH_CUDA_ALLOC_CONF"])
    return ""


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Measure a block: after it, the yielded dict holds, for the card's allocator, `peak_bytes`, the most that tensors
    took, and `reserved_bytes`, the most that it had for them, fragments included (0 on a CPU).
    """
    result = {"peak_bytes": 0, "reserved_bytes": 0}
    if not cuda_available():
        yield result
        return
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    try:
        yield result
    finally:
        torch.cuda.synchronize()
        result["peak_bytes"] = int(torch.cuda.max_memory_allocated())
        result["reserved_bytes"] = int(torch.cuda.max_memory_reserved())


def synchronize() -> None:
    """Wait for the card to finish; nothing on a CPU."""
    if cuda_available():
        import torch

        torch.cuda.synchronize()


def new_stream(device: Any) -> Any | None:
    """A side stream on a CUDA `device`, or None elsewhere: callers then copy in place, in order."""
    import torch

    if torch.device(device).type != "cuda":
        return None
    return torch.cuda.Stream(device=device)


def record_event(stream: Any | None) -> Any | None:
    """An event at the end of `stream`'s work so far (None without streams)."""
    if stream is None:
        return None
    import torch

    event = torch.cuda.Event()
    event.record(stream)
    if windows_driver():
        event.query()  # sends the batch, and the copy in it, on its way now
    return event


def keep_for(tensor: Any, stream: Any | None) -> None:
    """Let a tensor's memory, once it is freed, be used again only when `stream` is done with what it had to do then."""
    if stream is not None:
        tensor.record_stream(stream)


def current_stream(device: Any) -> Any | None:
    """The stream that ordinary work runs on, or None off CUDA."""
    import torch

    return torch.cuda.current_stream(device) if torch.device(device).type == "cuda" else None


@contextmanager
def on_stream(stream: Any | None) -> Iterator[None]:
    """Run a block on `stream`; in order where there is none."""
    if stream is None:
        yield
        return
    import torch

    with torch.cuda.stream(stream):
        yield


# --- out of memory --------------------------------------------------------------------------------------------------

_HOST_WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "defaultcpuallocator",
    "paging file is too small",
)
_CARD_WORDS = (
    "out of memory",
    "cuda_error_out_of_memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cudaerrormemoryallocation",
    "failed to allocate",
)
_NO_MEMORY, _NO_PAGING_FILE = 12, 1455
"""What the system answers: ENOMEM, and Windows where even mapping a file needs memory that is not there."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, says that device or host memory ran out."""
    return ran_out(error) is not None


def ran_out(error: BaseException | None) -> Literal["vram", "ram"] | None:
    """Which memory ran out, by what `error` or its cause says; None: it is about something else.

    Recognises Python's MemoryError, torch's own class (looked up by name, so torch need not be loaded), the system's
    error numbers, and the sentences that CUDA, cuBLAS, cuDNN, bitsandbytes and the CPU allocator put into plain
    RuntimeErrors.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        names = {cls.__name__ for cls in type(error).__mro__}
        if names & {"OutOfMemoryError", "OutOfMemory"}:
            return "vram"
        if isinstance(error, MemoryError):
            return "ram"
        if isinstance(error, OSError):
            if error.errno == _NO_MEMORY or getattr(error, "winerror", None) == _NO_PAGING_FILE:
                return "ram"
        elif isinstance(error, RuntimeError):
            text = str(error).lower()
            if any(words in text for words in _HOST_WORDS):
                return "ram"
            if any(words in text for words in _CARD_WORDS):
                return "vram"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None
