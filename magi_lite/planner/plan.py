"""What a plan is: who takes how many bytes where and when, how long a second of video takes, and how to execute it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from magi_lite.machine import devices
from magi_lite.machine.cards import GIB, PINNED_SHARE, Device
from magi_lite.models import ModelSpec
from magi_lite.planner.execution import Execution
from magi_lite.request.request import GenerationRequest

Phase = Literal["text", "encode", "denoise", "decode"]
Place = Literal["vram", "ram", "pinned"]
PHASES: tuple[Phase, ...] = ("text", "encode", "denoise", "decode")
"""Encoding prompts, encoding the picture or clip that the video starts from (if any), and the two that alternate."""

SPARE = 0.05
"""Share of a card's memory that a plan leaves free."""
CONTEXT_BYTES = 640 << 20
"""Allowance for what the allocator's counter does not show: CUDA context and kernels.

On the one card that was measured (an H100) 0.64 of 85.02 GB were gone when the process had asked for nothing but its
figures. Smaller cards take less, as far as is known; how much was not measured.
"""
FRAGMENTS, FRAGMENTS_OF_FIXED = 192 << 20, 384 << 20
"""Allowance for fragments whatever the peak, bytes: in segments that grow in place, and in those that cannot.

What the allocator held beyond the peak hardly grows with it: 0.06 to 0.30 GB at peaks of 2.7 to 16.5 GB on the card
that was measured (`benchmarks/results/gpu_h100.json`), 0.50 of 2.7 GB in fixed segments. It is the rest of the segment
that each size of activations opened last, so of a text encoder, whose activations are small, there is none.
"""
FRAGMENTS_OF_A_STREAM = FRAGMENTS
"""The same of each further stream, which has segments of its own: decoding beside the steps held 0.18 GB more."""
FRAGMENTATION, FRAGMENTATION_OF_FIXED = 0.02, 0.06
"""What comes to it as a share of the peak, for holes among tensors of many sizes."""


@dataclass(frozen=True)
class Item:
    """Bytes of one component during one phase."""

    component: str
    phase: Phase
    place: Place
    bytes: int


