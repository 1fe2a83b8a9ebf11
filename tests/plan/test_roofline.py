"""Prices of operations: worked out by hand for small ones, and the planner's own sums against them for whole passes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.roofline import META, SAGE_RATE, Bill, Case, price, priced
from magi_lite.machine.cards import Device, known_card
from magi_lite.models import DIT_4_5B, MODELS
from magi_lite.planner import speed
from quant.convert import convert_

CARD = Device("small", "cuda", 1 << 30, (8, 9), 1.0, 2.0, 4.0, bandwidth_gbs=1.0, pcie_gbs=1.0)
"""1 TFLOP/s in bf16, 2 in FP8, 4 in int8; 1 GB/s."""


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def test_a_product_costs_the_larger_of_work_and_traffic() -> None:
    with priced(CARD) as pricer:
        _ = empty(4000, 1000) @ empty(1000, 3000)
    (row,) = pricer.bill.rows.values()
    work, moved = 2 * 4000 * 1000 * 3000, 2 * (4000 * 1000 + 1000 * 3000 + 4000 * 3000)
    assert (row.launches, row.flops, row.bytes) == (1, work, moved)
    assert row.seconds == pytest.approx(max(work / 1e12, moved / 1e9)) == pytest.approx(moved / 1e9)
    assert row.floor == pytest.approx(work / 1e12)


def test_elementwise_operations_cost_what_they_read_and_write() -> None:
    x, y, gate = empty(10, 64), empty(10, 64, dtype=torch.float32), empty(1, 64, dtype=torch.float32)
    with priced(CARD) as pricer:
        x.view(5, 128).transpose(0, 1).unsqueeze(0)  # views
        y.add_(x)
        x.float()
        y.mul_(gate.expand(10, 64))
        torch.cat([x, x])
        F.layer_norm(x, (64,))
    found = {name: (row.launches, row.bytes) for name, row in pricer.bill.rows.items()}
    numbers = 640
    assert found == {
        "additions": (1, numbers * (4 + 2 + 4)),
        "casts": (1, numbers * (2 + 4)),
        "multiplications": (1, numbers * (4 + 4) + 64 * 4),  # the gate lies in memory once
        "concatenations": (1, 2 * numbers * (2 + 2)),
        "layer norms": (1, numbers * (2 + 2)),
    }
    assert pricer.bill.floor == 0.0
    assert pricer.bill.seconds == pytest.approx(sum(moved for _, moved in found.values()) / 1e9)


@pytest.mark.parametrize(("scheme", "kind", "rate"), [("fp8", "float8_e4m3fn", 2e12), ("int8", "int8", 4e12)])
def test_quantization_is_one_read_and_one_write_with_the_operation_before_it(
    scheme: str, kind: str, rate: float
) -> None:
    with META:
        model = nn.Sequential(nn.Linear(256, 512, bias=False), nn.Identity()).to(torch.bfloat16)
        norm = nn.LayerNorm(256).to(torch.bfloat16)
    convert_(model, scheme, lambda name: True)
    with priced(CARD) as pricer:
        model[0].forward_quantized(model[0].quantize_input(empty(128, 256), norm))
    rows = pricer.bill.rows
    fused = rows["layer_norm + quantization"]
    assert (fused.launches, fused.bytes) == (1, 128 * 256 * (2 + 1))
    assert "layer norms" not in rows and "casts" not in rows
    product = rows[f"products {kind}"]
    assert product.flops == 2 * 128 * 256 * 512
    assert product.floor == pytest.approx(product.flops / rate)


@pytest.mark.parametrize(
    ("attention", "keys", "rate"), [("sdpa", 1333, 1.0), ("sage", 1333, SAGE_RATE), ("sage", 333, 1.0)]
)
def test_attention_reads_its_inputs_once_and_works_at_its_rate(attention: str, keys: int, rate: float) -> None:
    """Short captions are PyTorch's own kernel's, whatever serves the rest."""
    q, k, v = empty(1, 6, 200, 128), empty(1, 2, keys, 128), empty(1, 2, keys, 128)
    with priced(CARD, attention) as pricer:
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    (row,) = pricer.bill.rows.values()
    assert out.shape == q.shape
    assert row.flops == 4 * 6 * 200 * keys * 128
    assert row.bytes == 2 * (2 * 6 * 200 + 2 * 2 * keys) * 128
    assert row.floor == pytest.approx(row.flops / (rate * 1e12))


def small_case(**changes: object) -> Case:
    """Six layers of the 4.5B model."""
    model = replace(MODELS["4.5B-distill"], dit=replace(DIT_4_5B, num_layers=6))
    return replace(Case(known_card("RTX 4090"), model, 480, 480), **changes)  # type: ignore[arg-type]


def work(bill: Bill, names: str) -> float:
    return sum(row.flops for name, row in bill.rows.items() if name.startswith(names))


@pytest.mark.parametrize("scheme", ["fp8", "int8", "bf16"])
@pytest.mark.parametrize("window", [1, 4])
def test_the_planner_counts_the_work_and_the_traffic_of_the_program(scheme: str, window: int) -> None:
    case = small_case(scheme=scheme, window=window)
    bill = price(case)["window pass"]
    tokens = speed.tokens_per_chunk(case.model, case.width, case.height)
    keys = 3.5 * tokens  # the mean of 5, 4, 3, 2
    quantized, plain = speed.linear_flops(case.model, window * tokens, scheme)
    _, attention = speed.forward_flops(case.model.dit, window * tokens, keys)
    assert work(bill, "attention") == pytest.approx(attention, rel=0.01)
    assert work(bill, "products") == pytest.approx(quantized + plain, rel=0.02)
    if scheme != "bf16":
        kind = {"fp8": "products float8_e4m3fn", "int8": "products int8"}[scheme]
        assert work(bill, kind) == pytest.approx(quantized, rel=1e-6)
    moved = sum(row.bytes for name, row in bill.rows.items() if not row.floor)
    unit = window * tokens * case.model.dit.hidden_size * 2 * case.model.dit.num_layers
    if scheme == "fp8" and window == 4:
        assert moved / unit == pytest.approx(speed.FUSED_PASSES, rel=0.1)  # of 34 layers: see below


def test_the_full_size_pass_on_an_rtx_4090() -> None:
    """The floor is the model's own: 3.3 s with Sage at 720x720, window 4, in FP8; all else may take an eighth more."""
    case = Case(known_card("RTX 4090"), attention="sage")
    bills = price(case)
    bill = bills["window pass"]
    assert bill.floor == pytest.approx(3.3, rel=0.02)
    assert 1.0 < bill.ratio <= 1.12
    assert bill.total("launches") < 1500
    moved = sum(row.bytes for row in bill.rows.values() if not row.floor)
    unit = 4 * speed.tokens_per_chunk(case.model, 720, 720) * case.model.dit.hidden_size * 2 * 34
    assert moved / unit == pytest.approx(speed.FUSED_PASSES, rel=0.03)
    second = bills["second of video"]
    assert second.seconds == pytest.approx(
        2 * bill.seconds + bills["clean pass"].seconds + 2 * bills["copy pass"].seconds, rel=1e-9
    )
