"""Which attention kernel serves: what trials have found, and the choice between them. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from magi_lite.machine import findings

OWN = "sdpa"
PLAIN = "plain"
"""PyTorch's plain formula in slices: what its own attention is on a card for which it has no fused kernel."""
SCORE_BYTES = 1 << 27
"""Scores that the plain formula writes out at a time, float32: enough to fill a card, and a small part of one."""
PACKAGED = {"flash": "flash-attn", "sage": "SageAttention"}
"""Kernels of packages that the user installs, and the packages' names."""
SHARED = "sage-shared"
"""The name of the trial of SageAttention's steps, with keys and values quantized once for several ranges."""
TITLES = {
    OWN: "PyTorch's own",
    PLAIN: "PyTorch's plain formula, for want of a fused kernel",
    "cudnn": "cuDNN's",
    **PACKAGED,
}
WORTHWHILE = 1.03
"""How many times as fast as PyTorch's own a kernel must be to be taken instead."""
EVEN = {"cudnn": 0.98}
"""Kernels that are taken on a tie, and what a tie is: the processor needs 0.05 ms for a call of cuDNN, and 0.13 to 0.22
for one of PyTorch's own (`benchmarks/results/gpu_h100.json`), which counts in small pictures."""


@dataclass(frozen=True)
class Trial:
    """What the trial of a kernel found."""

    fault: str = ""
    """Why the kernel cannot be used; empty: it works."""
    speedup: float | None = None
    """How many times as fast as PyTorch's own it is; None: not measured."""
    lasting: bool = True
    """Whether the next trial would find the same, or only chance (memory ran out) was in the way."""

    @classmethod
    def of(cls, found: Any) -> Trial:
        """From JSON.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(found, dict) or not found.keys() <= {"fault", "speedup", "lasting"}:
            raise ValueError("not a trial")
        fault, speedup = found.get("fault", ""), found.get("speedup")
        if not isinstance(fault, str) or not (speedup is None or isinstance(speedup, int | float)):
            raise ValueError("not a trial")
        return cls(fault, speedup, bool(found.get("lasting", True)))


def fastest(trials: Mapping[str, Trial]) -> str:
    """Of the kernels that are right the fastest; where none was measured, the first.

    Args:
        trials: by kernel, best first; PyTorch's own is always right and needs none.
    """
    best, gain = OWN, 1.0
    for name, trial in trials.items():
        if trial.fault or name == OWN:
            continue
        this = WORTHWHILE if trial.speedup is None else trial.speedup
        if this >= EVEN.get(name, WORTHWHILE) and (this > gain or best == OWN):
            best, gain = name, this
    return best


def question(name: str, version: str, kind: str, card: str) -> str:
    """Under which name a trial's result is kept."""
    return f"attention {name} {version}, {kind}, {card}"


def known(card: str) -> dict[str, Trial]:
    """What trials have found on a card of this name, by kernel, best first; the newest of each.

    A fault of PyTorch's own: it has no fused kernel there.
    """
    trials = {}
    for entry, found in findings.known().items():
        subject, _, rest = entry.partition(", ")
        if subject.startswith("attention ") and f", {card}, " in f", {rest}, ":
            try:
                trials[subject.split(" ")[1]] = Trial.of(found)
            except (ValueError, IndexError):
                continue
    return {name: trials[name] for name in (*PACKAGED, "cudnn", OWN) if name in trials}


def expected(asked: str, card: str) -> str:
    """Which kernel will serve on a card of this name, as far as trials have shown.

    Args:
        asked: as `attention.choose` takes it.
    """
    trials = known(card)
    name = fastest(trials) if asked == "auto" else asked
    return PLAIN if name == OWN and OWN in trials and trials[OWN].fault else name


def in_words(card: str) -> str:
    """What is known of attention on a card of this name: the kernel that serves, and why others do not; or empty."""
    trials = known(card)
    if not trials:
        return ""
    chosen = expected("auto", card)
    speedup = trials[chosen].speedup if chosen in trials else None
    faster = speedup is not None and speedup >= WORTHWHILE
    words = [TITLES[chosen] + (f", {speedup:.1f} times as fast as PyTorch's own" if faster else "")]
    faults = {name: trial.fault for name, trial in trials.items() if trial.fault and name in PACKAGED}
    words += [f"not {TITLES[name]}: {fault}" for name, fault in faults.items()]
    return "; ".join(words)
