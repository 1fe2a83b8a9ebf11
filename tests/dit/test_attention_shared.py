"""Keys and values quantized once for the ranges that share them: SageAttention's steps, played by a stand-in."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from magi_lite import attention, attention_trial
from magi_lite.attention import Backend, Sharing, sdpa
from magi_lite.attention_choice import SHARED, Trial
from magi_lite.attention_shared import CAPABILITIES, Reach, Reader, Sage, beginnings
from magi_lite.dit.model import DiT
from magi_lite.models import DiTConfig
from magi_lite.sampling.kv_store import KVRing

STAND_IN = Path(__file__).parent / "stand_in"
LENGTHS = (700, 64, 333, 640)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The stand-in's core, as if it were installed."""
    monkeypatch.syspath_prepend(STAND_IN)
    core = __import__("sageattention.core", fromlist=["core"])
    core.calls.clear()
    yield core
    for name in [name for name in sys.modules if name.partition(".")[0] == "sageattention"]:
        del sys.modules[name]


def random_qkv(batch: int = 1, width: int = 64, tokens: int = 700) -> tuple[Tensor, Tensor, Tensor]:
    """As the model's: keys share an offset, values lie in a longer tensor."""
    generator = torch.Generator().manual_seed(batch + width)
    query = torch.randn(batch, 150, 6, width, generator=generator).bfloat16()
    key = torch.randn(batch, tokens, 2, width, generator=generator) + 3 * torch.randn(width, generator=generator)
    value = torch.randn(batch, tokens + 30, 2, width, generator=generator)[:, 30:]
    return query, key.bfloat16(), value.bfloat16()


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("cuda", ["12.8", "12.4"])
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("batch", "width"), [(1, 64), (2, 128)])
def test_every_range_is_as_near_to_the_formula_as_by_itself(
    batch: int, width: int, capability: tuple[int, int], cuda: str, package: Any
) -> None:
    query, key, value = random_qkv(batch, width)
    reaches = [Reach(key, value, length) for length in LENGTHS]
    for reach, read in zip(reaches, Sage(capability, cuda).share(reaches), strict=True):
        wanted = attention_trial.plain(query, *reach.seen)
        by_itself = package.sageattn_qk_int8_pv_fp8_cuda(query, *reach.seen, "per_thread")
        assert off(read(query), wanted) < 1.15 * off(by_itself, wanted) < 0.08


@pytest.mark.parametrize(("capability", "shared"), [((8, 9), "per_thread"), ((12, 0), "per_warp")])
def test_the_longest_range_is_what_the_public_function_makes_of_it(
    capability: tuple[int, int], shared: str, package: Any
) -> None:
    query, key, value = random_qkv()
    (read, _) = Sage(capability, "12.8").share([Reach(key, value, 700), Reach(key, value, 333)])
    assert torch.equal(read(query), package.sageattn_qk_int8_pv_fp8_cuda(query, key, value, shared))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_keys_and_values_are_quantized_once(capability: tuple[int, int], package: Any) -> None:
    query, key, value = random_qkv()
    other_key, other_value = (x[:, 100:] for x in (key, value))
    reaches = [Reach(key, value, 333), Reach(key, value, 640), Reach(other_key, other_value, 64)]
    readers = Sage(capability, "12.8").share([*reaches, reaches[0]])
    assert sorted(package.calls) == [("keys", 64), ("keys", 640), ("values", 64), ("values", 640)]
    package.calls.clear()
    for read in readers:
        read(query[:, :40])
    lengths = [333, 640, 64, 333]
    assert package.calls == [call for length in lengths for call in (("queries", 40), ("attention", length))]


def test_the_kernel_takes_no_scales_with_gaps(package: Any) -> None:
    """Why they are copied: and with the scales of other blocks the result is far off, which the trial would see."""
    query, key, value = random_qkv()
    sage = Sage((8, 9), "12.8")
    numbers, scales = sage.keys(key)
    values = sage.values(value)
    with pytest.raises(RuntimeError, match="without gaps"):
        sage.attend(query, numbers[:, :333], scales[..., :24], *values)
    wrong = scales.flatten()[: 2 * 24].view(1, 2, 24) * torch.linspace(0.5, 2, 24)
    wanted = attention_trial.plain(query, key[:, :333], value[:, :333])
    assert off(sage.attend(query, numbers[:, :333], wrong, *values), wanted) > attention_trial.LIMITS[SHARED]


