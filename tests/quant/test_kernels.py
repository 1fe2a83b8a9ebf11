"""The kernels that quantize, against plain arithmetic: Triton's in its interpreter, and torch.compile's."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from quant import activations, compiled, fusion
from quant.gate import disagreement
from quant.kinds import FP8, steps_apart
from tests.quant.reference import outliers
from tests.quant.test_fusion import operations
from tests.triton_interpreter import in_own_process

KINDS = (torch.int8, FP8)
SHAPES = [(1, 5), (7, 48), (5, 257), (3, 1024)]


def hard_rows(rows: int, features: int, generator: torch.Generator) -> Tensor:
    """Outlier channels, and a row of zeros."""
    x = outliers(rows, features, generator=generator)
    x[0] = 0
    return x


def check(fast: ModuleType, name: str, kind: torch.dtype, dtype: torch.dtype, generator: torch.Generator) -> None:
    """`fast` against the plain formula in float64, for odd sizes, outliers and rows of zeros."""
    for rows, features in SHAPES:
        before, inputs = operations(features, generator)[name]
        if isinstance(before, nn.LayerNorm):
            before.to(dtype)
        x = hard_rows(rows, inputs, generator).to(dtype)
        operation = fusion.known(before, x)
        assert operation is not None
        plain = before(x).float()
        values, scale = fast.quantize_rows(x, kind, operation)
        wanted = activations.per_token(before(x), kind)[1]
        torch.testing.assert_close(scale, wanted, rtol=0.01, atol=0)
        assert steps_apart(values, plain / scale) <= 1
        if kind == FP8:
            divisor = 0.01 + torch.rand(features, generator=generator)
            for by in (divisor, divisor[:1]):
                scaled = (plain / by).clamp(-448, 448).to(torch.bfloat16).float()
                assert steps_apart(fast.quantize_static(x, by, True, operation), scaled) <= 1


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_triton_kernels_in_the_interpreter() -> None:
    in_own_process(Path(__file__).with_name("interpreted.py"))


def test_generated_code_stays_within_a_step(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_compiled", lambda function: function)  # the formulas; then their compilation
    for kind in KINDS:
        for name in ("layer_norm", "plain_norm", "gelu", "gated_silu"):
            check(compiled, name, kind, torch.bfloat16, generator)
    monkeypatch.undo()
    if shutil.which("c++") is None:
        pytest.skip("torch.compile needs a compiler here")
    assert disagreement(compiled, torch.device("cpu"), 48, torch.int8, torch.bfloat16, "layer_norm") is None


def test_steps_are_counted_as_the_types_have_them(generator: torch.Generator) -> None:
    x = 500 * torch.rand(1000, generator=generator) ** 6
    nearest = x.clamp(max=448).to(FP8)
    assert 0.4 < steps_apart(nearest, x) <= 0.5
    assert steps_apart(x.clamp(max=127).round().to(torch.int8), x.clamp(max=127)) <= 0.5
    assert steps_apart((nearest.float() * 1.25).to(FP8), x) > 1
