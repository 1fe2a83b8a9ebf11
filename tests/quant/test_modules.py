"""convert_ on modules as people write them: shared blocks, subclasses, torch's transformers, odd sizes and types."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import quant
from quant.folder import convert_folder
from quant.linear import QuantizedLinear
from tests.quant.reference import outliers, relative

LIMITS = {"fp8": 0.08, "int8": 0.03, "nf4": 0.25}
pytestmark = pytest.mark.parametrize("scheme", LIMITS)


def everything(name: str) -> bool:
    return True


def check(network: nn.Module, x: Tensor, scheme: str, limit: float = 1.0) -> quant.Report:
    """Convert all that can be; the result must stay near."""
    with torch.no_grad():
        truth = network(x)
        report = quant.convert_(network, scheme, everything)
        found = network(x)
    assert found.dtype == truth.dtype and found.shape == truth.shape
    assert relative(found, truth) < limit * LIMITS[scheme]
    return report


def test_torchs_own_transformer(scheme: str, generator: torch.Generator) -> None:
    """Its attention reads a weight itself, and its fused evaluation all of them."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    for network in (layer.eval(), nn.TransformerEncoder(layer, 2).eval()):
        report = check(network, torch.randn(2, 5, 64, generator=generator), scheme)
        assert {swap.name.rpartition(".")[2] for swap in report.swapped} == {"linear1", "linear2"}
        assert all(name.endswith("self_attn.out_proj") for name in report.kept)
        assert report.kept


