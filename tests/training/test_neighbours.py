"""A decoder that looks around: its heads find the neighbours, and what these tell is in the first picture it makes."""

import numpy as np
import pytest
import torch

from magi_lite.vae.layers import normalize_heads
from training.neighbours import SIDES, look_around, look_around_encoder
from training.principal import start_from_components
from training.reel import to_signed
from training.train_vae import make_vae
from training.world import film_many, make_scene

GRID = (3, 12, 12)


def beside(latents: torch.Tensor, side: tuple[int, int, int]) -> torch.Tensor:
    """(N, C, 3, 12, 12): what every place has in that direction, zeros from outside."""
    moved = torch.zeros_like(latents)
    sides = list(zip(side, GRID, strict=True))
    to = [slice(max(0, -step), size - max(0, step)) for step, size in sides]
    source = [slice(max(0, step), size - max(0, -step)) for step, size in sides]
    moved[(..., *to)] = latents[(..., *source)]
    return moved


@pytest.fixture(scope="module")
def told() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, and frames each of whose patches is half its own latents' and half its left neighbour's doing."""
    rng = np.random.default_rng()
    latents = torch.from_numpy(rng.standard_normal((24, 16, *GRID)) * 5).float()
    paints = torch.from_numpy(rng.standard_normal((2, 16, 768)) * 0.012).float()
    patches = torch.einsum("ncthw,cp->nthwp", latents, paints[0])
    patches = patches + torch.einsum("ncthw,cp->nthwp", beside(latents, (0, 0, -1)), paints[1])
    frames = patches.unflatten(-1, (3, 4, 8, 8)).permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(24, 3, 12, 96, 96)
    return latents, frames, patches


@torch.no_grad()
def test_every_head_of_the_first_layer_brings_its_neighbours_latents(told):
    latents, frames, _ = told
    vae = make_vae()
    look_around(vae, latents, frames)
    seen = []
    vae.decoder.blocks[0].register_forward_hook(lambda module, inputs, out: seen.append(out[:, 1:]))
    vae.decoder(latents[:4])
    own = seen[0][..., :16].unflatten(1, GRID).permute(0, 4, 1, 2, 3)
    for head, side in enumerate(SIDES):
        found = seen[0][..., 16 * (1 + head) : 16 * (2 + head)].unflatten(1, GRID).permute(0, 4, 1, 2, 3)
        inside = beside(torch.ones(1, 1, *GRID), side).bool().expand_as(found)
        alike = torch.corrcoef(torch.stack([found[inside], beside(own, side)[inside]]))[0, 1]
        assert alike > 0.9, (side, alike)
        for other in SIDES:
            if other != side:
                both = inside & beside(torch.ones(1, 1, *GRID), other).bool()
                assert torch.corrcoef(torch.stack([found[both], beside(own, other)[both]]))[0, 1] < 0.3


@torch.no_grad()
def test_the_first_picture_is_better_than_any_that_is_painted_from_own_latents_alone(told):
    latents, frames, patches = told
    vae = make_vae()
    encoder = {name: tensor.clone() for name, tensor in vae.encoder.state_dict().items()}
    look_around(vae, latents[:16], frames[:16])
    error = (vae.decoder(latents[16:]) - frames[16:]).square().mean()
    rows = latents.permute(0, 2, 3, 4, 1).double()
    best = torch.linalg.lstsq(rows[:16].flatten(0, 3), patches[:16].double().flatten(0, 3)).solution
    alone = (rows[16:].flatten(0, 3) @ best - patches[16:].double().flatten(0, 3)).square().mean()
    assert error < 0.5 * alone
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in vae.encoder.state_dict().items())


def test_it_can_be_trained_at_once(told):
    latents, frames, _ = told
    vae = make_vae()
    look_around(vae, latents[:4], frames[:4])
    (vae.decoder(latents[:2]) - frames[:2]).square().mean().backward()
    gradients = [p.grad for n, p in vae.named_parameters() if n.startswith("decoder.") and p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


@torch.no_grad()
def test_an_encoder_that_looks_around_makes_nearly_the_same_and_sees_its_neighbours():
    vae = make_vae()
    frames = to_signed(film_many([make_scene(int(torch.randint(500_000, ()))) for _ in range(3)]))
    start_from_components(vae, frames)
    halves = torch.cat(frames.split(12, dim=2))
    before = vae.encode(halves)
    look_around_encoder(vae)
    after = vae.encode(halves)
    assert (after - before).square().mean() < 0.03 * before.var()

    block, seen = vae.encoder.blocks[0], []
    block.attn.qkv.register_forward_hook(lambda module, inputs, out: seen.append(out))
    vae.encode(halves[:1])
    q, k, _ = normalize_heads(seen[0].unflatten(-1, (3, 4, -1))).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)[0, :, 1:, 1:]
    for head, side in enumerate(SIDES):
        places = torch.arange(432).view(1, 1, *GRID).float()
        inside = beside(torch.ones(1, 1, *GRID), side).bool().flatten()
        found = attention[head].argmax(-1)[inside]
        assert (found == beside(places, side).flatten()[inside]).float().mean() > 0.9, side


def test_an_encoder_that_looks_around_can_be_trained_at_once():
    vae = make_vae()
    start_from_components(vae, torch.rand(2, 3, 12, 96, 96) * 2 - 1)
    look_around_encoder(vae)
    vae.moments(torch.rand(1, 3, 12, 96, 96))[0].square().mean().backward()
    gradients = [p.grad for n, p in vae.named_parameters() if n.startswith("encoder.") and p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
