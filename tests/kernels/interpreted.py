"""The kernels between products and attentions, in Triton's interpreter; started by `test_kernels.py`."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from magi_lite import fused
from magi_lite.dit.model import DiT
from magi_lite.fused import heads_disagreement, residual_disagreement
from magi_lite.models import DiTConfig
from magi_lite.vae.layers import normalize_heads
from tests.dit.conftest import LARGE_SWITCHES, SMALL, make_inputs
from tests.triton_interpreter import round_as_torch

DTYPES = (torch.float32, torch.bfloat16)
CPU = torch.device("cpu")
HEADS = [(7, 6, 16, 5), (5, 24, 128, 5), (3, 1, 32, 3), (6, 11, 40, 2)]
"""Rows, heads, width of a head, rows of the table."""
STREAMS = [(1, 1, 1, 5), (2, 3, 5, 48), (1, 2, 9, 257), (2, 1, 6, 1024)]
"""Batch, chunks, tokens, features."""


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    from magi_lite import kernels

    round_as_torch(monkeypatch)
    return kernels


@pytest.fixture
def generator() -> torch.Generator:
    """Fresh numbers in every run; the seed is printed where a test fails."""
    fresh = torch.Generator()
    print("seed", fresh.seed())
    return fresh


def normed(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """The layer norm's definition, in float64."""
    centred = x.double() - x.double().mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain.double() + bias.double()


def rotated(x: Tensor, table: Tensor) -> Tensor:
    """Pairs (i, i + r) turned by their angles, one after the other; x (rows, heads, width), table (rows, 2 * r)."""
    result, r = x.clone(), table.shape[1] // 2
    for i in range(r):
        sine, cosine = table[:, None, i].double(), table[:, None, r + i].double()
        result[..., i] = x[..., i] * cosine - x[..., r + i] * sine
        result[..., r + i] = x[..., r + i] * cosine + x[..., i] * sine
    return result


