"""An operation and the quantization of its result as one step: the plain path gives the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quant
from quant import fusion
from quant.convert import quantized_linear
from quant.kinds import FP8
from quant.published import PublishedSmoothLinear
from tests.quant.reference import outliers

SCHEMES: dict[str, quant.Scheme] = {
    "fp8": quant.Fp8(), "fp8 by tensor": quant.Fp8("tensor"), "int8": quant.Int8(), "nf4": quant.NF4(),
}  # fmt: skip


class GatedSiLU(nn.Module):
    formula = "gated_silu"

    def forward(self, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        return (F.silu(gate.float()) * value.float()).to(x.dtype)


def layer_norm(features: int, generator: torch.Generator, affine: bool = True) -> nn.LayerNorm:
    norm = nn.LayerNorm(features, eps=1e-6, elementwise_affine=affine).requires_grad_(False)
    if affine:
        norm.weight.copy_(1 + 0.3 * torch.randn(features, generator=generator))
        norm.bias.copy_(0.2 * torch.randn(features, generator=generator))
    return norm


def operations(features: int, generator: torch.Generator) -> dict[str, tuple[Callable[[Tensor], Tensor], int]]:
    """Each kind of operation, and the width of what it takes for a result of `features`."""
    return {
        "layer_norm": (layer_norm(features, generator), features),
        "plain_norm": (layer_norm(features, generator, affine=False), features),
        "gelu": (nn.GELU(), features),
        "gated_silu": (GatedSiLU(), 2 * features),
        "unknown": (torch.tanh, features),
    }


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["layer_norm", "plain_norm", "gelu", "gated_silu", "unknown"])
def test_the_plain_path_gives_the_bits_of_one_after_the_other(
    scheme: str, name: str, generator: torch.Generator
) -> None:
    before, inputs = operations(64, generator)[name]
    layers = [quantized_linear(nn.Linear(64, n, bias=False).requires_grad_(False), SCHEMES[scheme]) for n in (32, 16)]
    x = outliers(2, 9, inputs, generator=generator)
    apart = [layer(before(x)) for layer in layers]
    assert all(torch.equal(a, b) for a, b in zip(apart, quant.shared_forward(layers, x, before), strict=True))
    assert torch.equal(apart[0], layers[0].forward_quantized(layers[0].quantize_input(x, before)))
    mixed = [*layers, nn.Linear(64, 8)]
    assert all(
        torch.equal(layer(before(x)), b) for layer, b in zip(mixed, quant.shared_forward(mixed, x, before), strict=True)
    )


def test_static_scales_take_the_operation_too(generator: torch.Generator) -> None:
    layer = PublishedSmoothLinear(48, 16, quant.Published())
    layer.weight = torch.randn(1, 16, 48, generator=generator).to(FP8)
    layer.weight_scale, layer.input_scale = torch.tensor([0.5]), torch.tensor([0.02])
    layer.smooth_scale = 0.01 + torch.rand(1, 48, generator=generator)
    x = outliers(6, 48, generator=generator)
    assert torch.equal(layer.forward_quantized(layer.quantize_input(x, nn.GELU())), layer(F.gelu(x)))


def test_only_what_is_known_for_sure_is_fused(generator: torch.Generator) -> None:
    x = torch.randn(3, 8, generator=generator)
    norm = layer_norm(8, generator)
    found = fusion.known(norm, x)
    assert found is not None and torch.equal(found(x), norm(x))
    assert fusion.known(nn.GELU(), x).formula == "gelu"
    assert fusion.known(GatedSiLU(), x).formula == "gated_silu"
    assert fusion.known(nn.GELU("tanh"), x) is None
    assert fusion.known(nn.LayerNorm((3, 8)), x) is None
    assert fusion.known(layer_norm(8, generator).bfloat16(), x) is None
    assert fusion.known(torch.tanh, x) is None and fusion.known(None, x) is None
    handle = norm.register_forward_hook(lambda *_: None)
    assert fusion.known(norm, x) is None, "who watches a module must see it called"
    handle.remove()
    assert fusion.known(norm, x) is not None
