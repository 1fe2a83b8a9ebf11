"""Every scheme against its definition in float64, on fresh data with outlier channels."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import quant
from quant import activations, fp8, int8, kinds
from quant.convert import quantized_linear, quantized_tensors
from quant.fp8 import Fp8Linear
from quant.int8 import Int8Linear
from quant.nf4 import NF4Linear, bitsandbytes
from quant.products import CARD_VALUES, product_slices, scale_into
from quant.published import PublishedPerTensorLinear, PublishedSmoothLinear
from quant.schemes import SCHEMES
from tests.quant.reference import outliers, relative, to_bf16, to_e4m3

# float32 sums of K products: about sqrt(K) roundings of 6e-8
SUMMED = 2e-6
NF4_CODE = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
"""QLoRA (arXiv 2305.14314), appendix E."""


def linear(inputs: int, outputs: int, generator: torch.Generator, bias: bool = False) -> nn.Linear:
    made = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        made.weight.copy_(torch.randn(outputs, inputs, generator=generator) / inputs**0.5)
        if bias:
            made.bias.copy_(torch.randn(outputs, generator=generator))
    return made.requires_grad_(False)


def exact_cast(values: Tensor) -> np.ndarray:
    return values.double().numpy()


def quantized_rows(x: np.ndarray, largest: float) -> tuple[np.ndarray, np.ndarray]:
    """(scaled, scale) with one float32 scale per row, as float32 arithmetic gives them."""
    scale = (np.abs(x).max(1, keepdims=True) / np.float32(largest)).astype(np.float32)
    return (x / scale).astype(np.float32), scale


@pytest.mark.parametrize("granularity", ["row", "tensor"])
def test_fp8_is_its_definition(granularity: str, generator: torch.Generator) -> None:
    source, x = linear(160, 96, generator, bias=True), outliers(23, 160, generator=generator)
    layer = Fp8Linear.from_linear(source, quant.Fp8(granularity))
    weight, given = source.weight.numpy(), x.numpy()
    if granularity == "row":
        (w, ws), (a, s) = quantized_rows(weight, 448), quantized_rows(given, 448)
    else:
        ws, s = np.abs(weight).max() / np.float32(448), np.abs(given).max() / np.float32(448)
        w, a = weight / ws, given / s
    w, a = to_e4m3(w.astype(np.float64)), to_e4m3(a.astype(np.float64))
    assert np.array_equal(exact_cast(layer.weight_e4m3), w)
    assert np.array_equal(exact_cast(layer.quantize_input(x).values), a)
    truth = (a * s.astype(np.float64)) @ (w * ws.astype(np.float64)).T + source.bias.double().numpy()
    assert relative(layer(x), torch.from_numpy(truth)) < SUMMED


def test_int8_is_its_definition(generator: torch.Generator) -> None:
    source, x = linear(2100, 24, generator), outliers(2, 5, 2100, generator=generator)
    layer = Int8Linear.from_linear(source, quant.Int8())
    (w, ws), (a, s) = quantized_rows(source.weight.numpy(), 127), quantized_rows(x.flatten(0, 1).numpy(), 127)
    w, a = np.rint(w).astype(np.float64), np.rint(a).astype(np.float64)
    assert np.array_equal(exact_cast(layer.weight_int8), w)
    assert np.array_equal(exact_cast(layer.quantize_input(x).values), a)
    product = int8.integer_matmul(layer.quantize_input(x).values, layer.weight_int8)
    assert torch.equal(product, torch.from_numpy(a @ w.T).int())
    truth = torch.from_numpy((a * s.astype(np.float64)) @ (w * ws.astype(np.float64)).T)
    assert layer(x).shape == (2, 5, 24)
    assert relative(layer(x).flatten(0, 1), truth) < SUMMED


def test_nf4_is_its_definition(generator: torch.Generator) -> None:
    source, x = linear(192, 80, generator, bias=True), outliers(9, 192, generator=generator)
    layer = NF4Linear.from_linear(source, quant.NF4())
    codes = layer.weight_nf4.flatten().numpy()
    index = np.stack([codes >> 4, codes & 15], 1).reshape(-1)
    offset, nested = layer.offset.double(), layer.nested_absmax.double().repeat_interleave(256)[: layer.absmax.numel()]
    absmax = (layer.nested_map.double()[layer.absmax.long()] * nested + offset).numpy()
    weight = (np.array(NF4_CODE)[index] * np.repeat(absmax, 64)).reshape(80, 192)
    truth = x.double() @ torch.from_numpy(weight).T + source.bias.double()
    assert relative(layer(x), truth) < SUMMED
    # each code is the nearest one: no block is further off than half the widest gap of the code, and by how much its
    # scale is off, which is a nearest code too: half of 0.9 / 64, the widest gap of bitsandbytes' dynamic map
    blocks = source.weight.reshape(-1, 64).double()
    error, largest = (torch.from_numpy(weight).reshape(-1, 64) - blocks).abs().amax(1), blocks.abs().amax(1)
    off = (torch.from_numpy(absmax) - largest).abs()
    assert bool((error <= 0.5 * 0.3039 * largest + off).all())
    assert bool((off <= 0.00705 * nested).all())


def test_nf4_is_bitsandbytes_own_layer(generator: torch.Generator) -> None:
    source, x = linear(256, 128, generator), outliers(7, 256, generator=generator)
    layer = NF4Linear.from_linear(source, quant.NF4())
    library = bitsandbytes()
    theirs = library.nn.Linear4bit(256, 128, bias=False, quant_type="nf4", compress_statistics=True)
    theirs.load_state_dict(source.state_dict())
    theirs.to("cpu")
    assert torch.equal(theirs.weight.data, layer.weight_nf4)
    assert torch.equal(theirs.weight.quant_state.absmax, layer.absmax)
    assert torch.equal(theirs(x), layer(x))


def published_buffers(inputs: int, outputs: int, smooth: bool, generator: torch.Generator) -> dict[str, Tensor]:
    weight = (torch.randn(1, outputs, inputs, generator=generator) * 60).clamp(-448, 448).to(torch.float8_e4m3fn)
    scales = 0.002 + 0.01 * torch.rand(2, generator=generator)
    made = {"weight": weight, "weight_scale": scales[:1]}
    if not smooth:
        return {**made, "input_scale": scales[1:].expand(inputs).contiguous()}
    smooth_scale = 0.01 * torch.exp(torch.randn(1, inputs, generator=generator))
    return {**made, "input_scale": scales[1:], "smooth_scale": smooth_scale}


@pytest.mark.parametrize("smooth", [False, True])
def test_published_rounds_twice(smooth: bool, generator: torch.Generator) -> None:
    kind = PublishedSmoothLinear if smooth else PublishedPerTensorLinear
    buffers = published_buffers(192, 48, smooth, generator)
    layer = kind(192, 48, quant.Published(), device="meta")
    layer.load_state_dict(buffers, assign=True)
    x = outliers(31, 192, generator=generator)
    divisor = buffers["smooth_scale"].numpy()[0] if smooth else buffers["input_scale"].numpy()
    scaled = np.clip(x.numpy() / divisor, -448, 448)
    once, twice = to_e4m3(scaled.astype(np.float64)), to_e4m3(to_bf16(scaled).astype(np.float64))
    ours = exact_cast(layer.quantize_input(x).values)
    assert np.array_equal(ours, twice)
    assert not np.array_equal(ours, once), "the data cannot tell one rounding from two"
    factor = buffers["input_scale"].double().flatten()[0] * buffers["weight_scale"].double()[0]
    truth = torch.from_numpy(twice) @ buffers["weight"][0].double().T * factor
    assert relative(layer(x), truth) < SUMMED
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_values_beyond_the_largest_are_clamped() -> None:
    x = torch.tensor([[1e30, -1e30, 3.0, 0.0]])
    assert torch.equal(activations.static(x, torch.tensor([1.0])).float(), torch.tensor([[448.0, -448.0, 3.0, 0.0]]))


def test_zero_rows_stay_zero() -> None:
    for kind in (torch.int8, torch.float8_e4m3fn):
        values, scale = activations.per_token(torch.zeros(3, 16), kind)
        assert not values.float().any()
        assert bool((scale > 0).all())
    values, scale = activations.per_tensor(torch.zeros(3, 16))
    assert not values.float().any()
    assert bool((scale > 0).all())


def test_slices_change_nothing(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    x = outliers(37, 64, generator=generator)
    layers = [quantized_linear(linear(64, 32, generator), s) for s in (quant.Fp8(), quant.Int8())]
    before = [layer(x) for layer in layers]
    monkeypatch.setattr(kinds, "SLICE_VALUES", 5 * 64)
    for layer, whole in zip(layers, before, strict=True):
        assert torch.equal(layer(x), whole)


@pytest.mark.parametrize("granularity", ["row", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled_mm_equals_the_plain_path(granularity: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    layer = Fp8Linear.from_linear(linear(64, 32, generator), quant.Fp8(granularity))
    quantized = layer.quantize_input(outliers(18, 64, generator=generator))
    arguments = (quantized.values, quantized.scale, layer.weight_e4m3, layer.weight_scale, dtype)
    fast, plain = (fp8.scaled_matmul(*arguments, backend=backend) for backend in ("fast", "plain"))
    assert fast.dtype == plain.dtype == dtype
    # float32: order of summation; bfloat16: at most one unit in the last place beside it
    assert relative(fast, plain) < (SUMMED if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(23, 160, 96), (1, 16, 16), (300, 48, 272)])
def test_products_scaled_afterwards_equal_the_formula(
    rows: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kinds, "SLICE_VALUES", 2000)  # several slices of some rows, and a last one of fewer
    values, scale = activations.per_token(outliers(rows, inputs, generator=generator), kinds.FP8)
    weight, weight_scale = fp8.quantize_weight(outliers(outputs, inputs, generator=generator), "row")
    wanted = (values.double() * scale.double()) @ (weight.double() * weight_scale.double()).T
    found = fp8.scaled_afterwards(values, scale, weight, weight_scale, dtype, fast_accumulate=False)
    assert found.dtype == dtype
    # bf16: the product is rounded, and its scaled result again: 2^-8 each
    allowed = 2.0**-7 if dtype == torch.bfloat16 else 1e-5
    assert ((found.double() - wanted).abs() <= allowed * wanted.abs() + 1e-5 * wanted.abs().max()).all()


def test_a_product_may_be_scaled_in_its_place(generator: torch.Generator) -> None:
    product = (100 * torch.randn(37, 24, generator=generator)).to(torch.bfloat16)
    rows, columns = (0.01 + torch.rand(n, 1, generator=generator) for n in product.shape)
    wanted = (product.float() * columns.view(-1) * rows).to(torch.bfloat16)
    scale_into(product, product, rows, columns)
    assert torch.equal(product, wanted)


@pytest.mark.parametrize("columns", [16, 3072, 12288, 50000])
def test_cards_make_products_in_whole_tiles(columns: int) -> None:
    result = torch.empty(48611, columns, device="meta")
    parts = list(product_slices(result))
    assert parts[0].start == 0 and all(a.stop == b.start for a, b in pairwise(parts)) and parts[-1].stop >= 48611
    assert all(part.start % 128 == 0 for part in parts)
    assert max(part.stop - part.start for part in parts) * columns <= max(CARD_VALUES, 128 * columns)
    assert len(parts) < 20 or columns == 50000


@pytest.mark.parametrize("shape", [(7, 9), (64, 48), (33, 130), (1, 1)])
def test_nf4_in_slices_gives_the_librarys_own_bits(
    shape: tuple[int, int], generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(shape, generator=generator)
    packed, state = bitsandbytes().functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    wanted = {
        "weight_nf4": packed,
        "absmax": state.absmax,
        "nested_absmax": state.state2.absmax,
        "nested_map": state.state2.code,
        "code": state.code,
        "offset": state.offset,
    }
    for size in (1 << 19, 128, 64):
        monkeypatch.setattr("quant.nf4.NF4_SLICE", size)
        made = quantized_tensors(weight, quant.NF4())
        assert made.keys() == wanted.keys()
        assert all(torch.equal(made[name], tensor) for name, tensor in wanted.items()), size


def test_large_weights_are_quantized_in_slices(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(37, 64, generator=generator)
    schemes = (quant.Fp8(), quant.Fp8("tensor"), quant.Int8())
    whole = [quantized_tensors(weight.bfloat16(), scheme) for scheme in schemes]
    monkeypatch.setattr(activations, "WEIGHT_VALUES", 5 * 64)
    for scheme, tensors in zip(schemes, whole, strict=True):
        for name, tensor in quantized_tensors(weight.bfloat16(), scheme).items():
            assert torch.equal(tensor.view(torch.uint8), tensors[name].view(torch.uint8)), (scheme, name)


def test_integer_paths_are_equal_at_every_shape(generator: torch.Generator) -> None:
    for rows, inputs, outputs in ((0, 16, 8), (1, 7, 3), (5, 1, 64), (16, 1025, 5), (40, 4100, 9)):
        a = torch.randint(-127, 128, (rows, inputs), dtype=torch.int8, generator=generator)
        b = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, generator=generator)
        truth = (a.long() @ b.long().T).int()
        assert torch.equal(int8.integer_matmul(a, b, "plain"), truth)
        assert torch.equal(int8.integer_matmul(a, b), truth)


def test_errors_with_outliers_are_what_the_formats_allow(generator: torch.Generator) -> None:
    """e4m3 keeps 3 mantissa bits whatever the size; per-token int8 pays for outlier channels; nf4 is the coarsest."""
    x, source = outliers(64, 512, generator=generator), linear(512, 128, generator)
    errors = {
        name: relative(quantized_linear(source, quant.scheme_named(name))(x), source(x))
        for name in ("fp8", "int8", "nf4")
    }
    assert 0.01 < errors["fp8"] < 0.06
    assert 0.001 < errors["int8"] < 0.08
    assert 0.04 < errors["nf4"] < 0.15


def test_a_scale_is_the_ratio_rounded_once() -> None:
    absmax = torch.rand(4096) * 100
    rounded_once = torch.from_numpy((absmax.double().numpy() / 448.0).astype("float32"))
    assert torch.equal(kinds.exact_ratio(absmax, 448.0), rounded_once)


def test_nf4_products_leave_logging_alone(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of a logger's level clears what all loggers remember: at every product, that took longer than it."""
    layer = quantized_linear(nn.Linear(64, 64, bias=False), SCHEMES["nf4"])
    x = torch.randn(3, 64, generator=generator)
    layer(x)
    changes: list[int] = []
    monkeypatch.setattr(logging.Logger, "setLevel", lambda _, level: changes.append(level))
    layer(x)
    assert not changes
