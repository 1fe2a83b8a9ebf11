"""Graphics cards: what is known of each, and estimates for one of which only the memory is known.

Rates are dense TFLOP/s with float32 accumulation from the makers' data sheets, bandwidths GB/s (10^9), memory bytes.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from magi_lite.errors import InputError

GIB = 1 << 30
PINNED_SHARE = 0.6
"""Most of a machine's RAM that may be pinned: pinned memory cannot be swapped, and a machine without any freezes."""
CORE_TFLOPS, AVX2_TFLOPS, AVX512_TFLOPS = 0.04, 0.065, 0.1
"""Matrix products in float32 on one core, TFLOP/s: of any, with AVX2, with AVX-512 (measured: 0.06 to 0.07, 0.095)."""
BF16_RATES, INT8_RATE = {"amx_bf16": 2.5, "avx512_bf16": 0.55}, 5.0
"""Products in bfloat16 and in INT8 against float32's, on cores with units for them.

Of bfloat16 2.5 to 3.2 were measured with AMX, and 0.52 to 0.57 with AVX-512's dot products alone: PyTorch's kernels
gain nothing from them.
"""


@dataclass(frozen=True)
class Device:
    """One compute device, real or planned for."""

    name: str
    kind: Literal["cuda", "cpu"]
    vram_bytes: int
    """Memory of the card; 0 for a CPU."""
    capability: tuple[int, int]
    """CUDA compute capability; (0, 0) for a CPU."""
    bf16_tflops: float
    """Of a CPU: products in float32."""
    fp8_tflops: float
    """0 where the card cannot multiply FP8."""
    int8_tops: float
    bandwidth_gbs: float
    pcie_gbs: float
    """Practical host-to-device rate from pinned memory."""
    ram_bytes: int | None = None
    """RAM of the machine; None: not known, so not a limit."""
    free_bytes: int | None = None
    """Device memory free right now (of a CPU: RAM); None: not measured."""
    cpu_bf16_tflops: float = 0.0
    """Of a CPU: products in bfloat16; 0: it has no units for them and widens every number first."""
    kernels: bool = True
    """Whether our Triton kernels serve, where the capability allows it; of another machine's card that is assumed."""
    missing: str = ""
    """Why this PyTorch cannot use this card, or the one beside this CPU, and what mends it; empty: it can."""

    @property
    def has_fp8(self) -> bool:
        """Whether the card multiplies FP8 matrices (compute capability 8.9 and up)."""
        return self.fp8_tflops > 0

    @property
    def vram_gb(self) -> float:
        return self.vram_bytes / GIB


_Row = tuple[str, float, tuple[int, int], float, float, float, float, float]
# name, GiB, compute capability, bf16 TFLOP/s, fp8 TFLOP/s, int8 TOP/s, memory GB/s, practical PCIe GB/s.
# Turing has no bf16 units: its row states the float32 rate that bf16 falls back to.
_CARDS: tuple[_Row, ...] = (
    ("RTX 5090", 32, (12, 0), 210, 419, 838, 1792, 50),
    ("RTX 5080", 16, (12, 0), 113, 225, 450, 960, 50),
    ("RTX 5070 Ti", 16, (12, 0), 88, 176, 352, 896, 50),
    ("RTX 5070", 12, (12, 0), 62, 123, 247, 672, 50),
    ("RTX 5060 Ti 16GB", 16, (12, 0), 47, 95, 190, 448, 25),
    ("RTX 5060 Ti 8GB", 8, (12, 0), 47, 95, 190, 448, 25),
    ("RTX 5060", 8, (12, 0), 38, 77, 154, 448, 25),
    ("RTX 4090", 24, (8, 9), 165, 330, 660, 1008, 25),
    ("RTX 4090 Laptop", 16, (8, 9), 82, 165, 330, 576, 25),
    ("RTX 4080 SUPER", 16, (8, 9), 104, 209, 418, 736, 25),
    ("RTX 4080", 16, (8, 9), 97, 195, 390, 717, 25),
    ("RTX 4080 Laptop", 12, (8, 9), 62, 124, 248, 432, 25),
    ("RTX 4070 Ti SUPER", 16, (8, 9), 88, 176, 353, 672, 25),
    ("RTX 4070 Ti", 12, (8, 9), 80, 160, 320, 504, 25),
    ("RTX 4070 SUPER", 12, (8, 9), 71, 142, 284, 504, 25),
    ("RTX 4070", 12, (8, 9), 58, 116, 233, 504, 25),
    ("RTX 4070 Laptop", 8, (8, 9), 40, 80, 160, 256, 12),
    ("RTX 4060 Ti 16GB", 16, (8, 9), 44, 88, 177, 288, 12),
    ("RTX 4060 Ti 8GB", 8, (8, 9), 44, 88, 177, 288, 12),
    ("RTX 4060", 8, (8, 9), 30, 60, 121, 272, 12),
    ("RTX 4050 Laptop", 6, (8, 9), 24, 48, 97, 192, 12),
    ("RTX 3090 Ti", 24, (8, 6), 80, 0, 320, 1008, 25),
    ("RTX 3090", 24, (8, 6), 71, 0, 284, 936, 25),
    ("RTX 3080 Ti", 12, (8, 6), 68, 0, 273, 912, 25),
    ("RTX 3080 12GB", 12, (8, 6), 61, 0, 245, 912, 25),
    ("RTX 3080 10GB", 10, (8, 6), 59, 0, 238, 760, 25),
    ("RTX 3070 Ti", 8, (8, 6), 43, 0, 174, 608, 25),
    ("RTX 3070", 8, (8, 6), 41, 0, 163, 448, 25),
    ("RTX 3060 Ti", 8, (8, 6), 32, 0, 130, 448, 25),
    ("RTX 3060", 12, (8, 6), 25.5, 0, 102, 360, 25),
    ("RTX 3060 Laptop", 6, (8, 6), 20, 0, 80, 336, 12),
    ("RTX 3050 8GB", 8, (8, 6), 18, 0, 73, 224, 12),
    ("RTX 3050 6GB", 6, (8, 6), 13, 0, 54, 168, 12),
    ("RTX 2080 Ti", 11, (7, 5), 13, 0, 215, 616, 12),
    ("RTX 2060", 6, (7, 5), 6.5, 0, 103, 336, 12),
    ("H200", 141, (9, 0), 989, 1979, 1979, 4800, 50),
    ("H100 80GB", 80, (9, 0), 989, 1979, 1979, 3350, 50),
    ("A100 80GB", 80, (8, 0), 312, 0, 624, 2039, 25),
    ("A100 40GB", 40, (8, 0), 312, 0, 624, 1555, 25),
    ("L40S", 48, (8, 9), 362, 733, 733, 864, 25),
    ("RTX 6000 Ada", 48, (8, 9), 364, 728, 728, 960, 25),
    ("RTX A6000", 48, (8, 6), 155, 0, 310, 768, 25),
    ("L4", 24, (8, 9), 121, 242, 242, 300, 25),
    ("A10", 24, (8, 6), 125, 0, 250, 600, 25),
    ("T4", 16, (7, 5), 8, 0, 130, 320, 12),
)


