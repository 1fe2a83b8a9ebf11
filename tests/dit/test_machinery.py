"""What a forward must not do: wait for the device, quantize an input four times, act at import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from magi_lite.dit import layers
from magi_lite.dit.layers import Float32Linear
from magi_lite.dit.model import DiT
from quant import Fp8, convert_, shared_forward
from quant.linear import QuantizedLinear
from tests.dit.conftest import CHUNK_FRAMES, LARGE_SWITCHES, SMALL, DictStore, make_inputs


def test_no_forward_waits_for_the_device() -> None:
    """Fake tensors have no values: reading one, as `.item()`, `if tensor` or indexing by it do, raises."""
    for config in (SMALL, LARGE_SWITCHES):
        given = make_inputs(config, 31, 1, 2)
        with FakeTensorMode(allow_non_fake_inputs=False) as mode, torch.inference_mode():
            dit = DiT(config).to_precision(torch.bfloat16)
            dit.mlp_slice = dit.attention_slice = 5
            latents, timesteps, words = (mode.from_tensor(x) for x in (given.latents, given.timesteps, given.words))
            captions = dit.encode_captions(words, given.lengths)
            store = DictStore(tokens=CHUNK_FRAMES * 2 * 3)
            for first in (0, 2):
                velocity = dit(
                    latents,
                    timesteps,
                    captions,
                    first_chunk=first,
                    kv_ranges=[(0, first + 1), (0, first + 2)],
                    store=store,
                    write=True,
                    step_size=4.0,
                )
            assert velocity.shape == given.latents.shape and velocity.dtype == torch.float32


def test_an_input_that_four_linears_share_is_quantized_once() -> None:
    dit = DiT(SMALL).requires_grad_(False)
    given = make_inputs(SMALL, 32, 1, 2)
    convert_(dit, Fp8(), lambda name: "layers.1." in name and "linear_qkv" in name)
    project = dit.videodit_blocks.layers[1].self_attention.linear_qkv
    linears = [project.q, project.qx, project.k, project.v]
    assert all(isinstance(linear, QuantizedLinear) for linear in linears)
    quantized: list[str] = []
    for linear in linears:
        original = linear.quantize_input
        linear.quantize_input = lambda *x, original=original: (quantized.append("once"), original(*x))[1]
    x = torch.randn(1, 2, 12, SMALL.hidden_size)
    shared = shared_forward(linears, x)
    assert len(quantized) == 1
    assert all(torch.equal(ours, linear(x)) for ours, linear in zip(shared, linears, strict=True))
    quantized.clear()
    dit(given.latents, given.timesteps, given.captions(dit), first_chunk=0, kv_ranges=[(0, 1), (0, 2)])
    assert len(quantized) == 1


class _Scaled(QuantizedLinear):
    """A linear with an activation scale of its own, which gives back what it takes."""

    def __init__(self, key: float) -> None:
        super().__init__(2, 2)
        self.key = key

    @property
    def input_key(self) -> float:
        return self.key

    def quantize_input(self, x: Tensor, before: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        return (x if before is None else before(x)) * self.key

    def forward_quantized(self, quantized: Tensor) -> Tensor:
        return quantized / self.key

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_quantized(self.quantize_input(x))


def test_linears_of_different_scales_do_not_share() -> None:
    x = torch.tensor([1.0, 2.0])
    for scales in ((2.0, 4.0), (2.0, 2.0)):
        linears = [_Scaled(scale) for scale in scales]
        assert all(torch.equal(y, x) for y in shared_forward(linears, x))
        assert all(torch.equal(y, x.neg()) for y in shared_forward(linears, x, torch.neg))


def test_single_linear_gives_float32_of_float32() -> None:
    linear = Float32Linear(40, 8, bias=False).requires_grad_(False).bfloat16()
    x = torch.randn(3, 40).bfloat16()
    wanted = x.double() @ linear.weight.double().T
    assert linear(x).dtype == torch.float32
    assert (linear(x) - wanted).abs().max() < 1e-5


def test_single_linear_in_slices_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magi_lite.dit.layers.SLICE_ROWS", 4)
    linear = Float32Linear(40, 8, bias=False).requires_grad_(False).bfloat16()
    x = torch.randn(11, 40).bfloat16()
    assert (linear.in_slices(x) - x.double() @ linear.weight.double().T).abs().max() < 1e-5


def test_a_wide_product_is_tried_and_believed_only_if_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")

    ones, serves = torch.ones, layers._wide_product_serves.__wrapped__
    monkeypatch.setattr(torch, "ones", lambda *size, device=None, **more: ones(*size, **more))
    for product, wanted in (
        (lambda a, b, out_dtype: (a.float() @ b.float()).to(out_dtype), True),
        (lambda a, b, out_dtype: (a.float() @ b.float() + 1).to(out_dtype), False),
        (refused, False),
    ):
        monkeypatch.setattr(torch, "mm", product)
        assert serves(torch.device("cuda", 0)) is wanted


def test_import_has_no_side_effects() -> None:
    program = (
        "import sys, threading\n"
        "import torch\n"
        "before = (threading.active_count(), torch.random.initial_seed(), torch.get_num_threads())\n"
        "import magi_lite.dit.model, magi_lite.attention\n"
        "assert before == (threading.active_count(), torch.random.initial_seed(), torch.get_num_threads())\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert not any(m.split('.')[0] in ('flash_attn', 'sageattention') for m in sys.modules)\n"
        "names = {'quant', 'quant.errors', 'quant.schemes', 'quant.storage', 'quant.storage.files'}\n"  # none computes
        "assert not {m for m in sys.modules if m.split('.')[0] == 'quant'} - names\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
