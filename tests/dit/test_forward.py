"""The forward against an independent float64 formula, and against itself done another way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from magi_lite.dit.model import DiT
from magi_lite.errors import InputError
from magi_lite.models import DiTConfig
from tests.dit.conftest import CHUNK_FRAMES, LARGE_SWITCHES, SMALL, DictStore, Inputs, make_inputs, randomize
from tests.dit.formula import Chunk, Formula

EARLY = 0.02
"""Scale of the timesteps where a float64 formula is met: the sinusoid's float32 angles, up to 1000 t radians, are then
good to 1e-6. (The goldens go through all t.)"""
EXACT = 3e-6
"""Relative error (l2) between two orders of the same float32 sums, after three layers."""


def error(ours: Tensor, wanted: Tensor) -> float:
    return ((ours.double() - wanted.double()).norm() / wanted.double().norm()).item()


def formula_velocity(
    dit: DiT, given: Inputs, ranges: list[tuple[int, int]], first: int, dropped: list[bool], step_size: float | None
) -> Tensor:
    """(N, C, T, H, W) by the formula, one video at a time; every chunk that is seen must be in the pass."""
    formula = Formula(dit.config, dit.state_dict())
    videos = []
    for n in range(given.latents.shape[0]):
        chunks = []
        for k, sees in enumerate(ranges):
            row = n * len(ranges) + k
            latents = given.latents[n, :, k * CHUNK_FRAMES : (k + 1) * CHUNK_FRAMES]
            words = given.words[row, : given.lengths[row]]
            t = given.timesteps[n, k].item()
            chunks.append(Chunk(latents, t, words, dropped[row], first + k, sees, step_size))
        videos.append(torch.cat(formula.velocities(chunks), dim=1))
    return torch.stack(videos)


@pytest.mark.parametrize("config", [SMALL, LARGE_SWITCHES], ids=["4.5B switches", "24B switches"])
@pytest.mark.parametrize("step_size", [None, 4.0], ids=["base", "distilled"])
@pytest.mark.parametrize("size", [(4, 6), (6, 2)], ids=["4x6", "6x2"])
def test_forward_equals_the_formula(config: DiTConfig, step_size: float | None, size: tuple[int, int]) -> None:
    dit = randomize(DiT(config), 3)
    given = make_inputs(config, 4, 2, 3, *size)
    given.timesteps *= EARLY
    ranges, dropped = [(5, 6), (5, 7), (6, 8)], [True, False, False, False, True, False]
    captions = given.captions(dit, torch.tensor(dropped))
    ours = dit(given.latents, given.timesteps, captions, first_chunk=5, kv_ranges=ranges, step_size=step_size)
    assert ours.dtype == torch.float32
    wanted = formula_velocity(dit, given, ranges, 5, dropped, step_size)
    # A step size's angles reach thousands of radians, where float32 is good to 2e-4.
    assert error(ours, wanted) < (EXACT if step_size is None else 1e-4)


def test_gradients_equal_those_of_the_formula() -> None:
    dit = randomize(DiT(SMALL), 5)
    given = make_inputs(SMALL, 6, 1, 2)
    ranges = [(0, 1), (0, 2)]
    given.latents.requires_grad_(True)
    given.timesteps *= EARLY
    weight = torch.randn(given.latents.shape, generator=torch.Generator().manual_seed(7))
    dit.train()
    velocity = dit(given.latents, given.timesteps, given.captions(dit), first_chunk=0, kv_ranges=ranges)
    (velocity * weight).sum().backward()
    found = {name: parameter.grad for name, parameter in dit.named_parameters()}
    formula = Formula(SMALL, {name: parameter.detach() for name, parameter in dit.named_parameters()})
    for tensor in formula.state.values():
        tensor.requires_grad_(True)
    chunks = [
        Chunk(
            given.latents.detach()[0, :, k * CHUNK_FRAMES : (k + 1) * CHUNK_FRAMES],
            given.timesteps[0, k].item(),
            given.words[k, : given.lengths[k]],
            False,
            k,
            sees,
        )
        for k, sees in enumerate(ranges)
    ]
    (torch.cat(formula.velocities(chunks), dim=1) * weight[0].double()).sum().backward()
    assert given.latents.grad is not None and given.latents.grad.abs().max() > 0
    for name, gradient in found.items():
        wanted = formula.state[name].grad
        assert gradient is not None and wanted is not None, name
        if name.endswith("k_layernorm_xattn.bias"):  # moves all keys alike, which a softmax does not see
            assert wanted.abs().max() < 1e-12 and gradient.abs().max() < 1e-5, name
        else:
            assert wanted.norm() > 0 and error(gradient, wanted) < 2e-5, name


def test_a_batch_equals_its_videos_one_by_one(small: DiT) -> None:
    given = make_inputs(SMALL, 8, 3, 2)
    captions = given.captions(small)
    ranges = [(2, 3), (2, 4)]
    together = small(given.latents, given.timesteps, captions, first_chunk=2, kv_ranges=ranges, step_size=2.0)
    for n in range(3):
        rows = captions.select([2 * n, 2 * n + 1])
        sizes = torch.full((1, 2), 2.0)
        alone = small(
            given.latents[n : n + 1],
            given.timesteps[n : n + 1],
            rows,
            first_chunk=2,
            kv_ranges=ranges,
            step_size=sizes,
        )
        assert error(together[n : n + 1], alone) < EXACT


@pytest.mark.parametrize("write", [False, True], ids=["read only", "written first"])
def test_chunk_by_chunk_with_a_store_equals_all_at_once(small: DiT, write: bool) -> None:
    """Chunks 0 and 1 see only what is before them, so their keys may come from a store."""
    given = make_inputs(SMALL, 9, 2, 4)
    captions = given.captions(small)
    ranges = [(0, 1), (0, 2), (0, 3), (1, 4)]
    wanted = small(given.latents, given.timesteps, captions, first_chunk=0, kv_ranges=ranges)
    store = DictStore(tokens=CHUNK_FRAMES * 2 * 3)
    parts = []
    for first, last in ((0, 1), (1, 2), (2, 4)):
        parts.append(
            small(
                given.latents[:, :, first * CHUNK_FRAMES : last * CHUNK_FRAMES],
                given.timesteps[:, first:last],
                captions.select([n * 4 + k for n in range(2) for k in range(first, last)]),
                first_chunk=first,
                kv_ranges=ranges[first:last],
                store=store,
                write=write or last < 4,
            )
        )
    assert error(torch.cat(parts, dim=2), wanted) < EXACT
    assert {layer for layer, _, _ in store.reads} == set(store.prefetched) == {0, 1, 2}
    assert ((0, 3) in store.kept) is write


def test_a_range_may_lie_wholly_in_the_store(small: DiT) -> None:
    given = make_inputs(SMALL, 10, 1, 2)
    captions = given.captions(small)
    wanted = small(given.latents, given.timesteps, captions, first_chunk=0, kv_ranges=[(0, 1), (0, 1)])
    store = DictStore(tokens=CHUNK_FRAMES * 2 * 3)
    for k in range(2):
        ours = small(
            given.latents[:, :, k * CHUNK_FRAMES : (k + 1) * CHUNK_FRAMES],
            given.timesteps[:, k : k + 1],
            captions.select([k]),
            first_chunk=k,
            kv_ranges=[(0, 1)],
            store=store,
            write=k == 0,
        )
        assert error(ours, wanted[:, :, k * CHUNK_FRAMES : (k + 1) * CHUNK_FRAMES]) < EXACT


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "autograd"])
@pytest.mark.parametrize("tokens", [5, 12, 100])
def test_slices_change_nothing(small: DiT, tokens: int, grad: bool) -> None:
    given = make_inputs(SMALL, 11, 2, 3)
    ranges = [(0, 1), (0, 2), (1, 3)]
    small.requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        captions = given.captions(small)

        def run() -> Tensor:
            return small(given.latents, given.timesteps, captions, first_chunk=0, kv_ranges=ranges)

        wanted = run()
        small.mlp_slice, small.attention_slice = tokens, None
        assert error(run(), wanted) < EXACT
        small.mlp_slice, small.attention_slice = None, tokens
        assert error(run(), wanted) < EXACT


def test_forward_leaves_its_arguments_alone(small: DiT) -> None:
    given = make_inputs(SMALL, 12, 1, 1)
    small.mlp_slice = small.attention_slice = 5
    before = given.latents.clone(), given.timesteps.clone()
    with torch.inference_mode():
        captions = given.captions(small)
        first = small(given.latents, given.timesteps, captions, first_chunk=0, kv_ranges=[(0, 1)])
        again = small(given.latents, given.timesteps, captions, first_chunk=0, kv_ranges=[(0, 1)])
    assert torch.equal(first, again)
    assert torch.equal(given.latents, before[0]) and torch.equal(given.timesteps, before[1])


def test_bfloat16_keeps_its_float32_places() -> None:
    dit = randomize(DiT(SMALL), 13).requires_grad_(False)
    given = make_inputs(SMALL, 14, 1, 2)

    def run() -> Tensor:
        return dit(given.latents, given.timesteps, given.captions(dit), first_chunk=0, kv_ranges=[(0, 1), (0, 2)])

    single = run()
    dit.to_precision(torch.bfloat16)
    seen: dict[str, torch.dtype] = {}
    layer = dit.videodit_blocks.layers[1]
    for name, module in {
        "layer": layer,
        "proj": layer.self_attention.linear_proj,
        "fc2": layer.mlp.linear_fc2,
        "post": layer.mlp_post_norm,
        "q norm": layer.self_attention.q_layernorm,
        "qx norm": layer.self_attention.q_layernorm_xattn,
        "x": dit.x_embedder,
        "t": dit.t_embedder,
        "final": dit.final_linear,
    }.items():
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, getattr(out, "dtype", None)))
    half = run()
    single_places = {"proj", "post", "q norm", "x", "t", "final"}
    assert len(seen) == 9
    assert seen == {name: torch.float32 if name in single_places else torch.bfloat16 for name in seen}
    assert half.dtype == torch.float32
    assert error(half, single) < 0.03  # three layers of roundings of 0.4 %


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"channels": 3}, "4 channels"),
        ({"width": 5}, "multiples of 2"),
        ({"timesteps": torch.rand(2)}, "Timesteps are"),
        ({"timesteps": torch.rand(3, 2)}, "Timesteps are"),
        ({"frames": 3}, "cannot be cut"),
        ({"rows": [0]}, "1 captions"),
        ({"kv_ranges": [(0, 1)]}, "KV ranges"),
        ({"kv_ranges": [(0, 1), (1, 3)]}, r"within \[0, 2\)"),
        ({"kv_ranges": [(0, 1), (1, 1)]}, "not empty"),
        ({"first_chunk": 1}, "needs a KV store"),
        ({"write": True}, "needs a KV store"),
    ],
)
def test_what_does_not_fit_is_refused(small: DiT, change: dict[str, Any], sentence: str) -> None:
    given = make_inputs(SMALL, 15, 1, 2)
    captions = given.captions(small).select(change.pop("rows", [0, 1]))
    latents = given.latents[:, : change.pop("channels", 4), : change.pop("frames", 4), :, : change.pop("width", 6)]
    arguments = {"timesteps": given.timesteps, "first_chunk": 0, "kv_ranges": [(0, 1), (0, 2)], **change}
    with pytest.raises(InputError, match=sentence):
        small(latents, arguments.pop("timesteps"), captions, **arguments)
