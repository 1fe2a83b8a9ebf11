"""The Triton kernels in Triton's interpreter, which runs them on the CPU; started by `test_kernels.py`."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import triton
import triton.language as tl

from quant import activations, fusion, gate, kernels
from quant.gate import disagreement
from quant.kinds import FP8
from tests.quant.test_kernels import KINDS, SHAPES, check, hard_rows
from tests.triton_interpreter import round_as_torch


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    round_as_torch(monkeypatch)
    return kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["layer_norm", "plain_norm", "gelu", "gated_silu"])
def test_the_kernels_stay_within_a_step(
    name: str, kind: torch.dtype, dtype: torch.dtype, interpreted: ModuleType, generator: torch.Generator
) -> None:
    check(interpreted, name, kind, dtype, generator)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("formula", [None, *fusion.FORMULAS])
def test_kernels_are_accepted_only_if_they_agree(
    formula: fusion.Formula | None, kind: torch.dtype, interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cpu")
    assert disagreement(interpreted, device, 48, kind, torch.bfloat16, formula) is None
    rows = interpreted.quantize_rows
    monkeypatch.setattr(interpreted, "quantize_rows", lambda *a: (rows(*a)[0], rows(*a)[1] * 1.1))
    assert "scales differ" in disagreement(interpreted, device, 48, kind, torch.bfloat16, formula)
    monkeypatch.setattr(interpreted, "quantize_rows", lambda *a: (rows(*a)[0].roll(1, 1), rows(*a)[1]))
    assert "values differ" in disagreement(interpreted, device, 48, kind, torch.bfloat16, formula)
    monkeypatch.setattr(interpreted, "quantize_rows", lambda *a: 1 // 0)
    assert "ZeroDivisionError" in disagreement(interpreted, device, 48, kind, torch.bfloat16, formula)


@pytest.mark.parametrize("kind", KINDS)
def test_quantization_alone_gives_the_same_bits(
    kind: torch.dtype, interpreted: ModuleType, generator: torch.Generator
) -> None:
    for rows, features in SHAPES:
        x = hard_rows(rows, features, generator)
        for ours, plain in zip(interpreted.quantize_rows(x, kind), activations.per_token(x, kind), strict=True):
            assert torch.equal(ours.float(), plain.float())
        if kind == FP8:
            divisor = 0.01 + torch.rand(features, generator=generator)
            plain = activations.static(x, divisor)
            assert torch.equal(interpreted.quantize_static(x, divisor, True).float(), plain.float())


@pytest.mark.parametrize("kind", KINDS)
def test_every_quotient_is_the_nearest(
    kind: torch.dtype, interpreted: ModuleType, generator: torch.Generator
) -> None:
    """Numbers of all magnitudes over scales of all mantissas: multiplying with a reciprocal alone is off by one."""
    x = torch.randn(2048, 1024, generator=generator) * torch.exp2(20 * torch.rand(2048, 1024, generator=generator) - 20)
    x *= torch.exp2(torch.linspace(-60, 60, 2048))[:, None]
    for ours, plain in zip(interpreted.quantize_rows(x, kind), activations.per_token(x, kind), strict=True):
        assert torch.equal(ours.float(), plain.float())


@triton.jit
def _gelu_kernel(x, result, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(result + place, kernels._gelu(tl.load(x + place)))


@pytest.mark.usefixtures("interpreted")
def test_gelu_is_the_exact_one() -> None:
    x = torch.cat([torch.linspace(-12, 12, 100_000), torch.tensor([0.0, -0.0, 1e4, -1e4, 1e30, -1e30, 3e38, -3e38])])
    x = torch.cat([x, torch.zeros(2**17 - len(x))])
    found = torch.empty_like(x)
    _gelu_kernel[(1,)](x, found, SIZE=len(x))
    exact = torch.nn.functional.gelu(x.double())
    assert ((found - exact).abs() <= 3e-6 * exact.abs() + 2e-9).all(), "far nearer than bfloat16's 2e-3 of a number"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_number_stays_so(kind: torch.dtype, interpreted: ModuleType, generator: torch.Generator) -> None:
    x = hard_rows(4, 48, generator)
    x[1, 7], x[2, 11] = float("nan"), float("inf")
    values, scale = interpreted.quantize_rows(x, kind)
    product = values.float() * scale
    assert product[0].isfinite().all() and product[3].isfinite().all()
    assert product[1].isnan().all() and not product[2].isfinite().all()
    if kind == FP8:
        values = interpreted.quantize_static(x, torch.ones(1), True).float()
        assert values[1, 7].isnan() and values[2, 11] == 448 and values.isnan().sum() == 1


@pytest.mark.parametrize("result", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("product", [torch.int32, torch.float32, torch.bfloat16])
def test_products_are_scaled_to_the_bits_of_plain_arithmetic(
    product: torch.dtype, result: torch.dtype, interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cpu")
    assert gate.product_disagreement(device, product, result) is None
    right = interpreted.scale_product
    monkeypatch.setattr(interpreted, "scale_product", lambda p, s, w, out: right(p, s * 1.01, w, out))
    assert "other bits" in gate.product_disagreement(device, product, result)
