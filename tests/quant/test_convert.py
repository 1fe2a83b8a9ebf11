"""convert_: what it swaps, what it says about it, on real and meta devices, on a transformers model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import quant
from quant.linear import QuantizedLinear
from tests.quant.models import QUANTIZED, empty, model
from tests.quant.reference import relative

ROOT = Path(__file__).parents[2]
# A whole small model of random weights; the single layers' errors are held in test_arithmetic.
LIMITS = {"fp8": 0.08, "int8": 0.03, "nf4": 0.25}


def bytes_of(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


@pytest.mark.parametrize("scheme", LIMITS)
def test_the_predicate_is_respected_and_the_report_true(scheme: str, generator: torch.Generator) -> None:
    network = model(generator)
    linears = {name for name, m in network.named_modules() if isinstance(m, nn.Linear)}
    x = torch.randn(2, 5, 8, generator=generator)
    before, truth, kept = bytes_of(network), network(x), dict(network.state_dict())
    report = quant.convert_(network, scheme, QUANTIZED.__contains__)
    found = {name for name, m in network.named_modules() if isinstance(m, QuantizedLinear)}
    assert found == {swap.name for swap in report.swapped} == QUANTIZED
    assert set(report.kept) == linears - QUANTIZED
    assert bytes_of(network) == before - report.bytes_before + report.bytes_after
    for swap in report.swapped:
        layer = network.get_submodule(swap.name)
        bias = swap.out_features * 4 if layer.bias is not None else 0
        planned = quant.scheme_named(scheme).weight_bytes(swap.out_features, swap.in_features, swap.name)
        assert swap.bytes_after == bytes_of(layer) == planned + bias
    for name, tensor in network.state_dict().items():
        if name.rpartition(".")[0] not in QUANTIZED:
            assert tensor is kept[name] or torch.equal(tensor, kept[name])
    assert 0 < relative(network(x), truth) < LIMITS[scheme]


@pytest.mark.parametrize("scheme", LIMITS)
def test_a_meta_model_declares_exactly_what_a_real_one_holds(scheme: str, generator: torch.Generator) -> None:
    real, declared = model(generator), empty()
    quant.convert_(real, scheme, QUANTIZED.__contains__)
    report = quant.convert_(declared, scheme, QUANTIZED.__contains__)
    assert report.bytes_after < report.bytes_before / 3
    state = real.state_dict()
    assert {n: (t.shape, t.dtype) for n, t in declared.state_dict().items()} == {
        n: (t.shape, t.dtype) for n, t in state.items()
    }
    assert all(t.is_meta for t in declared.state_dict().values())
    declared.load_state_dict(state, strict=True, assign=True)
    quant.check_(declared)
    x = torch.randn(3, 8, generator=generator)
    assert torch.equal(declared(x), real(x))


def test_published_declares_the_published_names() -> None:
    network = empty()
    report = quant.convert_(network, quant.Published(), QUANTIZED.__contains__)
    shapes = {n: tuple(t.shape) for n, t in network.state_dict().items()}
    assert shapes["layers.1.self_attention.linear_qkv.q.weight"] == (1, 64, 64)
    assert shapes["layers.1.self_attention.linear_qkv.q.input_scale"] == (64,)
    assert shapes["layers.1.mlp.linear_fc2.smooth_scale"] == (1, 256)
    assert shapes["layers.1.mlp.linear_fc2.input_scale"] == (1,)
    for swap in report.swapped:
        bias = swap.out_features * 4 if "mlp" in swap.name else 0
        assert swap.bytes_after == quant.Published().weight_bytes(swap.out_features, swap.in_features, swap.name) + bias


def test_published_needs_scales(generator: torch.Generator) -> None:
    with pytest.raises(quant.QuantError, match="from calibration"):
        quant.convert_(model(generator), "published", QUANTIZED.__contains__)


def test_what_cannot_work_is_refused(generator: torch.Generator) -> None:
    with pytest.raises(quant.QuantError, match="None of the"):
        quant.convert_(model(generator), "fp8", lambda name: False)
    with pytest.raises(quant.QuantError, match="wrap the linear"):
        quant.convert_(nn.Linear(8, 8), "fp8", lambda name: True)
    with pytest.raises(quant.QuantError, match="choose one of fp8, int8, nf4, published"):
        quant.convert_(model(generator), "fp4", lambda name: True)
    with pytest.raises(quant.QuantError, match="no backend"):
        quant.set_backend_(model(generator), "quick")


def test_a_linear_that_appears_twice_stays_one(generator: torch.Generator) -> None:
    network = model(generator)
    network.layers[2].mlp["linear_fc1"] = network.layers[1].mlp["linear_fc1"]
    report = quant.convert_(network, "int8", QUANTIZED.__contains__)
    assert network.layers[2].mlp["linear_fc1"] is network.layers[1].mlp["linear_fc1"]
    assert len(report.swapped) == len(QUANTIZED) - 1


@pytest.mark.parametrize("scheme", LIMITS)
def test_detect_tells_schemes_by_names(scheme: str, generator: torch.Generator) -> None:
    network = model(generator)
    assert quant.detect(network.state_dict()) is None
    quant.convert_(network, scheme, QUANTIZED.__contains__)
    found = quant.detect(network.state_dict())
    assert found is not None
    assert found.name == scheme


def test_default_selection_fits_the_models_it_is_made_for(generator: torch.Generator) -> None:
    names = [name for name, m in model(generator).named_modules() if isinstance(m, nn.Linear)]
    assert quant.Selection().choose(names) == QUANTIZED
    everything = quant.Selection(exclude="", keep_first_and_last=False)
    assert everything.choose(names) == set(names)
    assert quant.Selection(include=r"fc1$").choose(names) == {n for n in QUANTIZED if n.endswith("fc1")}
    with pytest.raises(quant.QuantError, match="regular expression"):
        quant.Selection(include="(").choose(names)


@pytest.mark.parametrize("scheme", LIMITS)
def test_a_transformers_model(scheme: str, generator: torch.Generator) -> None:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
    shape = {"vocab_size": 64, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 3, "num_heads": 4}
    config = T5Config(**shape, feed_forward_proj="gated-gelu")
    encoder = T5EncoderModel(config).eval().requires_grad_(False)
    tokens = torch.randint(64, (2, 7), generator=generator)
    truth = encoder(tokens).last_hidden_state
    report = quant.convert_(encoder, scheme, lambda name: "block" in name)
    assert len(report.swapped) == 3 * 7
    # T5 does not scale its attention logits, so random weights make it more sensitive than a trained one
    assert 0 < relative(encoder(tokens).last_hidden_state, truth) < 2 * LIMITS[scheme]


def test_quant_stands_alone() -> None:
    """No module here imports magi_lite, and the schemes need no torch."""
    code = (
        "import sys, pkgutil, importlib, quant\n"
        "import quant.schemes; print('torch' in sys.modules)\n"
        "names = [m.name for m in pkgutil.iter_modules(quant.__path__) if m.name != '__main__']\n"
        "[importlib.import_module('quant.' + name) for name in names]\n"
        "[getattr(quant, name) for name in quant.__all__]\n"
        "print(any(name.startswith('magi_lite') for name in sys.modules), 'bitsandbytes' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]
