"""One line per golden case: how far we are from the official program, and how far we may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

NOT_GOLDENS = {"README.md", "compare.py"}


@dataclass(frozen=True)
class CaseResult:
    """The outcome of one comparison; `errors` and `limits` share their keys."""

    kind: str
    name: str
    passed: bool
    errors: dict[str, float]
    limits: dict[str, float]
    note: str = ""

    def line(self) -> str:
        detail = "  ".join(
            f"{k} {v:.2e} (limit {self.limits.get(k, float('nan')):.1e})" for k, v in self.errors.items()
        )
        return f"{'ok  ' if self.passed else 'FAIL'} {self.kind:<12} {self.name:<58} {detail} {self.note}".rstrip()


def metrics(ours: torch.Tensor, golden: torch.Tensor) -> dict[str, float]:
    """max_abs, rel_max = max|a-b| / max|b| and rel_l2 = |a-b| / |b|, in float64."""
    a, b = ours.double(), golden.double()
    difference = (a - b).abs()
    largest = difference.max().item() if difference.numel() else 0.0
    return {
        "max_abs": largest,
        "rel_max": largest / (b.abs().max().item() if b.numel() and b.abs().max() > 0 else 1.0),
        "rel_l2": (difference.norm() / (b.norm() + 1e-30)).item(),
    }


def compare(
    kind: str, name: str, ours: torch.Tensor, golden: torch.Tensor, tolerance: dict[str, Any] | str
) -> CaseResult:
    """Compare a tensor with its golden; `tolerance` is the sidecar's entry ("exact" or a dict of metric limits)."""
    if ours.shape != golden.shape:
        note = f"shape {tuple(ours.shape)} instead of {tuple(golden.shape)}"
        return CaseResult(kind, name, False, {}, {}, note)
    found = metrics(
        ours.float() if ours.is_floating_point() else ours, golden.float() if golden.is_floating_point() else golden
    )
    limits = {"max_abs": 0.0} if tolerance == "exact" else {k: float(v) for k, v in tolerance.items() if k in found}  # type: ignore[union-attr]
    errors = {k: found[k] for k in limits}
    passed = bool(limits) and all(errors[k] <= limits[k] for k in limits)  # NaN fails
    return CaseResult(kind, name, passed, errors, limits, "" if limits else "no tolerance stated")


def exact(kind: str, name: str, same: bool, note: str = "") -> CaseResult:
    """A comparison of integers, text or names: equal or not."""
    return CaseResult(kind, name, same, {}, {}, note or ("equal" if same else "differs"))


def unclaimed(kind: str, folder: Path, claimed: set[str]) -> Iterator[CaseResult]:
    """A failure for each file at any depth that no case used: a golden silently not run is a check that cannot fail.

    `claimed` are paths below the folder.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in claimed and path.name not in NOT_GOLDENS:
            yield CaseResult(kind, name, False, {}, {}, "a file that no case uses")