@pytest.mark.parametrize("of_block", [1, 4])
def test_scales_of_shorter_ranges_are_the_first_of_every_head(of_block: int) -> None:
    scales = torch.randn(2, 3, 11 * of_block)
    found = beginnings(scales, 700, sorted(LENGTHS))
    blocks = {700: 11, 64: 1, 333: 6, 640: 10}
    for length, count in blocks.items():
        assert found[length].is_contiguous() and torch.equal(found[length], scales[..., : count * of_block])
    assert found[700] is scales
    with torch.inference_mode():
        assert torch.equal(beginnings(scales, 700, [333, 700])[333], scales[..., : 6 * of_block])


def test_a_card_with_another_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"capability 9.0 have another kernel"):
        Sage((9, 0), "12.8")


# --- it is tried in a process of its own, and nothing is lost where it fails -----------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Installs the stand-in, one line of it changed, for processes started from here, which see a card of 8.9."""

    def install(before: str = "", after: str = "") -> None:
        for file in (STAND_IN / "sageattention").glob("*.py"):
            text = file.read_text(encoding="utf-8")
            where = tmp_path / "sageattention" / file.name
            where.parent.mkdir(exist_ok=True)
            where.write_text(text.replace(before, after) if before else text, encoding="utf-8")
        (tmp_path / "sitecustomize.py").write_text(
            "import torch\ntorch.cuda.get_device_capability = lambda *_: (8, 9)\ntorch.version.cuda = '12.8'\n"
        )

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    attention_trial.trial.cache_clear()
    yield install
    attention_trial.trial.cache_clear()


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("", "", ""),
        ("column // 64 * of_block", "0 * column", "its result is"),  # another layout of the scales
        ("column // 16 * 16 + place[column % 16]", "column", "its result is"),  # and of the values
        ("per_thread_int8_triton", "per_thread_int8", "it does not load: .*per_thread_int8_triton"),
        ("sm_scale: float,\n", "sm_scale: float,\n    mask: int,\n", "it fails: .*argument"),
        ("torch.exp(", "torch.nan * torch.exp(", "not finite"),
    ],
)
def test_its_steps_are_tried_before_they_are_trusted(
    before: str, after: str, sentence: str, installed: Callable[[str, str], None]
) -> None:
    installed(before, after)
    found = attention_trial.trial(SHARED, "cpu", "bfloat16")
    if not sentence:
        assert found == Trial()
    else:
        with pytest.raises(AssertionError, match=sentence):
            assert not found.fault, found.fault