@dataclass(frozen=True)
class Plan:
    """An itemised promise: bytes per component, place and phase, and seconds.

    `peak_vram_bytes` counts tensors, as `torch.cuda.max_memory_allocated` does; what the card must have besides
    (`allowance_bytes`) is stated apart and is part of `needed_vram_bytes`.
    """

    request: GenerationRequest
    preset: str
    device: Device
    model: ModelSpec
    execution: Execution
    items: tuple[Item, ...]
    seconds_per_chunk: float
    time_to_first_chunk: float
    time_to_load: float
    """Until the first step, as part of it: prompts are encoded and weights are read."""
    window: int
    notes: tuple[str, ...] = ()
    measured: float = 1.0
    """How many times longer than predicted a second of video took on this machine; part of the times. 1: not known."""
    measured_load: float = 1.0
    """The same of what comes before the first step."""
    frees: frozenset[str] = frozenset()
    """What the user left open, for `next_smaller`: names of Execution fields, and "window"."""

    def phase_bytes(self, phase: Phase, *places: Place) -> int:
        """Bytes of a phase in the given places."""
        return sum(item.bytes for item in self.items if item.phase == phase and item.place in places)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that this run has."""
        there = {item.phase for item in self.items}
        return tuple(phase for phase in PHASES if phase in there)

    @property
    def peak_per_phase(self) -> dict[str, int]:
        """Device bytes per phase."""
        return {phase: self.phase_bytes(phase, "vram") for phase in PHASES}

    @property
    def peak_phase(self) -> str:
        """The phase in which device memory (on a CPU: RAM) is highest."""
        places: tuple[Place, ...] = ("vram",) if self.execution.device == "cuda" else ("ram", "pinned")
        return max(PHASES, key=lambda phase: self.phase_bytes(phase, *places))

    @property
    def peak_vram_bytes(self) -> int:
        """Most device bytes held by tensors at once."""
        return max(self.peak_per_phase.values())

    @property
    def allowance_bytes(self) -> int:
        """Device bytes set aside for context, workspaces and fragmentation; 0 on a CPU."""
        return self.needed_vram_bytes - self.peak_vram_bytes

    @property
    def needed_vram_bytes(self) -> int:
        """What the card must have free: for the phase that takes most with its fragments."""
        if self.execution.device == "cpu":
            return self.peak_vram_bytes
        streams, fixed = 2 if self.execution.decode_beside else 1, devices.windows_driver()
        return CONTEXT_BYTES + max(
            size + fragment_bytes(size, 0 if phase == "text" else streams, fixed=fixed)
            for phase, size in self.peak_per_phase.items()
        )

    @property
    def peak_ram_bytes(self) -> int:
        """Most RAM at once: pinned memory, memory-mapped weights in use and the program itself included."""
        return max(self.phase_bytes(phase, "ram", "pinned") for phase in PHASES)

    @property
    def pinned_bytes(self) -> int:
        """Most pinned RAM at once."""
        return max(self.phase_bytes(phase, "pinned") for phase in PHASES)

    @property
    def fits(self) -> bool:
        """Whether the device's memory and RAM suffice with 5 % to spare, and no more RAM is pinned than may be."""
        if self.execution.device == "cuda" and self.needed_vram_bytes > vram_limit(self.device):
            return False
        ram = self.device.ram_bytes
        if ram is None:
            return True
        most, most_pinned = ram_limits(ram)
        if self.device.kind == "cpu" and self.device.free_bytes is not None:
            most = min(most, self.device.free_bytes)
        return self.peak_ram_bytes <= most and self.pinned_bytes <= most_pinned

    def summary(self) -> str:
        """The plan in two sentences, for a status line; `magi_lite.cli.plan_table` prints all of it."""
        execution = self.execution
        place = f"{self.peak_ram_bytes / GIB:.1f} GB of RAM"
        if execution.device == "cuda":
            place = f"{self.needed_vram_bytes / GIB:.1f} of {self.device.vram_gb:.0f} GB graphics memory, {place}"
        return (
            f"{self.device.name}: {execution.scheme} weights {execution.layers}, window {self.window}, {place}. "
            f"About {spoken(self.seconds_per_chunk)} per second of video, first after "
            f"{spoken(self.time_to_first_chunk)}."
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON-able values; bytes are integers, times seconds."""
        from dataclasses import asdict

        return {
            "model": self.model.name,
            "preset": self.preset,
            "device": {
                "name": self.device.name,
                "kind": self.device.kind,
                "vram_bytes": self.device.vram_bytes,
            },
            "width": self.request.width,
            "height": self.request.height,
            "seconds": self.request.seconds,
            "steps": self.request.steps,
            "window": self.window,
            "execution": asdict(self.execution),
            "items": [asdict(item) for item in self.items],
            "peak_per_phase": self.peak_per_phase,
            "peak_vram_bytes": self.peak_vram_bytes,
            "allowance_bytes": self.allowance_bytes,
            "needed_vram_bytes": self.needed_vram_bytes,
            "peak_ram_bytes": self.peak_ram_bytes,
            "pinned_bytes": self.pinned_bytes,
            "seconds_per_chunk": self.seconds_per_chunk,
            "time_to_first_chunk": self.time_to_first_chunk,
            "time_to_load": self.time_to_load,
            "fits": self.fits,
            "measured": self.measured,
            "measured_load": self.measured_load,
            "notes": list(self.notes),
        }


def fragment_bytes(peak: int, streams: int = 1, *, fixed: bool = False) -> int:
    """What the card's allocator may hold beyond a peak of so many bytes.

    Args:
        streams: on which large activations are made. fixed: segments cannot grow, as under Windows.
    """
    least, share = (FRAGMENTS_OF_FIXED, FRAGMENTATION_OF_FIXED) if fixed else (FRAGMENTS, FRAGMENTATION)
    return min(1, streams) * least + max(0, streams - 1) * FRAGMENTS_OF_A_STREAM + int(share * peak)


def vram_limit(device: Device) -> int:
    """Device bytes that a plan may need: 95 % of the card, and no more than is free where that was measured."""
    limit = int((1 - SPARE) * device.vram_bytes)
    return limit if device.free_bytes is None else min(limit, device.free_bytes)


def ram_limits(ram_bytes: int) -> tuple[float, float]:
    """Bytes of RAM that a plan may take, and how many of them may be pinned."""
    return (1 - SPARE) * ram_bytes, PINNED_SHARE * ram_bytes


def spoken(seconds: float) -> str:
    """A time as people say it: "0.4 s", "24 s", "2 min 8 s", "17 h 3 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    large, small, step, names = (whole, 60, 1, ("min", "s")) if whole < 3600 else (whole, 3600, 60, ("h", "min"))
    rest = large % small // step
    return f"{large // small} {names[0]}" + (f" {rest} {names[1]}" if rest else "")
