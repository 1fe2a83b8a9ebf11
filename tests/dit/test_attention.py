"""Attention: kernels against the plain formula, grouped against expanded, and which kernel is chosen."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from magi_lite import attention, attention_choice, attention_trial
from magi_lite.attention import SDPA, available, by_group, choose, masked_sdpa, reads_groups
from magi_lite.attention_choice import Trial
from magi_lite.errors import InputError
from magi_lite.machine import findings


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
    key, value = (torch.randn(1, 1700, 8, 128, generator=generator).to("cuda", torch.bfloat16) for _ in range(2))
    found, wanted = choose(name, "cuda", torch.bfloat16)(query, key, value).double(), plain(query, key, value)
    limit = attention_trial.LIMITS.get(name, attention_trial.LIMIT)
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


# --- torch's plain formula is never taken unasked -------------------------------------------------------------------


class OnCard(Tensor):
    """A tensor that says it lies on a card."""

    is_cuda = property(lambda self: True)


class CardsTorch:
    """What a torch with a card would choose, and the calls that its attention got: (type, groups, bytes of scores)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fused: Callable[[Tensor, bool, bool], bool]) -> None:
        self.calls: list[tuple[torch.dtype, bool, int]] = []
        self.by_cudnn = 0
        self._sdpa = torch.nn.functional.scaled_dot_product_attention
        self._fused = fused
        monkeypatch.setattr(attention, "_answers", {})
        monkeypatch.setattr(attention, "_refused", set())
        monkeypatch.setattr(torch, "_fused_sdp_choice", self.choice)
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", self.attend)
        monkeypatch.setattr(torch.backends.cuda, "can_use_cudnn_attention", lambda _: False)
        monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True, raising=False)
        monkeypatch.setattr("magi_lite.machine.devices.capability", lambda index=None: (8, 9))

    def choice(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *_: object, **options: object) -> int:
        return int(self._fused(q, mask is not None, bool(options["enable_gqa"])))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: bool) -> Tensor:
        grouped = bool(options.get("enable_gqa"))
        self.calls.append((q.dtype, grouped, 4 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]))
        mask = None if attn_mask is None else attn_mask.as_subclass(Tensor)
        return self._sdpa(*(x.as_subclass(Tensor) for x in (q, k, v)), attn_mask=mask, **options).as_subclass(OnCard)


