"""Attention: kernels against the plain formula, grouped against expanded, and which kernel is chosen."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from magi_lite import attention_trial
from magi_lite.attention import SDPA, available, by_group, choose, masked_sdpa, reads_groups
from magi_lite.errors import InputError


def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """The formula in float64, every head by itself."""
    q, k, v = query.double(), key.double(), value.double()
    per_group = q.shape[2] // k.shape[2]
    result = torch.empty_like(q)
    for n in range(q.shape[0]):
        seen = slice(None) if mask is None else mask[n]
        for head in range(q.shape[2]):
            group = head // per_group
            scores = q[n, :, head] @ k[n, seen, group].T / math.sqrt(q.shape[3])
            result[n, :, head] = torch.softmax(scores, dim=-1) @ v[n, seen, group]
    return result


def random_qkv(heads: int, groups: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 13, heads, 16, generator=generator)
    key, value = (torch.randn(2, 29, groups, 16, generator=generator) for _ in range(2))
    return query, key, value


@pytest.mark.parametrize("heads,groups", [(6, 2), (4, 4), (6, 1)])
def test_sdpa_equals_the_formula_and_expanded_groups(heads: int, groups: int) -> None:
    query, key, value = random_qkv(heads, groups)
    found = SDPA(query, key, value)
    assert found.shape == query.shape
    assert (found - plain(query, key, value)).abs().max() < 2e-6
    expanded = SDPA(query, *(part.repeat_interleave(heads // groups, dim=2) for part in (key, value)))
    assert (found - expanded).abs().max() < 2e-6


def test_masked_rows_equal_the_formula() -> None:
    query, key, value = random_qkv(6, 2, seed=1)
    mask = torch.arange(29) < torch.tensor([[1], [17]])
    assert (masked_sdpa(query, key, value, mask) - plain(query, key, value, mask)).abs().max() < 2e-6


def test_on_a_cpu_torch_serves_and_is_named() -> None:
    assert available("cpu", torch.bfloat16) == ("sdpa",)
    assert choose().name == choose("sdpa").name == "sdpa"


@pytest.mark.parametrize("name", ["flash", "sage", "quick"])
def test_a_kernel_that_cannot_serve_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}.* cannot be used here .cpu, float32.; use sdpa"):
        choose(name)


def test_half_precision_is_a_condition_of_the_compiled_kernels() -> None:
    assert available("cuda", torch.float32) == ("sdpa",)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", available("cuda", torch.bfloat16))
def test_every_kernel_of_a_gpu_equals_the_formula(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(1, 300, 24, 128, generator=generator).to("cuda", torch.bfloat16)
    key, value = (torch.randn(1, 700, 8, 128, generator=generator).to("cuda", torch.bfloat16) for _ in range(2))
    found, wanted = choose(name, "cuda", torch.bfloat16)(query, key, value).double(), plain(query, key, value)
    limit = 0.05 if name == "sage" else 0.01  # SageAttention works in 8 bits
    assert ((found - wanted).norm() / wanted.norm()).item() < limit


@pytest.mark.parametrize("heads,groups", [(6, 2), (6, 1)])
def test_groups_one_by_one_equal_the_formula(heads: int, groups: int) -> None:
    query, key, value = random_qkv(heads, groups, seed=2)
    mask = torch.arange(29) < torch.tensor([[3], [29]])
    for seen in (None, mask):
        parts = (x.transpose(1, 2) for x in (query, key, value))
        found = by_group(*parts, None if seen is None else seen[:, None, None]).transpose(1, 2)
        assert (found - plain(query, key, value, seen)).abs().max() < 2e-6


@pytest.mark.parametrize(
    ("dtype", "capability", "masked", "reads"),
    [
        (torch.bfloat16, (8, 9), False, True),
        (torch.bfloat16, (8, 9), True, False),
        (torch.float32, (8, 9), False, False),
        (torch.bfloat16, (7, 5), False, False),
    ],
)
def test_only_flash_reads_groups_on_a_card(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, capability: tuple[int, int], masked: bool, reads: bool
) -> None:
    """Where flash cannot serve, torch would take the plain formula and write out every score."""

    class OnCard:
        is_cuda, device = True, torch.device("cuda", 0)

        def __init__(self) -> None:
            self.dtype = dtype

    monkeypatch.setattr("magi_lite.machine.devices.capability", lambda index: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True, raising=False)
    assert reads_groups(OnCard(), torch.ones(1) if masked else None) is reads  # type: ignore[arg-type]


@pytest.mark.parametrize("message", ["cuDNN Frontend error: No execution plans", "Expected mha_graph.execute(...)"])
def test_where_cudnn_refuses_the_other_kernels_serve(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on, calls = [True], []
    plain_one = torch.nn.functional.scaled_dot_product_attention

    def attention(*args: Tensor, **options: object) -> Tensor:
        calls.append(on[0])
        if on[0]:
            raise RuntimeError(message)
        return plain_one(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: on[0])
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda enabled: on.__setitem__(0, enabled))
    query, key, value = random_qkv(6, 2, seed=3)
    for _ in range(2):
        assert (SDPA(query, key, value) - plain(query, key, value)).abs().max() < 2e-6
    assert calls == [True, False, False]


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")]
)
def test_other_errors_of_attention_are_told(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(*_: Tensor, **__: object) -> Tensor:
        raise error

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda _: 1 // 0)
    with pytest.raises(RuntimeError, match=str(error)):
        SDPA(*random_qkv(4, 4))


# --- compiled kernels are tried in a process of their own -------------------------------------------------------------

RIGHT = """
from torch.nn.functional import scaled_dot_product_attention as sdpa
def attend(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return sdpa(q, k, v, enable_gqa=True).transpose(1, 2)
"""
CALL = {"flash": "def flash_attn_func(q, k, v): ", "sage": "def sageattn(q, k, v, tensor_layout, is_causal): "}
PACKAGE = {"flash": "flash_attn", "sage": "sageattention"}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Installs a kernel's package with the given body, for processes that are started from here."""

    def install(name: str, body: str, before: str = "") -> None:
        (tmp_path / f"{PACKAGE[name]}.py").write_text(f"{RIGHT}{before}\n{CALL[name]}{body}\n")

    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    attention_trial.problem.cache_clear()
    yield install
    attention_trial.problem.cache_clear()


@pytest.mark.parametrize(
    ("body", "before", "sentence"),
    [
        ("return attend(q, k, v)", "", None),
        ("return attend(q, k, v) * 1.2", "", "its result is 20"),
        ("return attend(q, k, v) * float('nan')", "", "not finite"),
        ("return attend(q, k, v)[:, 1:]", "", "it gives"),
        ("assert False, 'SM90 kernel is not available'", "", "it fails: SM90 kernel is not available"),
        ("raise RuntimeError('CUDA error: no kernel image\\nmore')", "", "it fails: CUDA error: no kernel image$"),
        ("import os; os.abort()", "", "it ends the program .SIGABRT."),
        ("import os; os._exit(3)", "", "it ends the program .exit code 3."),
        ("return attend(q, k, v)", "raise ImportError('undefined symbol')", "it does not load: undefined symbol"),
    ],
)
def test_a_kernel_is_tried_before_it_is_trusted(
    body: str, before: str, sentence: str | None, package: Callable[..., None]
) -> None:
    package("flash", body, before)
    found = attention_trial.problem("flash", "cpu", "float32")
    assert found is None if sentence is None else re.search(sentence, str(found)), found


def test_sage_may_be_less_exact_than_flash(package: Callable[..., None]) -> None:
    for name in ("flash", "sage"):
        package(name, "return attend(q, k, v) * 1.03")
    assert attention_trial.problem("sage", "cpu", "float32") is None
    assert "3.0 % off" in str(attention_trial.problem("flash", "cpu", "float32"))


def test_a_kernel_that_hangs_is_given_up(package: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    package("flash", "import time; time.sleep(600)")
    monkeypatch.setattr(attention_trial, "PATIENCE_SECONDS", 15.0)
    assert attention_trial.problem("flash", "cpu", "float32") == "it did not answer within 15 seconds"


def test_the_trial_is_asked_once_and_the_next_kernel_serves(
    package: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    package("flash", "raise RuntimeError('no kernel image is available')")
    monkeypatch.setattr("magi_lite.attention.available", lambda device, dtype: ("flash", "sdpa"))
    for _ in range(2):
        chosen = choose("auto", "cpu", torch.float32)
        assert chosen.name == "sdpa" and chosen(*random_qkv(6, 2)).shape == (2, 13, 6, 16)
        assert chosen.notice == (
            "The attention kernel flash is installed and not used, because it fails: no kernel image is available."
        )
    with pytest.raises(InputError, match=r"'flash' cannot be used here .cpu, float32., because it fails: .*; use sdpa"):
        choose("flash", "cpu", torch.float32)
    assert attention_trial.problem.cache_info().misses == 1


def test_the_trials_formula_is_that_of_the_tests() -> None:
    query, key, value = random_qkv(6, 2, seed=5)
    assert (attention_trial.plain(query, key, value) - plain(query, key, value)).abs().max() < 1e-12
