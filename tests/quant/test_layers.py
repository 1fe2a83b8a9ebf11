"""Quantized layers as members of a module: moving, loading, sharing an input."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import quant
from quant.convert import quantized_linear
from quant.published import PublishedPerTensorLinear
from tests.quant.models import QUANTIZED, empty, model
from tests.quant.reference import outliers

DYNAMIC = ("fp8", "int8", "nf4")


def made(scheme: str, generator: torch.Generator, inputs: int = 64, outputs: int = 32) -> quant.QuantizedLinear:
    linear = nn.Linear(inputs, outputs)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(outputs, inputs, generator=generator))
    return quantized_linear(linear.requires_grad_(False), quant.scheme_named(scheme))


def published(generator: torch.Generator, scale: float) -> PublishedPerTensorLinear:
    layer = PublishedPerTensorLinear(32, 16, quant.Published())
    layer.weight = torch.randn(1, 16, 32, generator=generator).to(torch.float8_e4m3fn)
    layer.weight_scale, layer.input_scale = torch.tensor([0.5]), torch.full((32,), scale)
    return layer


@pytest.mark.parametrize("scheme", DYNAMIC)
def test_a_shared_input_is_quantized_once_and_gives_the_same_bits(
    scheme: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [made(scheme, generator, 64, n) for n in (32, 16, 48)]
    x = outliers(2, 9, 64, generator=generator)
    apart = [layer(x) for layer in layers]
    calls = []
    kind = type(layers[0])
    original = kind.quantize_input
    monkeypatch.setattr(kind, "quantize_input", lambda self, *x: (calls.append(1), original(self, *x))[1])
    together = quant.shared_forward(layers, x)
    assert len(calls) == 1
    assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))


def test_static_layers_share_only_equal_scales(generator: torch.Generator) -> None:
    a, b, c = published(generator, 0.01), published(generator, 0.01), published(generator, 0.03)
    x = outliers(5, 32, generator=generator)
    assert a.input_key == b.input_key != c.input_key
    first = a.quantize_input(x)
    assert torch.equal(b.forward_quantized(first), b(x))
    assert torch.equal(c.forward_quantized(first), c(x)), "another scale must be noticed"
    plain = nn.Linear(32, 4)
    mixed = quant.shared_forward([a, plain, c], x)
    assert all(torch.equal(m, layer(x)) for m, layer in zip(mixed, (a, plain, c), strict=True))


def test_a_changed_scale_is_noticed(generator: torch.Generator) -> None:
    layer, x = published(generator, 0.01), outliers(5, 32, generator=generator)
    before = layer.input_key
    layer.input_scale = torch.full((32,), 0.02)
    assert layer.input_key != before
    assert torch.equal(layer.forward_quantized(published(generator, 0.01).quantize_input(x)), layer(x))


@pytest.mark.parametrize("scheme", DYNAMIC)
def test_a_change_of_type_leaves_quantized_numbers_alone(scheme: str, generator: torch.Generator) -> None:
    layer = made(scheme, generator)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.to(torch.bfloat16).half().float().to("cpu", torch.bfloat16)
    for name, tensor in layer.state_dict().items():
        assert tensor.dtype == (torch.bfloat16 if name == "bias" else before[name].dtype)
        if name != "bias":
            assert torch.equal(tensor.flatten().view(torch.uint8), before[name].flatten().view(torch.uint8))
    assert all(tensor.is_meta for tensor in layer.to("meta").state_dict().values())


@pytest.mark.parametrize("scheme", DYNAMIC)
def test_copies_and_state_dicts_compute_the_same(scheme: str, generator: torch.Generator) -> None:
    layer, x = made(scheme, generator), outliers(6, 64, generator=generator)
    with torch.device("meta"):
        other = quantized_linear(nn.Linear(64, 32), quant.scheme_named(scheme))
    other.load_state_dict(layer.state_dict(), strict=True, assign=True)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    copied = made(scheme, generator)
    copied.load_state_dict(layer.state_dict())
    assert torch.equal(copied(x), layer(x))


@pytest.mark.parametrize("scheme", ["fp8", "int8"])
def test_unquantized_weights_are_refused(scheme: str, generator: torch.Generator) -> None:
    layer = made(scheme, generator)
    name = {"fp8": "weight_e4m3", "int8": "weight_int8"}[scheme]
    state = {**layer.state_dict(), name: torch.randn(32, 64)}
    for assign in (False, True):
        with pytest.raises(RuntimeError, match=r"is torch\.float32, but this layer holds"):
            copy.deepcopy(layer).load_state_dict(state, assign=assign)
    network = nn.Sequential(layer)
    with pytest.raises(quant.QuantError, match="of another model or scheme"):
        quant.assign_(network, {f"0.{name}": state[name]})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_senseless_scales_are_refused(value: float, generator: torch.Generator) -> None:
    layer = made("fp8", generator)
    state = layer.state_dict()
    state["weight_scale"] = torch.full_like(state["weight_scale"], value)
    with pytest.raises(RuntimeError, match="positive and finite"):
        layer.load_state_dict(state)


def test_unequal_scales_of_a_per_tensor_layer_are_refused(generator: torch.Generator) -> None:
    layer = published(generator, 0.01)
    state = copy.deepcopy(layer.state_dict())
    state["input_scale"][7] *= 1.01
    with pytest.raises(RuntimeError, match="entries of input_scale differ"):
        layer.load_state_dict(state)
    with torch.device("meta"):
        network = nn.Sequential(PublishedPerTensorLinear(32, 16, quant.Published()))
    quant.assign_(network, {f"0.{name}": tensor for name, tensor in state.items()})
    with pytest.raises(quant.QuantError, match="entries of input_scale differ"):
        quant.check_(network)


def test_missing_tensors_are_named(generator: torch.Generator) -> None:
    source, target = model(generator), empty()
    quant.convert_(source, "fp8", QUANTIZED.__contains__)
    quant.convert_(target, "fp8", QUANTIZED.__contains__)
    state = dict(source.state_dict())
    state.pop("layers.2.mlp.linear_fc1.weight_scale")
    quant.assign_(target, state)
    with pytest.raises(quant.QuantError, match=r"lacks layers\.2\.mlp\.linear_fc1\.weight_scale"):
        quant.check_(target)


def test_input_is_not_changed(generator: torch.Generator) -> None:
    x = outliers(6, 64, generator=generator)
    kept = x.clone()
    for scheme in DYNAMIC:
        made(scheme, generator)(x)
    layer = published(generator, 0.01)
    layer(x[:, :32].contiguous())
    assert torch.equal(x, kept)


def views(x: Tensor) -> list[Tensor]:
    return [x.transpose(0, 1), x[:, ::2], x[:0], x[0, 0]]


@pytest.mark.parametrize("scheme", DYNAMIC)
def test_any_shape_goes_in(scheme: str, generator: torch.Generator) -> None:
    layer, x = made(scheme, generator), outliers(4, 6, 64, generator=generator)
    for view in views(x):
        result = layer(view)
        assert result.shape == (*view.shape[:-1], 32)
        assert torch.equal(result, layer(view.clone(memory_format=torch.contiguous_format)))