def on_card(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(x.to(dtype).as_subclass(OnCard) for x in tensors)


def off(found: Tensor, given: tuple[Tensor, Tensor, Tensor], mask: Tensor | None = None) -> float:
    wanted = plain(*(x.as_subclass(Tensor) for x in given), mask)
    return float((found.as_subclass(Tensor).double() - wanted).norm() / wanted.norm())


@torch.no_grad()
def test_groups_that_no_fused_kernel_reads_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a card that is newer than torch's flash kernel: for grouped keys torch would take the formula."""
    card = CardsTorch(monkeypatch, lambda q, masked, grouped: not grouped)
    given = on_card(random_qkv(6, 2, seed=10), torch.bfloat16)
    assert off(SDPA(*given), given) < 0.01
    assert len(card.calls) == 2 and not any(grouped for _, grouped, _ in card.calls)


@torch.no_grad()
def test_what_has_no_kernel_in_bfloat16_is_computed_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Turing card, where the autoencoder's attention has as many keys as queries and knows no groups."""
    card = CardsTorch(monkeypatch, lambda q, masked, grouped: q.dtype == torch.float16 and not grouped)
    given = on_card(random_qkv(4, 4, seed=11), torch.bfloat16)
    found = attention.fused(*(x.transpose(1, 2) for x in given)).transpose(1, 2)
    assert found.dtype == torch.bfloat16 and off(found, given) < 0.01
    assert [dtype for dtype, _, _ in card.calls] == [torch.float16]


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("heads", "dtype"), [(2, torch.bfloat16), (6, torch.float64)])
def test_where_no_kernel_serves_the_formula_runs_in_slices_and_is_said(
    heads: int, dtype: torch.dtype, masked: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    card = CardsTorch(monkeypatch, lambda *_: False)
    attention._say_once.cache_clear()
    monkeypatch.setattr(attention, "SCORE_BYTES", 4 * 2 * 3 * 29 * 5)
    given = on_card(random_qkv(heads, 2, seed=12), dtype)
    mask = torch.arange(29) < torch.tensor([[1], [17]]) if masked else None
    for _ in range(2):
        found = SDPA(*given) if mask is None else masked_sdpa(*given, mask)
    assert found.dtype == dtype and off(found, given, mask) < (0.01 if dtype == torch.bfloat16 else 1e-12)
    assert max(size for *_, size in card.calls) <= attention.SCORE_BYTES
    (said,) = caplog.messages
    assert "no fused kernel" in said and str(dtype) in said


@torch.no_grad()
@pytest.mark.parametrize("refuses", [False, True])
def test_cudnn_serves_where_torch_would_rather_take_the_formula(
    refuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = CardsTorch(monkeypatch, lambda *_: False)
    monkeypatch.setattr(torch.backends.cuda, "can_use_cudnn_attention", lambda _: True)
    monkeypatch.setattr(torch.backends.cuda, "SDPAParams", lambda *given: given)
    asked = []

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: None, logsumexp: bool) -> tuple[Tensor]:
        asked.append(q.shape)
        if refuses:
            raise RuntimeError("No execution plans support the graph")
        return (card._sdpa(*(x.as_subclass(Tensor) for x in (q, k, v))).as_subclass(OnCard),)

    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention", attend)
    given = on_card(random_qkv(4, 4, seed=13), torch.bfloat16)
    for _ in range(2):
        assert off(SDPA(*given), given) < 0.01
    assert (len(asked), len(card.calls)) == ((1, 2) if refuses else (2, 0))


def test_a_fused_kernel_is_asked_for_once_per_outline(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    card = CardsTorch(monkeypatch, lambda q, masked, grouped: not asked.append(q.shape))
    given = on_card(random_qkv(6, 2, seed=14), torch.bfloat16)
    with torch.no_grad():
        for _ in range(3):
            SDPA(*given)
    assert len(asked) == 1 and [grouped for _, grouped, _ in card.calls] == [True] * 3


def test_a_processor_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    card = CardsTorch(monkeypatch, lambda *_: 1 // 0)
    query, key, value = random_qkv(6, 2, seed=15)
    assert (SDPA(query, key, value).as_subclass(Tensor) - plain(query, key, value)).abs().max() < 2e-6
    assert len(card.calls) == 1


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
    attention_trial.trial.cache_clear()
    yield install
    attention_trial.trial.cache_clear()


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
    found = attention_trial.trial("flash", "cpu", "float32")
    assert found == Trial() if sentence is None else re.search(sentence, found.fault), found


def test_sage_may_be_less_exact_than_flash(package: Callable[..., None]) -> None:
    for name in ("flash", "sage"):
        package(name, "return attend(q, k, v) * 1.03")
    assert attention_trial.trial("sage", "cpu", "float32") == Trial()
    assert "3.0 % off" in attention_trial.trial("flash", "cpu", "float32").fault


def test_a_kernel_that_hangs_is_given_up(package: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    package("flash", "import time; time.sleep(600)")
    monkeypatch.setattr(attention_trial, "PATIENCE_SECONDS", 5.0)
    found = attention_trial.trial("flash", "cpu", "float32")
    assert found == Trial("it did not answer within 5 seconds", lasting=False)


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
    assert attention_trial.trial.cache_info().misses == 1


def test_the_trials_formula_is_that_of_the_tests() -> None:
    query, key, value = random_qkv(6, 2, seed=5)
    assert (attention_trial.plain(query, key, value) - plain(query, key, value)).abs().max() < 1e-12


class Card:
    """A device "cuda" as `trial` asks about it, which no test may compute on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
        self.tried: list[str] = []
        self.driver = "1"
        self.results: dict[str, Trial] = {}
        monkeypatch.setattr(findings, "FILE", file)
        monkeypatch.setattr("magi_lite.machine.devices.identity", lambda _: f"Some Card, 8.9, driver {self.driver}")
        monkeypatch.setattr(attention_trial, "_apart", self.apart)
        monkeypatch.setattr(attention, "load", lambda name: attention.sdpa)
        monkeypatch.setattr(attention, "available", lambda *_: ("flash", "sage", "cudnn", "sdpa"))
        monkeypatch.setattr("magi_lite.machine.devices.cuda_available", lambda: False)

    def apart(self, name: str, device: str, kind: str) -> Trial:
        self.tried.append(name)
        return self.results.get(name, Trial())

    def choose(self) -> attention.Backend:
        """As a new process would."""
        attention_trial.trial.cache_clear()
        return choose("auto", "cuda", torch.bfloat16)


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    yield Card(monkeypatch, tmp_path / "findings.json")
    attention_trial.trial.cache_clear()


def test_a_trial_is_kept_until_the_driver_changes(card: Card) -> None:
    card.results = {"sage": Trial(speedup=2.5), "flash": Trial("it fails: no kernel image"), "cudnn": Trial(speedup=1)}
    for _ in range(2):
        chosen = card.choose()
        assert (chosen.name, chosen.speedup) == ("sage", 2.5) and "no kernel image" in chosen.notice
    assert card.tried == ["flash", "sage", "cudnn"]
    assert attention_choice.in_words("Some Card") == (
        "SageAttention, 2.5 times as fast as PyTorch's own; not flash-attn: it fails: no kernel image"
    )
    assert attention_choice.in_words("Some Card Ti") == ""
    card.driver = "2"
    card.choose()
    assert len(card.tried) == 6


def test_what_failed_by_chance_is_tried_again(card: Card) -> None:
    short = Trial("it fails: out of memory", lasting=False)
    card.results = {"flash": short, "sage": Trial(speedup=2), "cudnn": Trial("x")}
    card.choose()
    card.results["flash"] = Trial(speedup=3)
    assert card.choose().name == "flash"
    assert card.tried.count("flash") == 2 and card.tried.count("sage") == 1


@pytest.mark.parametrize(
    ("flash", "sage", "cudnn", "chosen"),
    [
        (1.1, 2.6, 1.2, "sage"),
        (1.02, 1.02, 0.95, "sdpa"),
        (None, None, None, "flash"),
        (0.9, None, 1.9, "cudnn"),
        (1.02, 0.8, 1.004, "cudnn"),  # on a tie, for it asks less of the processor
        (0.9, 0.8, 0.98, "cudnn"),
        (1.04, 0.8, 0.99, "flash"),
    ],
)
def test_the_fastest_kernel_serves(
    flash: float | None, sage: float | None, cudnn: float | None, chosen: str, card: Card
) -> None:
    speedups = {"flash": flash, "sage": sage, "cudnn": cudnn}
    card.results = {name: Trial(speedup=speedup) for name, speedup in speedups.items()}
    assert card.choose().name == chosen


def test_a_tie_is_no_gain_in_words(card: Card) -> None:
    card.results = {"flash": Trial("x"), "sage": Trial("x"), "cudnn": Trial(speedup=1.004)}
    assert card.choose().name == "cudnn"
    assert attention_choice.in_words("Some Card").partition(";")[0] == "cuDNN's"


@pytest.mark.parametrize("asked", ["auto", "sdpa"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_card_without_a_fused_kernel_is_said_and_planned_for(
    asked: str, fused: bool, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = torch.empty
    monkeypatch.setattr("magi_lite.machine.devices.cuda_available", lambda: True)
    monkeypatch.setattr(attention, "any_serves", lambda example: fused)
    monkeypatch.setattr(torch, "empty", lambda *shape, dtype, device: made(*shape, dtype=dtype))
    card.results = dict.fromkeys(("flash", "sage", "cudnn"), Trial("it fails"))
    attention_trial.trial.cache_clear()
    chosen = choose(asked, "cuda", torch.bfloat16)
    own = "sdpa" if fused else "plain"
    assert chosen.name == attention_choice.expected(asked, "Some Card") == own
    assert ("no fused kernel" in chosen.notice) is not fused
    assert ("plain formula" in attention_choice.in_words("Some Card")) is not fused
    given = on_card(random_qkv(6, 2, seed=16), torch.float32)
    monkeypatch.setattr(attention, "serves", lambda *_, **__: fused)
    assert (chosen(*random_qkv(6, 2, seed=16)) - plain(*given).as_subclass(Tensor)).abs().max() < 2e-6


@pytest.mark.parametrize("content", ["", "[]", '{"attention flash unknown, bfloat16, Some Card": 3}', '{"a": {}}'])
def test_findings_that_cannot_be_read_are_found_again(content: str, card: Card) -> None:
    assert findings.FILE is not None
    findings.FILE.write_text(content)
    assert card.choose().name == "flash" and card.tried == ["flash", "sage", "cudnn"]


def test_a_result_of_another_form_is_not_believed(card: Card) -> None:
    card.choose()
    assert findings.FILE is not None
    findings.FILE.write_text(findings.FILE.read_text().replace('"fault"', '"flaw"'))
    assert card.choose().name == "flash" and len(card.tried) == 6


def test_sage_leaves_short_captions_to_torch(package: Callable[..., None]) -> None:
    package("sage", "return attend(q, k, v) * 1.04")
    query, key, value = random_qkv(6, 2, seed=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(os.environ["PYTHONPATH"])
        kernel = attention.load("sage")
        long = [x.repeat(1, 40, 1, 1) for x in (key, value)]
        assert (kernel(query, key, value) - plain(query, key, value)).abs().max() < 2e-6
        assert torch.allclose(kernel(query, *long), 1.04 * SDPA(query, *long))
        sys.modules.pop("sageattention", None)


@pytest.mark.parametrize("error", [RuntimeError("No execution plans support the graph"), None])
def test_sizes_that_cudnn_refuses_are_torchs(error: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: None, logsumexp: bool) -> tuple[Tensor]:
        calls.append(q.shape)
        if error:
            raise error
        return (torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True),)

    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention", attend)
    kernel = attention.load("cudnn")
    query, key, value = random_qkv(6, 2, seed=7)
    for _ in range(2):
        assert (kernel(query, key, value) - plain(query, key, value)).abs().max() < 2e-6
    assert len(calls) == (1 if error else 2)


@pytest.mark.parametrize("name", ["flash", "sage"])
@pytest.mark.parametrize("fault", ["RuntimeError('no kernel image')", "AssertionError()", "ValueError('head size')"])
def test_sizes_that_a_package_refuses_are_torchs(name: str, fault: str, package: Callable[..., None]) -> None:
    """Behind a trial that went well; what is out of memory is no refusal."""
    package(name, f"raise {fault}")
    query, key, value = random_qkv(6, 2, seed=8)
    key, value = (x.repeat(1, 40, 1, 1) for x in (key, value))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(os.environ["PYTHONPATH"])
        for _ in range(2):
            assert (attention.serving(name)(query, key, value) - plain(query, key, value)).abs().max() < 2e-6
        patch.setattr("magi_lite.machine.devices.is_out_of_memory", lambda _: True)
        with pytest.raises((RuntimeError, AssertionError, ValueError)):
            attention.serving(name)(query, key, value)
        sys.modules.pop(PACKAGE[name], None)


def test_a_sage_without_a_version_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout on the path of imports has no metadata."""
    (tmp_path / "sageattention.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("magi_lite.machine.devices.cuda_available", lambda: False)
    assert "sage" in available("cuda", torch.bfloat16)