class Shared(nn.Module):
    """One block that runs several times under several names."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Linear(64, 64), nn.GELU())
        self.blocks = nn.ModuleList([block, block, block])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_a_block_that_appears_twice_stays_one(scheme: str, generator: torch.Generator) -> None:
    network = Shared()
    report = check(network, torch.randn(9, 64, generator=generator), scheme)
    assert [swap.name for swap in report.swapped] == ["blocks.0.0"]
    assert report.kept == ()
    assert network.blocks[0] is network.blocks[2]


class Adapted(nn.Linear):
    """A linear that does more than its name says, and holds linears of its own."""

    def __init__(self) -> None:
        super().__init__(64, 64)
        self.down, self.up = nn.Linear(64, 8), nn.Linear(8, 64)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x) + self.up(self.down(x))


class Named(nn.Linear):
    """A linear under another name."""


class Careful(nn.Linear):
    """Another way to the same product, which says so."""

    formula = "linear"

    def forward(self, x: Tensor) -> Tensor:
        return (x.double() @ self.weight.double().t() + self.bias.double()).to(x.dtype)


def test_a_subclass_with_a_forward_of_its_own_is_left_alone(scheme: str, generator: torch.Generator) -> None:
    wrapped = nn.Linear(64, 64)
    plain = wrapped.forward
    wrapped.forward = lambda x: 2 * plain(x)  # as hooks of other libraries do
    network = nn.Sequential(Adapted(), Named(64, 64), wrapped, Careful(64, 64))
    report = check(network, torch.randn(9, 64, generator=generator), scheme)
    assert {swap.name for swap in report.swapped} == {"0.down", "0.up", "1", "3"}
    assert report.kept == ("0", "2")


def test_bitsandbytes_own_layers_are_left_alone(scheme: str, generator: torch.Generator) -> None:
    from quant.nf4 import bitsandbytes

    network = nn.Sequential(bitsandbytes().nn.Linear4bit(64, 64, quant_type="nf4"), nn.Linear(64, 32)).to("cpu")
    assert check(network, torch.randn(9, 64, generator=generator), scheme).kept == ("0",)


def test_computed_weights_are_taken_as_they_are(scheme: str, generator: torch.Generator) -> None:
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(64, 48)))
    check(network, torch.randn(9, 64, generator=generator), scheme)
    assert isinstance(network[0], QuantizedLinear)


def test_hooks_are_not_lost_in_silence(scheme: str, generator: torch.Generator) -> None:
    network = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    handle = network[1].register_forward_hook(lambda *_: None)
    with pytest.raises(quant.QuantError, match="linear 1 has hooks"):
        quant.convert_(network, scheme, everything)
    assert type(network[0]) is nn.Linear, "nothing may be swapped before the refusal"
    handle.remove()
    check(network, torch.randn(9, 64, generator=generator), scheme)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, scheme: str) -> None:
    network = nn.Sequential(nn.Linear(64, 64))
    with torch.no_grad():
        network[0].weight[3, 5] = value
    with pytest.raises(quant.QuantError, match="linear 0 holds NaN or infinite weights"):
        quant.convert_(network, scheme, everything)


def test_nothing_to_convert_is_said(scheme: str) -> None:
    with pytest.raises(quant.QuantError, match="no weights yet; run the model once"):
        quant.convert_(nn.Sequential(nn.LazyLinear(8)), scheme, everything)
    network = nn.Sequential(nn.Linear(16, 16))
    quant.convert_(network, scheme, everything)
    for nothing in (network, nn.Sequential(nn.Linear(0, 8)), nn.Sequential(nn.Linear(8, 0)), nn.Sequential()):
        with pytest.raises(quant.QuantError, match=r"no plain torch\.nn\.Linear left"):
            quant.convert_(nothing, scheme, everything)


@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (129, 1), (7, 13), (65, 3)])
def test_odd_sizes(shape: tuple[int, int], scheme: str, generator: torch.Generator) -> None:
    """Near a float64 product of the layer's own numbers: few terms do not average errors out."""
    inputs, outputs = shape
    network = nn.Sequential(nn.Linear(inputs, outputs))
    quant.convert_(network, scheme, everything)
    (layer,) = network
    for x in (outliers(3, inputs, generator=generator), torch.randn(1, inputs, generator=generator)):
        quantized = layer.quantize_input(x)
        given = quantized.values.double() * (1 if quantized.scale is None else quantized.scale.double())
        truth = given @ layer.dequantized().double().T + layer.bias.double()
        size = given.abs() @ layer.dequantized().double().abs().T + layer.bias.double().abs()
        assert bool(((network(x) - truth).abs() <= 3e-6 * size).all())
        assert torch.equal(network(x[0]), network(x[:1])[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_type(dtype: torch.dtype, scheme: str, generator: torch.Generator) -> None:
    network = nn.Sequential(nn.Linear(64, 48)).to(dtype)
    network[0].weight = nn.Parameter(torch.randn(64, 48, generator=generator).to(dtype).t())  # not contiguous
    check(network, outliers(5, 64, generator=generator).to(dtype), scheme)


def test_huge_and_tiny_numbers(scheme: str, generator: torch.Generator) -> None:
    """Nothing overflows or vanishes on the way to a result that the type holds."""
    network = nn.Sequential(nn.Linear(64, 48, bias=False).requires_grad_(False))
    weight = network[0].weight.double()
    quant.convert_(network, scheme, everything)
    for size in (1e-25, 1e-14, 1.0, 1e15, 3e37):
        x = torch.randn(7, 64, generator=generator) * size
        assert relative(network(x), x.double() @ weight.T) < LIMITS[scheme], size
    peak = torch.zeros(1, 64, dtype=torch.bfloat16)
    peak[0, 7] = 3e38
    assert bool(network(peak).isfinite().all())


def test_rows_of_nan_stay_their_own(scheme: str, generator: torch.Generator) -> None:
    network = nn.Sequential(nn.Linear(64, 48))
    quant.convert_(network, scheme, everything)
    x = torch.randn(4, 64, generator=generator)
    whole = network(x)
    x[1, 3], x[2, 5] = float("nan"), float("inf")
    found = network(x)
    assert torch.equal(found[[0, 3]], whole[[0, 3]])
    assert bool(found[1].isnan().all())
    assert not bool(found[2].isfinite().any())


def test_gradients_are_right_or_refused(scheme: str, generator: torch.Generator) -> None:
    network = nn.Sequential(nn.Linear(64, 48))
    quant.convert_(network, scheme, everything)
    x = torch.randn(3, 64, generator=generator, requires_grad=True)
    weights = torch.randn(3, 48, generator=generator)
    result = (network(x) * weights).sum()
    if scheme == "nf4":
        (gradient,) = torch.autograd.grad(result, x)
        assert relative(gradient, weights @ network[0].dequantized()) < 1e-5
    else:
        with pytest.raises(quant.QuantError, match="carry no gradient"):
            result.backward()


def test_converted_where_nothing_is_recorded(scheme: str, generator: torch.Generator) -> None:
    """Made under inference_mode, used outside, and the other way round; types changed at will."""
    x = torch.randn(3, 64, generator=generator)
    network = nn.Sequential(nn.Linear(64, 48))
    with torch.inference_mode():
        quant.convert_(network, scheme, everything)
        inside = network(x)
    assert torch.equal(network(x), inside)
    network.bfloat16().double().float()
    network.share_memory()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(state, assign=True)
    assert relative(network(x), inside) < 1e-2  # the bias was in bfloat16 meanwhile


class Rotated(nn.Module):
    """A model with numbers that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 64)
        self.register_buffer("angles", torch.arange(64.0) / 7, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x * self.angles.cos())


def test_numbers_that_no_file_holds_stay(scheme: str, tmp_path: Any, generator: torch.Generator) -> None:
    network, other = Rotated(), Rotated()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    convert_folder(tmp_path / "model.safetensors", tmp_path / "out", quant.scheme_named(scheme))
    quant.load_converted_(other, tmp_path / "out")
    quant.convert_(network, scheme, everything)
    x = torch.randn(5, 64, generator=generator)
    assert torch.equal(other(x), network(x))
    with torch.device("meta"):
        empty = Rotated()
    with pytest.raises(quant.QuantError, match="No file holds angles"):
        quant.load_converted_(empty, tmp_path / "out")
    stranger = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(quant.QuantError, match="no linear fc"):
        quant.load_converted_(stranger, tmp_path / "out")
    assert not stranger[0].weight.is_meta, "a model that does not fit is left as it was"
