"""What is slower than it need be on a card is said with what mends it, and the faster way of scaling is taken."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import quant
from quant import fp8, gate
from quant.fp8 import Fp8Linear

CARD = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A card of compute capability 8.9 whose kernels work, on which nothing computes."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: (8, 9))
    monkeypatch.setattr(gate, "product_disagreement", lambda *_: None)
    monkeypatch.setattr(fp8, "_fault", lambda *_, **__: "")
    cached = (gate.triton_problem, fp8.products_missing, fp8.row_scales_missing)
    for function in cached:
        function.cache_clear()
    yield
    monkeypatch.undo()
    for function in cached:
        function.cache_clear()


def model(scheme: object) -> nn.Module:
    made = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16))
    quant.convert_(made, scheme, lambda name: True)
    return made


def test_a_card_with_everything_says_nothing(card: None) -> None:
    assert quant.slow_paths(model(quant.Fp8()), CARD) == []
    assert quant.slow_paths(model(quant.Fp8()), torch.device("cpu")) == []


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(
    ("system", "problem", "words"),
    [
        ("linux", "RuntimeError: Failed to find C compiler. Please specify via CC", "sudo apt install gcc"),
        ("linux", "CalledProcessError: Command '['/usr/bin/gcc', '/tmp/x/main.c'...' returned", "-dev"),
        ("win32", "ImportError: DLL load failed", "ImportError: DLL load failed"),
        ("linux", "it gives other bits than plain arithmetic", "other bits"),
    ],
)
def test_a_triton_that_cannot_compile_is_said(
    system: str, problem: str, words: str, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(gate, "product_disagreement", lambda *_: problem)
    (sentence,) = quant.slow_paths(model(quant.Int8()), CARD)
    assert words in sentence and "slower" in sentence


@pytest.mark.parametrize(
    ("system", "torch_version", "command"),
    [
        ("linux", "2.13.0+cu130", 'pip install "triton>=3.7,<3.8".'),
        ("win32", "2.11.0+cu128", 'pip install "triton-windows>=3.6,<3.7".'),
        ("win32", "2.8.0+cu126", 'pip install "triton-windows>=3.4,<3.5".'),
        ("win32", "2.99.0.dev20270101", 'pip install "triton-windows>=3.7,<3.8".'),
    ],
)
def test_a_missing_triton_is_said_with_the_command(
    system: str, torch_version: str, command: str, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(torch, "__version__", torch_version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (sentence,) = quant.slow_paths(nn.Linear(2, 2), CARD)
    assert sentence.endswith(command)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(("version", "said"), [("3.8.0", True), ("3.6.0", False)])
def test_a_triton_of_another_torch_is_named(
    version: str, said: bool, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quant import kernels

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu128")
    monkeypatch.setattr(kernels.triton, "__version__", version)
    monkeypatch.setattr(gate, "product_disagreement", lambda *_: "ImportError: cannot import name 'AttrsDescriptor'")
    (sentence,) = quant.slow_paths(model(quant.Int8()), CARD)
    assert "AttrsDescriptor" in sentence and ('pip install "triton-windows>=3.6,<3.7"' in sentence) is said


@pytest.mark.parametrize("capability", [(7, 5), (6, 1)])
def test_cards_that_triton_does_not_support_miss_nothing(
    capability: tuple[int, int], card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: capability)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert quant.slow_paths(nn.Linear(2, 2), CARD) == []


def test_missing_row_scales_are_said_once_and_only_where_they_are_used(
    card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quant.advice.row_scales_missing", lambda index, fast: "CUBLAS_STATUS_NOT_SUPPORTED")
    (sentence,) = quant.slow_paths(model(quant.Fp8()), CARD)
    assert "scale by row" in sentence and "CUBLAS_STATUS_NOT_SUPPORTED" in sentence
    assert quant.slow_paths(model(quant.Fp8("tensor")), CARD) == []
    assert quant.slow_paths(model(quant.Int8()), CARD) == []


def test_products_that_a_card_refuses_are_said_and_made_the_plain_way(
    card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = SimpleNamespace(is_cuda=True, device=CARD)
    monkeypatch.setattr(fp8, "has_fast_path", lambda *_: True)
    assert fp8._is_fast(values, values, True, torch.bfloat16)
    fp8.products_missing.cache_clear()
    monkeypatch.setattr(fp8, "_fault", lambda *_, **__: "CUBLAS_STATUS_NOT_SUPPORTED")
    assert not fp8._is_fast(values, values, True, torch.bfloat16)
    for scheme in (quant.Fp8(), quant.Fp8("tensor")):
        (sentence,) = quant.slow_paths(model(scheme), CARD)
        assert "made in bfloat16" in sentence and "CUBLAS_STATUS_NOT_SUPPORTED" in sentence
    assert quant.slow_paths(model(quant.Int8()), CARD) == []


@pytest.mark.parametrize("by_row", [True, False])
def test_a_product_is_tried_and_believed_only_if_it_is_right(by_row: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ones, full, product = torch.ones, torch.full, torch._scaled_mm
    monkeypatch.setattr(torch, "ones", lambda *size, device=None, **more: ones(*size, **more))
    monkeypatch.setattr(torch, "full", lambda *given, device=None, **more: full(*given, **more))
    monkeypatch.setattr(fp8, "TRIED", (32, 64, 48))

    def fault(made: object) -> str:
        monkeypatch.setattr(torch, "_scaled_mm", made)
        return fp8._fault(0, False, torch.bfloat16, by_row)

    def refusing(*_: object, **__: object) -> None:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED when calling cublasLtMatmul\nand so on")

    def full_card(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert fault(product) == ""
    assert fault(lambda *given, **more: product(*given, **more) + 1) == "their result is wrong"
    assert fault(refusing) == "CUBLAS_STATUS_NOT_SUPPORTED when calling cublasLtMatmul"
    with pytest.raises(torch.OutOfMemoryError):
        fault(full_card)


@pytest.mark.parametrize(("refused", "left"), [("product", "afterwards"), ("afterwards", "product")])
def test_a_way_of_scaling_that_a_size_refuses_is_not_the_faster_one(
    refused: str, left: str, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def matmul(*given: object) -> None:
        if given[-1] == refused:
            raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")

    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda other: 1.0)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: event)
    monkeypatch.setattr(fp8, "_tensor_core_matmul", matmul)
    monkeypatch.setattr(torch, "ones", lambda *size, **_: torch.empty(1))
    assert quant.faster_row_scales(0) == left


@pytest.mark.parametrize(
    ("by_product", "afterwards", "missing", "faster"),
    [
        (1.0, 2.0, "", "product"),
        (2.0, 1.0, "", "afterwards"),
        (1.0, 0.99, "", "product"),  # no gain worth another rounding
        (1.0, 2.0, "no kernel", "afterwards"),
    ],
)
def test_the_faster_way_of_scaling_is_found(
    by_product: float, afterwards: float, missing: str, faster: str, card: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    costs = {"product": by_product, "afterwards": afterwards}

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0.0

        def record(self) -> None:
            self.at = clock.now

        def synchronize(self) -> None: ...

        def elapsed_time(self, other: Event) -> float:
            return other.at - self.at

    def matmul(*given: object) -> None:
        clock.now += costs[str(given[-1])]

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(fp8, "row_scales_missing", lambda index, fast: missing)
    monkeypatch.setattr(fp8, "_tensor_core_matmul", matmul)
    monkeypatch.setattr(torch, "ones", lambda *size, **_: torch.empty(1))
    assert quant.faster_row_scales(0) == faster


def test_every_fp8_layer_follows(card: None) -> None:
    made = model(quant.Fp8())
    quant.set_row_scales_(made, "afterwards")
    layers = [layer for layer in made.modules() if isinstance(layer, Fp8Linear)]
    assert [layer.row_scales for layer in layers] == ["afterwards"] * len(layers) and layers


def test_which_way_serves_hangs_on_type_and_choice(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    values = SimpleNamespace(device=CARD)
    by_row = fp8._scales_by_row
    assert by_row(values, torch.bfloat16, True, "product")
    assert not by_row(values, torch.bfloat16, True, "afterwards")
    assert not by_row(values, torch.float32, True, "product")
    monkeypatch.setattr(fp8, "row_scales_missing", lambda index, fast: "no kernel")
    assert not by_row(values, torch.bfloat16, True, "product")