def known_cards() -> tuple[Device, ...]:
    """Every card in the table, as devices that can be planned for."""
    return tuple(_from_row(row) for row in _CARDS)


def known_card(name: str) -> Device:
    """The card called `name` ("RTX 4090", "4090", "NVIDIA GeForce RTX 4090" all work).

    Raises:
        InputError: no card in the table is called so.
    """
    device = find_card(name)
    if device is None:
        raise InputError(
            f'No card called "{name}" is known; give its memory with --vram-gb, or one of: '
            + ", ".join(row[0] for row in _CARDS)
            + "."
        )
    return device


def generic_card(vram_gb: float, name: str | None = None) -> Device:
    """A card of which only the memory is known, planned for with the rates of a modest Ada card of that size.

    Args:
        vram_gb: memory in GiB, as printed on the box.

    Raises:
        InputError: the number is not positive.
    """
    if not vram_gb > 0:
        raise InputError(f"A card's memory must be more than 0 GB, not {vram_gb:g}; give for example 12.")
    tflops = max(30.0, 7.0 * vram_gb) if vram_gb <= 24 else 300.0
    return Device(
        name=name or f"{vram_gb:g} GB card",
        kind="cuda",
        vram_bytes=int(vram_gb * GIB),
        capability=(8, 9),
        bf16_tflops=tflops,
        fp8_tflops=2 * tflops,
        int8_tops=4 * tflops,
        bandwidth_gbs=max(250.0, 40.0 * vram_gb),
        pcie_gbs=12,
    )


def with_memory(device: Device, vram_gb: float) -> Device:
    """The same card with another amount of memory."""
    if not vram_gb > 0:
        raise InputError(f"A card's memory must be more than 0 GB, not {vram_gb:g}; give for example 12.")
    return replace(device, vram_bytes=int(vram_gb * GIB), free_bytes=None)


def cpu_device(ram_bytes: int | None = None, cores: int = 8, features: Collection[str] = ()) -> Device:
    """A processor, with the rates that cores of its kind reach.

    Args:
        features: what its cores can do, by Linux's names such as "avx2"; none: what any desktop core can.
    """
    tflops = cores * (
        AVX512_TFLOPS if "avx512f" in features else AVX2_TFLOPS if "avx2" in features else CORE_TFLOPS
    )
    bf16 = next((rate for name, rate in BF16_RATES.items() if name in features), 0.0)
    has_int8 = not {"avx512_vnni", "avx_vnni"}.isdisjoint(features)
    return Device(
        name="CPU",
        kind="cpu",
        vram_bytes=0,
        capability=(0, 0),
        bf16_tflops=tflops,
        fp8_tflops=0,
        int8_tops=tflops * (INT8_RATE if has_int8 else 1),
        bandwidth_gbs=40,
        pcie_gbs=10,
        ram_bytes=ram_bytes,
        cpu_bf16_tflops=tflops * bf16,
    )


def _from_row(row: _Row) -> Device:
    name, gib, capability, bf16, fp8, int8, bandwidth, pcie = row
    return Device(name, "cuda", int(gib * GIB), capability, bf16, fp8, int8, bandwidth, pcie)


def _words(name: str) -> list[str]:
    """Letters and digits of a card's name without the maker's words, "GPU" and form-factor suffixes."""
    name = re.sub(r"(?i)(\d)\s*gi?b\b", r"\1gb", name)
    drop = {
        "nvidia",
        "geforce",
        "rtx",
        "tesla",
        "quadro",
        "gpu",
        "generation",
        "sxm",
        "sxm5",
        "sxm4",
        "pcie",
        "hbm3",
    }
    return [word for word in re.findall(r"[a-z0-9]+", name.lower()) if word not in drop]


def find_card(name: str, vram_bytes: int | None = None) -> Device | None:
    """The card whose words all appear in `name`, the longest and then the nearest in memory first."""
    wanted = set(_words(name))
    found = []
    for row in _CARDS:
        words = _words(row[0])
        core = {word for word in words if not word.endswith("gb")}
        variants = {"ti", "super", "laptop", "ada"}
        if core <= wanted and wanted & variants == core & variants:
            sized = len(set(words) & wanted)
            distance = abs(row[1] * GIB - vram_bytes) if vram_bytes else 0
            found.append((-sized, distance, -row[1], row))
    return _from_row(min(found)[3]) if found else None
