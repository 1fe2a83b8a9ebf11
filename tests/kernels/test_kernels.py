"""The kernels between products and attentions: interpreted against the formula, and compiled for real cards."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from magi_lite import fused, kernels
from tests.triton_interpreter import in_own_process

if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from tests.quant.test_compilation import ADA, AMPERE, BLACKWELL, HOPPER, check, compiled, launched

CARDS = (AMPERE, ADA, HOPPER, BLACKWELL)
HALF, SINGLE = torch.bfloat16, torch.float32


@pytest.mark.slow
def test_the_kernels_in_the_interpreter() -> None:
    in_own_process(Path(__file__).with_name("interpreted.py"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("capability", CARDS)
@pytest.mark.parametrize(("heads", "rotate"), [(24, True), (8, True), (24, False)])
def test_norms_of_heads_compile(
    heads: int, rotate: bool, capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Queries, keys, and queries of cross attention, of the 4.5B model; the 24B's only have more heads."""
    x, weights = torch.zeros(2, heads, 128, dtype=HALF), torch.zeros(128, dtype=SINGLE if rotate else HALF)
    table = torch.zeros(2, 96) if rotate else None
    launch = launched(
        monkeypatch, "_heads_kernel",
        lambda k: k.norm_heads_(x, weights, weights, 1e-6, in_type=not rotate, table=table), kernels,
    )  # fmt: skip
    check(compiled(launch, capability), tmp_path, capability)


@pytest.mark.parametrize("capability", CARDS)
def test_norms_of_the_autoencoders_heads_compile(
    capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    x = torch.zeros(2, 48, 64, dtype=HALF)
    launch = launched(
        monkeypatch, "_heads_kernel", lambda k: k.norm_heads_(x, None, None, 1e-5, deviation=True), kernels
    )
    check(compiled(launch, capability), tmp_path, capability)


@pytest.mark.parametrize("capability", CARDS)
@pytest.mark.parametrize(("features", "branch"), [(3072, HALF), (3072, SINGLE), (6144, HALF)])
def test_gated_residuals_compile(
    features: int, branch: torch.dtype, capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if features == 6144 and capability != HOPPER:
        pytest.skip("the 24B model needs more memory than these have")
    x, added = torch.zeros(1, 4, 32, features, dtype=HALF), torch.zeros(1, 4, 32, features, dtype=branch)
    gate, weights = torch.zeros(1, 4, 1, features), torch.zeros(features)
    launch = launched(
        monkeypatch, "_gated_kernel", lambda k: k.add_gated_(x, added, gate, weights, weights, 1e-6), kernels
    )
    check(compiled(launch, capability), tmp_path, capability)


@pytest.mark.parametrize(
    ("heads", "residual", "words"),
    [
        ("", "", ""),
        ("OutOfResources: shared memory\nmore", "", "that norms heads is not used on this card"),
        ("", "its result is unlike", "of gated residuals is not used on this card"),
    ],
)
def test_a_kernel_that_is_not_used_is_said(
    heads: str, residual: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: (8, 9))
    monkeypatch.setattr(fused, "heads_disagreement", lambda *_: heads)
    monkeypatch.setattr(fused, "residual_disagreement", lambda *_: residual)
    monkeypatch.setattr("magi_lite.machine.devices.identity", lambda index: "a card")
    for cached in (fused._heads_problem, fused._residual_problem):
        cached.cache_clear()
    sentence = fused.notice(0, HALF, SINGLE, 128, 96, 3072)
    for cached in (fused._heads_problem, fused._residual_problem):
        cached.cache_clear()
    assert words in sentence and bool(sentence) is bool(words) and "more" not in sentence.split()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: (7, 5))
    assert fused.notice(0, HALF, SINGLE, 128, 96, 3072) == ""
