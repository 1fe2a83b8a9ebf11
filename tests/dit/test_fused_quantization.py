"""Norms and activations that are quantized as they are computed: what the transformer hands over, and what it gets."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from magi_lite.dit.model import DiT
from magi_lite.models import DiTConfig
from quant import NF4, Fp8, Int8, Scheme, activations, compiled, convert_
from quant.fusion import Operation
from quant.linear import QuantizedLinear
from tests.dit.conftest import LARGE_SWITCHES, SMALL, make_inputs

PLAIN_ROWS = activations.per_token


def quantized(config: DiTConfig, scheme: Scheme) -> tuple[DiT, int]:
    """A transformer with every linear of its layers quantized, and how many layers it has."""
    torch.manual_seed(4)
    dit = DiT(config).requires_grad_(False)
    convert_(dit, scheme, lambda name: "layers." in name and any(n in name for n in ("qkv", "linear_proj", "mlp")))
    return dit, config.num_layers


def velocity(dit: DiT, config: DiTConfig) -> Tensor:
    given = make_inputs(config, 33, 1, 2)
    with torch.no_grad():
        return dit(given.latents, given.timesteps, given.captions(dit), first_chunk=0, kv_ranges=[(0, 1), (0, 2)])


@pytest.mark.parametrize("config", [SMALL, LARGE_SWITCHES])
@pytest.mark.parametrize("scheme", [Fp8(), Int8()])
@pytest.mark.parametrize("sliced", [False, True])
def test_what_can_be_fused_is_and_gives_the_same(
    config: DiTConfig, scheme: Scheme, sliced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dit, layers = quantized(config, scheme)
    if sliced:
        dit.mlp_slice = dit.attention_slice = 5
    unfused = velocity(dit, config)
    fused: Counter[str] = Counter()

    def quantize_rows(x: Tensor, kind: torch.dtype, operation: Operation | None = None) -> tuple[Tensor, Tensor]:
        fused[operation.formula if operation else "alone"] += 1
        with monkeypatch.context() as patch:
            patch.setattr(activations, "fast_kernels", lambda *_: None)
            return PLAIN_ROWS(x, kind, operation)

    monkeypatch.setattr(activations, "fast_kernels", lambda *_: SimpleNamespace(quantize_rows=quantize_rows))
    assert torch.equal(velocity(dit, config), unfused)
    activation = "gated_silu" if config.gated_linear_unit else "gelu"
    assert fused.keys() == {"layer_norm", activation, "alone"}
    if not sliced:  # the norms before attention and MLP; the input of the projection alone
        assert fused == {"layer_norm": 2 * layers, activation: layers, "alone": layers}


@pytest.mark.parametrize("config", [SMALL, LARGE_SWITCHES])
@pytest.mark.parametrize(("scheme", "tolerance"), [(Fp8(), 0.02), (Int8(), 0.005)])
def test_formulas_of_their_own_are_as_near_as_rounding(
    config: DiTConfig, scheme: Scheme, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    dit, _ = quantized(config, scheme)
    unfused = velocity(dit, config)
    monkeypatch.setattr(compiled, "_compiled", lambda function: function)
    monkeypatch.setattr(activations, "fast_kernels", lambda *_: compiled)
    assert (velocity(dit, config) - unfused).norm() <= tolerance * unfused.norm()


def test_weights_of_four_bits_take_their_input_as_it_is() -> None:
    dit, _ = quantized(SMALL, NF4())
    torch.manual_seed(4)
    plain = DiT(SMALL).requires_grad_(False)
    for name, layer in dit.named_modules():
        if isinstance(layer, QuantizedLinear):
            plain.get_submodule(name).weight.copy_(layer.dequantized())
    torch.testing.assert_close(velocity(dit, SMALL), velocity(plain, SMALL), rtol=1e-4, atol=1e-4)


def test_the_activation_adds_no_name() -> None:
    assert not any("activation" in name for config in (SMALL, LARGE_SWITCHES) for name in DiT(config).state_dict())