def near(found: Tensor, wanted: Tensor) -> bool:
    unit = torch.finfo(found.dtype).eps
    return bool(((found.double() - wanted).abs() <= unit * wanted.abs() + 1e-6 * wanted.abs().max()).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize(("rows", "heads", "width", "tokens"), HEADS)
def test_heads_equal_the_formula(
    rows: int, heads: int, width: int, tokens: int, rotate: bool, apart: bool, dtype: torch.dtype, kernels: ModuleType,
    generator: torch.Generator,
) -> None:  # fmt: skip
    """`apart`: the heads lie in a larger tensor, whose other numbers stay as they are."""
    around = (3 * torch.randn(rows, heads + 3, width + 8, generator=generator) + 1).to(dtype)
    x = around[:, 2 : 2 + heads, 3 : 3 + width] if apart else around[:, :heads, :width].contiguous()
    weight, bias = ((0.3 * torch.randn(width, generator=generator)) for _ in range(2))
    if not rotate:  # the cross attention's norm, which works in the model's type
        weight, bias = weight.to(dtype), bias.to(dtype)
    table = torch.randn(tokens, 6 * (width // 8), generator=generator) if rotate else None
    wanted = normed(x, weight + 1, bias)
    if table is not None:
        wanted = rotated(wanted, table[torch.arange(rows) % tokens])
    before = around.clone()
    found = kernels.norm_heads_(x, weight, bias, 1e-6, in_type=not rotate, table=table)
    assert found.data_ptr() == x.data_ptr() and near(x, wanted)
    if apart:
        around[:, 2 : 2 + heads, 3 : 3 + width] = before[:, 2 : 2 + heads, 3 : 3 + width]
        assert torch.equal(around, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("branch_dtype", DTYPES)
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("shape", STREAMS)
def test_gated_residuals_equal_the_formula(
    shape: tuple[int, int, int, int], apart: bool, branch_dtype: torch.dtype, dtype: torch.dtype, kernels: ModuleType,
    generator: torch.Generator,
) -> None:  # fmt: skip
    batch, chunks, tokens, features = shape
    around = torch.randn(batch, chunks + 2, tokens + 4, features + 8, generator=generator).to(dtype)
    inner = (slice(None), slice(1, 1 + chunks), slice(2, 2 + tokens), slice(3, 3 + features))
    x = around[inner] if apart else around[inner].contiguous()
    branch = (2 * torch.randn(batch, chunks, tokens + 2, features, generator=generator)).to(branch_dtype)[:, :, 1:-1]
    gate = torch.randn(batch, chunks, 2 * features, generator=generator).chunk(2, dim=-1)[1][:, :, None]
    weight, bias = ((0.3 * torch.randn(features, generator=generator)) for _ in range(2))
    wanted = x.double() + normed(branch.double() * gate.double(), weight + 1, bias)
    before = around.clone()
    assert kernels.add_gated_(x, branch, gate, weight, bias, 1e-6).data_ptr() == x.data_ptr()
    assert near(x, wanted)
    if apart:
        around[inner] = before[inner]
        assert torch.equal(around, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 7, 3, 2, 64), (2, 3, 3, 5, 24)])
def test_the_autoencoders_heads_equal_the_formula(
    shape: tuple[int, ...], dtype: torch.dtype, kernels: ModuleType, generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    x = (3 * torch.randn(shape, generator=generator) + 1).to(dtype)
    x[0, 0, 0, 0] = 2  # all alike: no deviation
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    wanted = centred / (centred.square().mean(-1, keepdim=True).sqrt() + 1e-5)
    assert near(normalize_heads(x.clone()), wanted)
    monkeypatch.setattr(fused, "for_plain_heads", lambda _: kernels)
    with torch.no_grad():
        found = normalize_heads(x)
    assert found.shape == x.shape and found.data_ptr() == x.data_ptr() and near(found, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_are_accepted_only_if_they_agree(
    dtype: torch.dtype, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, residual = kernels.norm_heads_, kernels.add_gated_
    cases = [(heads_disagreement, (CPU, dtype, dtype, 32, rotated)) for rotated in (0, 24)]
    cases.append((heads_disagreement, (CPU, dtype, None, 16, 0)))
    cases.append((residual_disagreement, (CPU, dtype, torch.bfloat16, 80)))
    for check, given in cases:
        assert check(kernels, *given) == ""
    wrong = [
        (lambda *a, **k: heads(*a, **k) * 1.02, lambda *a: residual(*a) + 0.05, "unlike"),
        (lambda *a, **k: heads(*a, **k).roll(1, 0), lambda *a: residual(*a).roll(1, 2), "unlike"),
        (lambda *a, **k: heads(*a, **k) * float("nan"), lambda *a: residual(*a) * float("nan"), "unlike"),
        (lambda *a, **k: 1 // 0, lambda *a: 1 // 0, "ZeroDivisionError"),
    ]
    for in_heads, in_residual, sentence in wrong:
        monkeypatch.setattr(kernels, "norm_heads_", in_heads)
        monkeypatch.setattr(kernels, "add_gated_", in_residual)
        for check, given in cases:
            assert sentence in check(kernels, *given)


def test_what_is_not_a_number_stays_so(kernels: ModuleType) -> None:
    x = torch.ones(1, 2, 3, 8)
    branch = torch.rand(1, 2, 3, 8)
    branch[0, 1, 2, 3] = float("nan")
    kernels.add_gated_(x, branch, torch.ones(1, 2, 1, 8), torch.zeros(8), torch.zeros(8), 1e-6)
    assert x[0, 1, 2].isnan().all() and x.isnan().sum() == 8
    heads = torch.rand(2, 3, 16)
    heads[1, 2, 5] = float("inf")
    kernels.norm_heads_(heads, torch.zeros(16), torch.zeros(16), 1e-6, in_type=False)
    assert heads[1, 2].isnan().any() and heads.isnan().any(-1).sum() == 1


@pytest.mark.parametrize("config", [SMALL, LARGE_SWITCHES])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slices", [None, 5])
def test_a_forward_with_the_kernels_equals_the_plain_one(
    config: DiTConfig, dtype: torch.dtype, slices: int | None, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(7)
    dit = DiT(config).to_precision(dtype).requires_grad_(False)
    dit.mlp_slice = dit.attention_slice = slices
    given = make_inputs(config, 34, 2, 2)
    used: list[str] = []

    def velocity() -> Tensor:
        captions = given.captions(dit)
        with torch.no_grad():
            return dit(given.latents, given.timesteps, captions, first_chunk=0, kv_ranges=[(0, 1), (0, 2)])

    plain = velocity()
    monkeypatch.setattr(fused, "for_heads", lambda *_: used.append("heads") or kernels)
    monkeypatch.setattr(fused, "for_residual", lambda *_: used.append("residual") or kernels)
    found = velocity()
    if slices is None:
        assert used.count("heads") == 3 * config.num_layers and used.count("residual") == 2 * config.num_layers
    limit = 1e-5 if dtype == torch.float32 else 0.01
    assert (found - plain).norm() <= limit * plain.norm()
