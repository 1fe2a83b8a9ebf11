"""Calibration: what is recorded, and that the scales found from it are good ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import quant
from quant.calibrate import published_tensors
from quant.folder import convert_folder
from quant.published import PublishedPerTensorLinear, PublishedSmoothLinear
from tests.quant.models import QUANTIZED, empty, model
from tests.quant.reference import outliers, relative
from tests.quant.test_folder import write_checkpoint


def test_absmax_is_exact_and_rows_are_real(generator: torch.Generator) -> None:
    network = nn.Sequential(nn.Linear(12, 5))
    seen = [torch.randn(n, 3, 12, generator=generator) for n in (1, 7, 4, 20)]
    with quant.Recorder(network, lambda name: True, rows=10) as recorder:
        outputs = [network(x) for x in seen]
    recording = recorder.recording()
    everything = torch.cat([x.flatten(0, 1) for x in seen])
    assert torch.equal(recording.absmax["0"], everything.abs().amax(0))
    rows = recording.rows["0"]
    assert rows.shape == (10, 12)
    assert all(bool((everything == row).all(1).any()) for row in rows)
    assert len(torch.unique(rows, dim=0)) == 10
    assert all(torch.equal(network(x), y) for x, y in zip(seen, outputs, strict=True))
    network(torch.full((1, 12), 1e6))  # after the recorder is left, nothing is seen
    assert torch.equal(recorder.recording().absmax["0"], recording.absmax["0"])


def test_the_sample_is_even(generator: torch.Generator) -> None:
    """Rows of early and late calls are kept alike: 400 rows in 4 calls of very different sizes, 100 kept."""
    sizes, counts = (10, 200, 40, 150), torch.zeros(4)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    network = nn.Sequential(nn.Linear(1, 1))
    for trial in range(20):
        with quant.Recorder(network, lambda name: True, rows=100, seed=seed + trial) as recorder:
            for call, size in enumerate(sizes):
                network(torch.full((size, 1), float(call)))
        counts += torch.bincount(recorder.recording().rows["0"].long().flatten(), minlength=4)
    expected = torch.tensor(sizes) / 400 * 2000
    assert bool(((counts - expected).abs() < 5 * (expected * 0.75).sqrt()).all()), counts  # five standard deviations


def test_recordings_survive_the_disk(tmp_path: Path, generator: torch.Generator) -> None:
    network = model(generator)
    with quant.Recorder(network, QUANTIZED.__contains__) as recorder:
        network(torch.randn(4, 9, 8, generator=generator))
    recording = recorder.recording()
    recording.write(tmp_path / "activations.safetensors")
    again = quant.read_recording(tmp_path / "activations.safetensors")
    assert again.absmax.keys() == recording.absmax.keys() == QUANTIZED
    assert again.digest() == recording.digest()
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    for name in ("bad.safetensors", "absent.safetensors"):
        with pytest.raises(quant.QuantError, match="cannot be read"):
            quant.read_recording(tmp_path / name)


def test_layers_that_never_ran_are_named(generator: torch.Generator) -> None:
    network = model(generator)
    with quant.Recorder(network, QUANTIZED.__contains__) as recorder:
        network.layers[1](torch.randn(4, 64, generator=generator))
    with pytest.raises(quant.QuantError, match=r"layers\.2\..* never ran"):
        recorder.recording()
    with pytest.raises(quant.QuantError, match="No linear"):
        quant.Recorder(network, lambda name: False)


def recorded(x: torch.Tensor, name: str) -> quant.Recording:
    return quant.Recording({name: x.abs().amax(0)}, {name: x[:64]})


def test_alpha_is_the_best_of_those_searched(generator: torch.Generator) -> None:
    x = outliers(256, 96, generator=generator)
    weight = torch.randn(32, 96, generator=generator) * torch.exp(torch.randn(96, generator=generator))
    scheme, recording = quant.Published(), recorded(x, "linear_fc2")
    alphas = (0.4, 0.45, 0.5, 0.55, 0.6)
    each = {a: published_tensors(weight, recording, "linear_fc2", scheme, (a,)).error for a in alphas}
    best = published_tensors(weight, recording, "linear_fc2", scheme, alphas)
    assert best.error == min(each.values())
    assert each[best.alpha] == best.error
    assert len(set(each.values())) > 1, "the data cannot tell alphas apart"


def test_smoothing_follows_its_formula(generator: torch.Generator) -> None:
    """s = max|X|^a / max|W|^(1-a) (SmoothQuant, eq. 4): W s is what is stored, s * input_scale what divides."""
    x, weight = outliers(200, 48, generator=generator), torch.randn(24, 48, generator=generator)
    fitted = published_tensors(weight, recorded(x, "linear_proj"), "linear_proj", quant.Published(), (0.45,))
    s = x.double().abs().amax(0) ** 0.45 / weight.double().abs().amax(0) ** 0.55
    input_scale = (x.double().abs().amax(0) / s).max() / 448
    assert fitted.tensors["smooth_scale"].shape == (1, 48)
    assert relative(fitted.tensors["smooth_scale"][0], s * input_scale) < 1e-6
    assert relative(fitted.tensors["input_scale"], input_scale[None]) < 1e-6
    stored = fitted.tensors["weight"][0].double() * fitted.tensors["weight_scale"].double()
    assert relative(stored, weight.double() * s) < 0.04  # e4m3 of a tensor with one scale
    assert float((x.double() / (s * input_scale)).abs().max()) == pytest.approx(448, rel=1e-6)


def test_a_calibrated_model_is_close_and_loads_as_a_published_one(generator: torch.Generator) -> None:
    network = model(generator)
    x = torch.randn(8, 16, 8, generator=generator)
    with quant.Recorder(network, QUANTIZED.__contains__) as recorder:
        truth = network(x)
    report, fits = quant.calibrate_(network, recorder.recording())
    assert {swap.name for swap in report.swapped} == QUANTIZED == fits.keys()
    for name, fitted in fits.items():
        smooth = name.endswith(("linear_proj", "linear_fc2"))
        assert isinstance(network.get_submodule(name), PublishedSmoothLinear if smooth else PublishedPerTensorLinear)
        assert (fitted.alpha is not None) == smooth
        assert 0 < fitted.error < 0.06
    assert 0 < relative(network(x), truth) < 0.08
    attention = network.layers[1].self_attention.linear_qkv
    assert len({linear.input_key for linear in attention.values()}) == 1, "one input, one scale: quantized once"
    loaded = empty()
    quant.convert_(loaded, "published", QUANTIZED.__contains__)
    loaded.load_state_dict(network.state_dict(), strict=True, assign=True)
    quant.check_(loaded)
    assert torch.equal(loaded(x), network(x))


def test_offline_calibrated_conversion_is_the_same_bits(tmp_path: Path, generator: torch.Generator) -> None:
    network = model(generator)
    with quant.Recorder(network, QUANTIZED.__contains__) as recorder:
        network(torch.randn(8, 16, 8, generator=generator))
    recording = recorder.recording()
    source = write_checkpoint(tmp_path / "in", network)
    convert_folder(source, tmp_path / "out", quant.Published(), recording=recording)
    quant.calibrate_(network, recording)
    loaded = empty()
    quant.load_converted_(loaded, tmp_path / "out")
    for name, tensor in network.state_dict().items():
        if name.rpartition(".")[0] in QUANTIZED and not name.endswith("bias"):
            assert torch.equal(loaded.state_dict()[name].view(torch.uint8), tensor.view(torch.uint8)), name
    with pytest.raises(quant.QuantError, match="needs a recorded calibration"):
        convert_folder(source, tmp_path / "other", quant.Published())


def test_another_models_calibration_is_refused(generator: torch.Generator) -> None:
    x = outliers(10, 7, generator=generator)
    with pytest.raises(quant.QuantError, match="no linear linear_x"):
        quant.calibrate_(model(generator), recorded(x, "linear_x"))
    with pytest.raises(quant.QuantError, match="lacks layers"):
        quant.calibrate_(model(generator), recorded(x, "layers.1.mlp.linear_fc1"))


def test_a_linear_that_appears_twice_is_calibrated_as_one(generator: torch.Generator) -> None:
    shared = nn.Linear(32, 32)
    network = nn.Sequential(shared, nn.GELU(), shared).requires_grad_(False)
    x = torch.randn(40, 32, generator=generator)
    with quant.Recorder(network, lambda name: True) as recorder:
        truth = network(x)
    report, _ = quant.calibrate_(network, recorder.recording())
    assert network[0] is network[2]
    assert isinstance(network[0], PublishedPerTensorLinear)
    assert len(report.swapped) == 1 and report.kept == ()
    assert relative(network(x), truth) < 0.08


def test_inputs_given_by_name_are_recorded(generator: torch.Generator) -> None:
    network, x = nn.Sequential(nn.Linear(8, 4)), torch.randn(5, 8, generator=generator)
    with quant.Recorder(network, lambda name: True) as recorder:
        network[0](input=x)
    assert torch.equal(recorder.recording().absmax["0"], x.abs().amax(0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_runs_that_overflowed_are_refused(value: float, generator: torch.Generator) -> None:
    network, x = nn.Sequential(nn.Linear(8, 4)), torch.randn(5, 8, generator=generator)
    x[2, 3] = value
    with quant.Recorder(network, lambda name: True) as recorder:
        network(x)
    with pytest.raises(quant.QuantError, match="calibration of 0 holds NaN or infinity"):
        quant.calibrate_(network, recorder.recording())
    assert type(network[0]) is nn.Linear