@pytest.mark.parametrize(
    ("capability", "fault", "shares"), [((8, 9), "", True), ((8, 9), "it fails: x", False), ((8, 6), "", False)]
)
def test_sage_shares_ranges_where_its_steps_work(
    capability: tuple[int, int], fault: str, shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def trial(name: str, device: str, kind: str) -> Trial:
        tried.append(name)
        return Trial(fault) if name == SHARED else Trial(speedup=2.0)

    monkeypatch.setattr(attention_trial, "trial", trial)
    monkeypatch.setattr(attention, "available", lambda *_: ("sage", "sdpa"))
    monkeypatch.setattr(attention, "load", lambda name: sdpa)
    monkeypatch.setattr(attention, "load_share", lambda device: lambda reaches: 1 // 0)
    monkeypatch.setattr("magi_lite.machine.devices.cuda_available", lambda: True)
    monkeypatch.setattr("magi_lite.machine.devices.capability", lambda index: capability)
    for asked in ("auto", "sage"):
        chosen = attention.choose(asked, "cuda", torch.bfloat16)
        assert (chosen.name, chosen.speedup) == ("sage", 2.0) and (chosen.share is not None) is shares
        assert ("slower" in chosen.notice and fault in chosen.notice) if fault else not chosen.notice
    assert tried == (["sage", SHARED] * 2 if capability == (8, 9) else ["sage"] * 2)


def exact(reaches: Sequence[Reach]) -> list[Reader]:
    """Shares by the formula, and says so in the result."""
    return [lambda query, reach=reach: 2 * sdpa(query, *reach.seen) for reach in reaches]


def test_short_lone_and_odd_ranges_are_the_kernels() -> None:
    query, key, value = (x.float() for x in random_qkv(tokens=1100))
    lengths = (1100, 1030, 1000)
    alone = Reach(key.clone(), value, 1100)
    readers = Sharing(exact, sdpa)([*(Reach(key, value, length) for length in lengths), alone])
    for read, length, factor in zip(readers, (*lengths, 1100), (2, 2, 1, 1), strict=True):
        assert torch.allclose(read(query), factor * sdpa(query, key[:, :length], value[:, :length]))
    query, key, value = (x.float() for x in random_qkv(width=96, tokens=1100))
    reaches = [Reach(key, value, length) for length in lengths[:2]]
    for reach, read in zip(reaches, Sharing(exact, sdpa)(reaches), strict=True):
        assert torch.allclose(read(query), sdpa(query, *reach.seen))


@pytest.mark.parametrize("when", ["prepared", "read"])
def test_a_step_that_fails_behind_its_trial_costs_no_run(when: str, caplog: pytest.LogCaptureFixture) -> None:
    query, key, value = (x.float() for x in random_qkv(tokens=1100))
    tries = []

    def fails(*_: object) -> Tensor:
        tries.append(when)
        raise RuntimeError("invalid configuration argument")

    def share(reaches: Sequence[Reach]) -> list[Reader]:
        return [fails for _ in reaches] if when == "read" else [fails()]  # type: ignore[list-item]

    sharing = Sharing(share, sdpa)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for read in sharing([Reach(key, value, 1100), Reach(key, value, 1050)]):
                assert read(query).shape == query.shape
    assert len(tries) == 1 and len(caplog.messages) == 1 and "invalid configuration" in caplog.messages[0]


@pytest.mark.parametrize("when", ["prepared", "read"])
def test_memory_that_runs_out_is_no_failure_of_a_step(when: str) -> None:
    query, key, value = (x.float() for x in random_qkv(tokens=1100))

    def fails(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def share(reaches: Sequence[Reach]) -> list[Reader]:
        return [fails for _ in reaches] if when == "read" else [fails()]  # type: ignore[list-item]

    with pytest.raises(torch.OutOfMemoryError):
        Sharing(share, sdpa)([Reach(key, value, 1100), Reach(key, value, 1050)])[0](query)


# --- in the transformer ----------------------------------------------------------------------------------------------

CONFIG = DiTConfig(
    num_layers=2, hidden_size=96, ffn_hidden_size=128, num_attention_heads=4, num_query_groups=2, head_dim=24,
    in_channels=16, out_channels=16, caption_channels=16, caption_max_length=8, gated_linear_unit=False,
    half_channel_vae=False, x_rescale_factor=1.0,
)  # fmt: skip


@pytest.mark.parametrize("pieces", [None, 5])
@pytest.mark.parametrize(
    ("ranges", "wholes"),
    [
        (((1, 3), (1, 4), (1, 5)), {48: {24, 36, 48}}),  # a window's: every range begins with the same stored chunk
        (((2, 3), (2, 4), (2, 5)), {36: {12, 24, 36}}),  # nothing stored
        (((0, 3), (1, 4), (1, 5)), {36: {36}, 48: {36, 48}}),
        (((1, 3), (1, 3), (4, 5)), {24: {24}, 12: {12}}),
    ],
)
def test_ranges_that_begin_together_share_the_longest(
    ranges: tuple[tuple[int, int], ...], wholes: dict[int, set[int]], pieces: int | None
) -> None:
    torch.manual_seed(0)
    dit = DiT(CONFIG).requires_grad_(False).eval()
    tokens, seen = 12, []

    def share(reaches: Sequence[Reach]) -> list[Reader]:
        found: dict[int, set[int]] = {}
        for reach in reaches:
            found.setdefault(id(reach.key), set()).add(reach.length)
        seen.append({reach.key.shape[1]: found[id(reach.key)] for reach in reaches})
        return [lambda query, reach=reach: sdpa(query, *reach.seen) for reach in reaches]

    latents, captions = torch.randn(1, 16, 18, 2, 4), torch.randn(3, 8, 16)
    outputs = []
    with torch.inference_mode():
        context = dit.encode_captions(captions)
        for backend in (Backend("sharing", sdpa, share=share), Backend("plain", sdpa)):
            store = KVRing(2)
            generator = torch.Generator().manual_seed(1)
            for layer in range(CONFIG.num_layers):
                key, value = (torch.randn(1, 2 * tokens, 2, 24, generator=generator) for _ in range(2))
                store.write(layer, 0, key[:, :tokens], value[:, :tokens])
                store.write(layer, 1, key[:, tokens:], value[:, tokens:])
            dit.backend, dit.attention_slice = backend, pieces
            times = torch.tensor([[0.7, 0.4, 0.1]])
            outputs.append(dit(latents, times, context, first_chunk=2, kv_ranges=ranges, store=store))
    assert torch.equal(*outputs)
    assert seen == [wholes] * CONFIG.num_layers
