"""What a run finds out about its card before it starts, is kept and followed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import quant
from magi_lite.attention import SDPA, Backend
from magi_lite.attention_choice import Trial
from magi_lite.dit.model import DiT
from magi_lite.machine import devices, findings
from magi_lite.machine.cards import known_card
from magi_lite.pipeline.engine import meets_a_new_card, plan_for, tune
from quant.fp8 import Fp8Linear
from tests.dit.conftest import SMALL

CARD = torch.device("cuda", 0)


@pytest.fixture
def dit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DiT:
    monkeypatch.setattr(findings, "FILE", tmp_path / "findings.json")
    monkeypatch.setattr(devices, "capability", lambda index=None: (8, 9))
    monkeypatch.setattr(devices, "identity", lambda index=0: "Some Card")
    monkeypatch.setattr(quant, "slow_paths", lambda model, device: ["Triton is not installed."], raising=False)
    monkeypatch.setattr("magi_lite.fused.notice", lambda *_: "A kernel is not used.")
    made = DiT(SMALL).requires_grad_(False)
    quant.convert_(made, quant.Fp8(), lambda name: "mlp" in name)
    return made


@pytest.mark.parametrize(
    ("kind", "known", "new"), [("cuda", {}, True), ("cuda", {"flash": Trial()}, False), ("cpu", {}, False)]
)
def test_a_card_is_met_once(kind: str, known: dict[str, Trial], new: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "detect", lambda: replace(known_card("RTX 4090"), kind=kind))
    monkeypatch.setattr("magi_lite.attention_choice.known", lambda card: known)
    assert meets_a_new_card() is new


@pytest.mark.parametrize(("serves", "plans"), [("sdpa", 1), ("sage", 2)])
def test_a_plan_is_of_the_kernel_that_serves(serves: str, plans: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial comes after the first plan, and what it found counts in the one that is followed."""
    made: list[str] = []

    def plan(*_: object) -> SimpleNamespace:
        made.append("sdpa" if not made else "sage")
        execution = SimpleNamespace(attention="auto", device="cuda", dtype="bfloat16", kernel=made[-1])
        return SimpleNamespace(execution=execution)

    monkeypatch.setattr("magi_lite.planner.plan", plan)
    monkeypatch.setattr("magi_lite.pipeline.engine.choose_attention", lambda *_: Backend(serves, SDPA.kernel))
    files, request = SimpleNamespace(spec=None), SimpleNamespace(preset="auto")
    assert plan_for(files, request).execution.kernel == serves and len(made) == plans  # type: ignore[arg-type]


def ways(dit: DiT) -> set[str]:
    return {layer.row_scales for layer in dit.modules() if isinstance(layer, Fp8Linear)}


def test_the_faster_way_is_measured_once_and_kept(dit: DiT, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def faster(index: int) -> str:
        asked.append(index)
        return "afterwards"

    monkeypatch.setattr(quant, "faster_row_scales", faster, raising=False)
    for _ in range(2):
        quant.set_row_scales_(dit, "product")
        tune(dit, CARD, "fp8")
        assert ways(dit) == {"afterwards"}
    assert asked == [0]


@pytest.mark.parametrize("scheme", ["published", "int8", "bf16"])
def test_other_schemes_measure_nothing(scheme: str, dit: DiT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quant, "faster_row_scales", lambda index: 1 // 0, raising=False)
    tune(dit, CARD, scheme)
    tune(dit, torch.device("cpu"), "fp8")
    assert ways(dit) == {"product"}


def test_what_is_slow_is_said(dit: DiT) -> None:
    dit.backend = Backend("sdpa", SDPA.kernel, "The attention kernel flash is not used.")
    sentences = ("The attention kernel flash is not used.", "Triton is not installed.", "A kernel is not used.")
    assert tune(dit, CARD, "bf16") == sentences
